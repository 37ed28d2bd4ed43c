"""The event loop of the registry's processes, and what differs from one loop to another.

They run on `uvloop` where it is installed: that takes less of a core for each frame than asyncio. An embedded
registry runs on its program's loop, which may be either, so both must do. The clock of `uvloop` stands still
within a turn: lengths of time are measured by `time.monotonic`.
"""

import asyncio
import socket
import sys
from collections.abc import Callable

_HANDLES = 16
"""Each costs a system call more for a connection that comes alone."""


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the loop of a process; None for asyncio's own."""
    try:
        import uvloop  # noqa: PLC0415 - the extra `registry` installs it, though not on Windows
    except ModuleNotFoundError:
        return None
    return uvloop.new_event_loop


def handles_of(listener: socket.socket) -> list[socket.socket]:
    """Return the handles by which the running loop serves a listening socket.

    asyncio accepts several connections in one turn. libuv accepts one for each handle: a busy registry, whose
    turns take long, would let a fleet that comes back wait.
    """
    if isinstance(asyncio.get_running_loop(), asyncio.BaseEventLoop):
        return [listener]
    return [listener, *(listener.dup() for _ in range(_HANDLES - 1))]


def reads_overlap() -> bool:
    """Whether the event loop hands out a buffer long before it fills it, as that of Windows does."""
    return sys.platform == "win32" and isinstance(asyncio.get_running_loop(), asyncio.ProactorEventLoop)
