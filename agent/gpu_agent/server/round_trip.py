"""How long a peer's network takes there and back, as the kernel knows it anyway: nothing is sent to learn it.

Through a proxy it is the way to that. Where the kernel does not tell (`TCP_INFO` is Linux's) it is unknown.
"""

import asyncio
import socket
import struct
import sys

_SMOOTHED = struct.Struct("=68xI")
"""Linux's `struct tcp_info` up to `tcpi_rtt`, in microseconds."""
_MICROSECOND = 1e-6


def round_trip_seconds(transport: asyncio.BaseTransport) -> float | None:
    """Return the smoothed round trip of a TCP connection; None where it is unknown."""
    if sys.platform != "linux":
        return None
    connection = transport.get_extra_info("socket")
    try:
        told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SMOOTHED.size)
        (microseconds,) = _SMOOTHED.unpack(told)
    except (OSError, struct.error):  # it is closed, or an older kernel tells less
        return None
    return microseconds * _MICROSECOND if microseconds else None
