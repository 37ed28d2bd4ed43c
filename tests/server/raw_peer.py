"""A peer that writes bytes, not messages: its own handshake, and frames however odd."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass

from gpu_agent.server.service import RegistryService

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
        async with asyncio.timeout(5):
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
