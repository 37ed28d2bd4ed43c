"""A TCP connection to a host, within a deadline, that notices when its peer is gone.

Speaks no protocol over it. Names are looked up in a thread that is left behind when it hangs,
because a dead resolver must not keep the agent from leaving.
"""

import asyncio
import contextlib
import os
import socket

from gpu_agent.runtime.tasks import in_thread

RESOLVE_SECONDS = 5.0
CONNECT_SECONDS = 4.0
"""For one address, so that a host with a dead IPv6 address is still reached by its IPv4 one."""
UNACKNOWLEDGED_SECONDS = 30
"""Sent bytes that nobody acknowledged for so long mean that the peer is gone."""

Address = tuple[socket.AddressFamily, tuple[object, ...]]


async def reach(host: str, port: int) -> socket.socket:
    """Connect to the first address of `host` that answers; raises `OSError` with the last one's reason."""
    failure = OSError(f"{host} has no address")
    for family, address in await addresses(host, port):
        try:
            return await connected(family, address)
        except TimeoutError:
            failure = TimeoutError(f"no answer within {CONNECT_SECONDS:g} s")
        except OSError as error:
            failure = OSError(error.errno, os.strerror(error.errno)) if error.errno else error
    raise failure


async def addresses(host: str, port: int) -> list[Address]:
    """Look a host up; raises `OSError`."""

    def look_up() -> list[Address]:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [(family, address) for family, _, _, _, address in found]

    try:
        return await in_thread("resolve", look_up, deadline_seconds=RESOLVE_SECONDS)
    except TimeoutError:
        raise TimeoutError(f"looking up {host} took over {RESOLVE_SECONDS:g} s") from None
    except UnicodeError as error:
        raise OSError(f"{host!r} is no host name: {error}") from None


async def connected(family: socket.AddressFamily, address: tuple[object, ...]) -> socket.socket:
    """Connect to one address within its deadline; raises `OSError`."""
    opened = socket.socket(family, socket.SOCK_STREAM)
    with contextlib.ExitStack() as undo:
        undo.callback(opened.close)
        opened.setblocking(False)  # noqa: FBT003 - the socket module's own signature
        _watch_over(opened)
        async with asyncio.timeout(CONNECT_SECONDS):
            await asyncio.get_running_loop().sock_connect(opened, address)
        undo.pop_all()
    return opened


def _watch_over(opened: socket.socket) -> None:
    """Ask the kernel to give a silent peer up: there are no pings in this protocol."""
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_USER_TIMEOUT", UNACKNOWLEDGED_SECONDS * 1000),
        ("TCP_KEEPIDLE", UNACKNOWLEDGED_SECONDS),
        ("TCP_KEEPINTVL", UNACKNOWLEDGED_SECONDS // 3),
    ):
        if hasattr(socket, option):  # not every platform has each
            with contextlib.suppress(OSError):
                opened.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
