"""Limits how often the log repeats a protocol violation: once a minute for each kind and origin.

The first is logged, the others are counted and reported when the minute ends: a flood must neither fill the
log nor pass unseen. Peers are distinguished by where they come from, not by connection: one that breaks a
rule on each new connection is still one peer.
"""

import asyncio
import ipaddress
from collections.abc import Callable

from gpu_agent.runtime.logs import Logger

WINDOW_SECONDS = 60.0
MAX_WINDOWS = 4096
"""Beyond this many at a time, all new origins share one window for each kind."""

OTHER_ORIGINS = "others"

_V6_NETWORK_BITS = 64
"""What one customer commonly gets: its addresses count as one."""

_Key = tuple[str, object, str]

_LOG = Logger("server.node_connection")


class LogLimit:
    """Logs the first violation of each kind and origin in a window."""

    def __init__(
        self, emit: Callable[..., None] = _LOG.info, *, window_seconds: float = WINDOW_SECONDS
    ) -> None:
        self._emit = emit
        self._window_seconds = window_seconds
        self._suppressed: dict[_Key, int] = {}
        self._timers: dict[_Key, asyncio.TimerHandle] = {}

    def violation(self, event: str, origin: str, *, kind: object = None, **fields: object) -> None:
        """Log a violation, or count it where its window has one already."""
        if self.admits(event, origin, kind=kind):
            self._emit(event, **fields)

    def admits(self, event: str, origin: str, *, kind: object = None) -> bool:
        """Whether to log a violation; where its window has one already, it is counted and False returned.

        A violation of another `kind`, such as another code, has a window of its own.
        """
        key = (event, kind, origin)
        if key not in self._suppressed and len(self._suppressed) >= MAX_WINDOWS:
            key = (event, kind, OTHER_ORIGINS)
        if key in self._suppressed:
            self._suppressed[key] += 1
            return False
        self._suppressed[key] = 0
        self._timers[key] = asyncio.get_running_loop().call_later(self._window_seconds, self._close, key)
        return True

    def stop(self) -> None:
        """Close all windows and report what was suppressed in them."""
        for key, timer in tuple(self._timers.items()):
            timer.cancel()
            self._close(key)

    def _close(self, key: _Key) -> None:
        del self._timers[key]
        count, (event, kind, origin) = self._suppressed.pop(key), key
        if count:
            named = {} if kind is None else {"kind": kind}
            self._emit("violations_suppressed", violation=event, **named, origin=origin, count=count)


def origin_of(host: str) -> str:
    """Return what identifies a peer here: its address, or the /64 network of an IPv6 address."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, _V6_NETWORK_BITS), strict=False))
