"""Settings: read in layers, and traced to where each value comes from."""
