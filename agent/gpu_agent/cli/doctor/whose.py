"""Whose agent the doctor means: where root names no state directory, that of the service on this machine.

It reads nothing but where things lie, and changes no setting that was made.
"""

import os
from pathlib import Path

from gpu_agent.node.settings import AgentSettings

_STATE = Path("var/lib/gpu-agent")
"""Where the service keeps its state, from the machine's root."""
_JOIN_TOKEN = Path("etc/gpu-agent/join-token")
"""What systemd hands to the service, and root alone may read."""


def of_the_service(settings: AgentSettings, machine: Path = Path("/")) -> AgentSettings | None:
    """The settings with what the unit adds to them; None where no service is meant, or there is none."""
    state, token = machine / _STATE, machine / _JOIN_TOKEN
    if settings.state_dir is not None or not _is_root() or not state.is_dir():
        return None
    added: dict[str, Path] = {"state_dir": state}
    if settings.join_token_file is None and settings.join_token is None and token.is_file():
        added["join_token_file"] = token
    return settings.model_copy(update=added)


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0
