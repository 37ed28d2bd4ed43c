"""TLS on either end: contexts, certificates and pins, and what a failure means."""
