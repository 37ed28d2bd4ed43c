"""The commands that ask this machine's agent over its local socket, and how its answers are shown."""
