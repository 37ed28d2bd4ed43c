"""The control socket: what programs on this machine ask of the agent."""
