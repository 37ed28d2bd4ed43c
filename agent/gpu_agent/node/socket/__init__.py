"""The agent's local socket: its place, who may ask what, and the answers."""
