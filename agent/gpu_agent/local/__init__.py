"""What programs on a GPU machine say to the agent that runs there, over its local socket.

A worker announces its jobs: `with gpu_agent.local.job("job-7"): ...`. Whoever is curious asks, as the
commands do: `ask("status")`. It loads the standard library alone.
"""

from gpu_agent.local.connection import LocalError, NoAgentError, RefusedError, ask
from gpu_agent.local.jobs import Announcement, job

__all__ = ["Announcement", "LocalError", "NoAgentError", "RefusedError", "ask", "job"]
