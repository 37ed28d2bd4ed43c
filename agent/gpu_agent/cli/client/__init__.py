"""How commands reach a registry's HTTP API and this machine's agent."""
