"""The machine around the GPUs: one outside thing per module."""
