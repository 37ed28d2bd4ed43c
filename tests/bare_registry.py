"""A registry that does as little as the protocol allows, for tests of the agent: it answers each
registration with a fixed answer, and records all messages.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.server import ServerConnection, serve

from tests.waiting import patience

ACK: Mapping[str, object] = {
    "type": "node_register_ack",
    "node_id": "node-A",
    "message": "registered",
    "status": "registering",
    "heartbeat_interval_seconds": 0.05,
    "warmup_heartbeat_interval_seconds": 0.05,
}


class BareRegistry:
    def __init__(self, replies: tuple[Mapping[str, object], ...]) -> None:
        self.frames: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.connections: list[ServerConnection] = []
        self.url = ""
        self._replies = replies

    async def serve_one(self, connection: ServerConnection) -> None:
        self.connections.append(connection)
        async for text in connection:
            frame = json.loads(text)
            await self.frames.put(frame)
            if frame["type"] == "node_register":
                for reply in self._replies:
                    await connection.send(json.dumps(reply))

    async def say(self, **frame: object) -> None:
        """Say something to the node that connected last."""
        await self.connections[-1].send(json.dumps(frame))

    async def next(self, kind: str) -> dict[str, Any]:
        """The next frame of a type; those before it are passed over."""
        async with asyncio.timeout(patience(15)):
            while (frame := await self.frames.get())["type"] != kind:
                pass
        return frame


@asynccontextmanager
async def listening_registry(*replies: Mapping[str, object]) -> AsyncIterator[BareRegistry]:
    """Listen on 127.0.0.1; without `replies` every registration is acknowledged."""
    registry = BareRegistry(replies or (ACK,))
    async with serve(registry.serve_one, "127.0.0.1", 0, close_timeout=0.1) as server:
        registry.url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/ws/node"
        yield registry
