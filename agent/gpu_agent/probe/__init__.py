"""What the agent finds out about its machine: one outside thing per module."""
