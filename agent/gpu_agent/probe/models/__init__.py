"""The models that this machine has: one module per kind of place where they are kept."""
