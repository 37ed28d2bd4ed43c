"""Runs one gateway: `python -m gpu_agent.server.gateway FD`, as the leader starts it."""

from gpu_agent.server.gateway.process import main

main()
