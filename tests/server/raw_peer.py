"""A peer that writes bytes, not messages: its own handshake, and frames however odd."""

import asyncio
import contextlib
import os
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass

from gpu_agent.server.service import RegistryService
from tests.waiting import patience

HANDSHAKE = (
    b"GET /ws/node HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@dataclass
class RawPeer:
    """A peer that writes bytes, not messages."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def text(self) -> bytes:
        opcode, payload = await self._frame()
        assert opcode == 1
        return payload

    async def close_code(self) -> int:
        opcode, payload = await self._frame()
        assert opcode == 8
        code: int = struct.unpack("!H", payload[:2])[0]
        return code

    async def _frame(self) -> tuple[int, bytes]:
        async with asyncio.timeout(patience(5)):
            head, length = await self.reader.readexactly(2)
            if length == 126:
                (length,) = struct.unpack("!H", await self.reader.readexactly(2))
            return head & 15, await self.reader.readexactly(length)


@contextlib.asynccontextmanager
async def raw(service: RegistryService, *, behind: bytes = b"") -> AsyncIterator[RawPeer]:
    address = service.node_address
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(HANDSHAKE + behind)
    await reader.readuntil(b"\r\n\r\n")
    try:
        yield RawPeer(reader, writer)
    finally:
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


# WebSocket frames as a client writes them, however odd.


def masked(payload: bytes, *, opcode: int = 1, fin: bool = True) -> bytes:
    mask = os.urandom(4)
    length = len(payload)
    head = bytes([opcode | (0x80 if fin else 0)])
    if length < 126:
        head += bytes([0x80 | length])
    elif length < 65536:
        head += b"\xfe" + struct.pack("!H", length)
    else:
        head += b"\xff" + struct.pack("!Q", length)
    return head + mask + bytes(byte ^ mask[at & 3] for at, byte in enumerate(payload))


def fragmented(payload: bytes) -> bytes:
    component = len(payload) // 2
    return masked(payload[:component], fin=False) + pinged(b"", opcode=0, rest=payload[component:])


def pinged(payload: bytes, *, opcode: int = 1, rest: bytes = b"") -> bytes:
    return masked(b"are you there", opcode=9) + masked(payload + rest, opcode=opcode)
