"""Limits how often the log repeats a protocol violation: once a minute for each kind and origin.

The first is logged, the others are counted and reported when the minute ends: a flood must neither fill the
log nor pass unseen. Peers are told apart by where they come from, not by connection.
"""

import asyncio
import ipaddress
from collections.abc import Callable

from gpu_agent.runtime.logs import Logger

WINDOW_SECONDS = 60.0
MAX_WINDOWS = 4096
"""Beyond so many at a time, whoever comes anew shares one with all others like it."""

OTHERS = "others"

_V6_NETWORK_BITS = 64
"""What one customer is commonly given: its addresses are as good as one."""

_Key = tuple[str, object, str]

_LOG = Logger("server.connections")


class LogLimit:
    """Lets the first offence of a kind and an origin into the log, once a window."""

    def __init__(
        self, emit: Callable[..., None] = _LOG.info, *, window_seconds: float = WINDOW_SECONDS
    ) -> None:
        self._emit = emit
        self._window_seconds = window_seconds
        self._left_out: dict[_Key, int] = {}
        self._timers: dict[_Key, asyncio.TimerHandle] = {}

    def violation(self, event: str, origin: str, *, kind: object = None, **fields: object) -> None:
        """Log an offence, or count it where this minute has had one like it."""
        if self.admits(event, origin, kind=kind):
            self._emit(event, **fields)

    def admits(self, event: str, origin: str, *, kind: object = None) -> bool:
        """Say whether an offence is to be told; where this minute has had one like it, it is counted.

        What differs in `kind`, such as a code, is not like it.
        """
        key = (event, kind, origin)
        if key not in self._left_out and len(self._left_out) >= MAX_WINDOWS:
            key = (event, kind, OTHERS)
        if key in self._left_out:
            self._left_out[key] += 1
            return False
        self._left_out[key] = 0
        self._timers[key] = asyncio.get_running_loop().call_later(self._window_seconds, self._close, key)
        return True

    def stop(self) -> None:
        """Close all windows and say what was left out in them."""
        for key, timer in tuple(self._timers.items()):
            timer.cancel()
            self._close(key)

    def _close(self, key: _Key) -> None:
        del self._timers[key]
        count, (event, kind, origin) = self._left_out.pop(key), key
        if count:
            named = {} if kind is None else {"kind": kind}
            self._emit("violations_suppressed", violation=event, **named, origin=origin, count=count)


def origin_of(host: str) -> str:
    """Return what a peer is told apart by: its address, or the network that an IPv6 address is in."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, _V6_NETWORK_BITS), strict=False))
