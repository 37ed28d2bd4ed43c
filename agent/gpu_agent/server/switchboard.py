"""All nodes' connections by number: who is let in, who is still there, and how all are sent home.

Listens; reads and writes nothing itself, knows no node, and leaves credentials to another's judgement.
"""

import asyncio
import contextlib
import http
import itertools
from collections.abc import Callable

from gpu_agent.server.address import BACKLOG, Address, bound_address
from gpu_agent.server.gateway import Limits, NodeConnection
from gpu_agent.server.handshake import Handshake, TurnedAway

NODE_PATH = "/ws/node"
RETRY_AFTER_SECONDS = 5
GOING_AWAY = 1001

_READ_BYTES = 64 * 1024
_GOODBYE = "the registry stops; connect again"


class Switchboard:
    """Listens for nodes and holds their connections by number."""

    def __init__(
        self,
        limits: Limits,
        *,
        frame_arrived: Callable[[NodeConnection, bytes], None],
        connection_lost: Callable[[NodeConnection], None],
        judge: Callable[[NodeConnection, Handshake], TurnedAway | None],
    ) -> None:
        self.limits = limits
        self.frame_arrived = frame_arrived
        self._connections: dict[int, NodeConnection] = {}
        self._connection_lost = connection_lost
        self._judge = judge
        self._numbers = itertools.count(1)
        self._shared_buffer = memoryview(bytearray(_READ_BYTES))
        self._server: asyncio.Server | None = None
        self._admitting = False
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def size(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    @property
    def closed_because(self) -> str | None:
        """Why a node that comes now is not let in, as the end of a sentence; None while it is."""
        if not self._admitting:
            return "is starting or stopping"
        return "is full" if self.size > self.limits.max_connections else None

    async def listen(self, address: Address) -> Address:
        """Open the port and say which it is; nodes are told to come later until `admit`. Raises `OSError`."""
        loop = asyncio.get_running_loop()
        listener = address.bind()
        try:
            self._server = await loop.create_server(self._new_connection, sock=listener, backlog=BACKLOG)
        except OSError:
            listener.close()
            raise
        return bound_address(listener)

    def admit(self) -> None:
        """From now on nodes are let in."""
        self._admitting = True

    async def stop(self) -> None:
        """Let nobody in, say goodbye to all, and leave no socket behind when the close timeout is over."""
        self._admitting = False
        if self._server is not None:
            self._server.close()
        for connection in tuple(self._connections.values()):
            connection.close(GOING_AWAY, _GOODBYE)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.limits.close_timeout_seconds):
                await self._empty.wait()
        for connection in tuple(self._connections.values()):
            connection.abort()
        await self._empty.wait()

    def send(self, number: int, text: str) -> None:
        """Send a text frame on a connection; one that is gone hears nothing."""
        connection = self._connections.get(number)
        if connection is not None:
            connection.send(text)

    def identify(self, number: int, node_id: str) -> None:
        """A connection registered a node: it may stay."""
        connection = self._connections.get(number)
        if connection is not None:
            connection.identify(node_id)

    def close(self, number: int, code: int, reason: str) -> None:
        """Say goodbye on a connection."""
        connection = self._connections.get(number)
        if connection is not None:
            connection.close(code, reason)

    def lend_buffer(self) -> memoryview:
        """Return a buffer to read into: one for all where reading never overlaps, else one for each."""
        if isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop):
            return self._shared_buffer
        return memoryview(bytearray(_READ_BYTES))

    def turn_away(self, connection: NodeConnection, handshake: Handshake) -> TurnedAway | None:
        """Say why a peer may not come in; None when it may. A full house looks at no credential."""
        if handshake.path != NODE_PATH:
            return TurnedAway(http.HTTPStatus.NOT_FOUND, f"Nodes connect at {NODE_PATH}.")
        problem = self.closed_because
        if problem is None:
            return self._judge(connection, handshake)
        return TurnedAway(
            http.HTTPStatus.SERVICE_UNAVAILABLE, f"The registry {problem}; try later.", RETRY_AFTER_SECONDS
        )

    def forget(self, connection: NodeConnection) -> None:
        """A connection is gone."""
        del self._connections[connection.number]
        if not self._connections:
            self._empty.set()
        self._connection_lost(connection)

    def _new_connection(self) -> NodeConnection:
        connection = NodeConnection(self, next(self._numbers))
        self._connections[connection.number] = connection
        self._empty.clear()
        return connection
