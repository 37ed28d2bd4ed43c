"""The local socket as a run of the agent has it: opened before its loop begins, closed behind its end.

Where it cannot be had the agent goes on without one, which is logged; nothing else depends on it.
"""

import contextlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gpu_agent.local.place import SOCKET_NAME
from gpu_agent.node.settings import AgentSettings
from gpu_agent.node.socket.peer import House, own_uid
from gpu_agent.node.socket_place import SocketUnavailableError, closed_folder, listening
from gpu_agent.node.socket_settings import number_of
from gpu_agent.runtime.logs import EventLog

_LOG = EventLog("node.local")


@dataclass(frozen=True, slots=True)
class Door:
    """Where programs on this machine come in, and who may."""

    listener: socket.socket
    house: House


@contextmanager
def opened(settings: AgentSettings, state_dir: Path) -> Iterator[Door | None]:
    """Listen while the block runs; None where there is no socket to be had."""
    path = settings.socket or state_dir / SOCKET_NAME
    with contextlib.ExitStack() as stack:
        try:
            group = number_of(settings.socket_group, "socket_group")
            operators = number_of(settings.socket_operators, "socket_operators")
            listener = stack.enter_context(listening(path, group=group))
        except SocketUnavailableError as error:
            _LOG.warning("local_socket_unavailable", problem=str(error))
            yield None
            return
        shared = path.lstat().st_gid if group is None else group
        _LOG.info("local_socket_listening", path=str(path), group=shared)
        if group is not None and (closed := closed_folder(path, group)) is not None:
            problem = f"members of group {group} may not enter {closed}: name another place with `socket`"
            _LOG.warning("local_socket_out_of_reach", path=str(path), group=group, problem=problem)
        yield Door(listener, House(own_uid(), shared, operators))
