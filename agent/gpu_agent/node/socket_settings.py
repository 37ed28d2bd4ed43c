"""What the owner says of the local socket: groups by name or number, found when the socket is made.

It looks nothing up while settings are read: a directory of users may be slow, or away.
"""

import os
import re
import sys
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from gpu_agent.local.place import SOCKET_NAME
from gpu_agent.node.socket_place import SocketUnavailableError

if sys.platform != "win32":
    import grp

_RUNTIME_VARIABLE = "RUNTIME_DIRECTORY"
"""The variable by which systemd says where a unit's sockets belong."""
_GROUP = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,255}\$?")


def _named(value: str) -> str:
    if not _GROUP.fullmatch(value):
        raise ValueError("a group is a name or a number")
    return value


Group = Annotated[str, AfterValidator(_named)]
"""A group of the system's, by name or number."""


def number_of(group: str | None, setting: str) -> int | None:
    """Look a group up; blocks. Raises `SocketUnavailableError` where there is none of that name."""
    if group is None or group.isdecimal():
        return None if group is None else int(group)
    if sys.platform == "win32":
        return None
    try:
        return grp.getgrnam(group).gr_gid
    except (KeyError, OSError):
        raise SocketUnavailableError(
            f"there is no group {group!r} on this machine; make it, or name another one with {setting}"
        ) from None


def place_by_systemd() -> Path | None:
    """Find the place that a unit is given for its sockets; None outside of one."""
    runtime = os.environ.get(_RUNTIME_VARIABLE, "").partition(":")[0]
    return Path(runtime) / SOCKET_NAME if runtime else None
