"""The commands on a GPU machine: they run the agent, read the machine, or use the agent's local socket."""
