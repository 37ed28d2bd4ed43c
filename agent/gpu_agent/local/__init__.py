"""Requests of programs on a GPU machine to the agent that runs there, over its local socket.

A worker announces its jobs: `with gpu_agent.local.job("job-7"): ...`. Any program may ask for the state:
`ask("status")`. It imports the standard library alone.
"""

from gpu_agent.local.connection import LocalError, NoAgentError, RefusedError, ask
from gpu_agent.local.jobs import Announcement, job

__all__ = ["Announcement", "LocalError", "NoAgentError", "RefusedError", "ask", "job"]
