"""Writes what is to go out on a socket, in pieces, the last of which may be its end."""

import asyncio
from collections.abc import Iterable


def write_out(transport: asyncio.Transport, pieces: Iterable[bytes]) -> None:
    """Write each piece; an empty one closes our half, where the transport can do that."""
    for piece in pieces:
        if piece:
            transport.write(piece)
        elif transport.can_write_eof():
            _write_eof(transport)
        else:
            transport.close()


def _write_eof(transport: asyncio.Transport) -> None:
    try:
        transport.write_eof()
    except OSError:  # the peer has reset the connection before it could be told of its end
        transport.abort()
