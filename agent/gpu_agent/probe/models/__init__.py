"""The models that this machine has: a scanner, and one module per kind of model cache."""
