"""The port where nodes connect: accepts connections within the limits, and holds them by number.

Decides which handshakes may go on while the registry is full or busy, keeps all connections within one
memory budget, and closes them all at the end. Reads and writes no socket itself; credentials are
`node_auth`'s.
"""

import asyncio
import contextlib
import http
import itertools
import socket
import time
from collections.abc import Callable
from functools import partial

from gpu_agent.server.address import BACKLOG, Address, bound_address
from gpu_agent.server.fair_queue import FairQueue
from gpu_agent.server.limits import Limits, MemoryBudget, PendingConnections, RetrySchedule
from gpu_agent.server.log_limit import LogLimit
from gpu_agent.server.node_connection import NodeConnection
from gpu_agent.server.tls import Contexts, TlsConnection, TlsPort
from gpu_agent.server.websocket import Handshake, HandshakeRefusal
from gpu_agent.wire.codes import CloseCode

NODE_PATH = "/ws/node"
RETRY_AFTER_SECONDS = 5

ACCEPTED_AT_ONCE = 64
"""New connections in one turn of the loop: asyncio would take as many as may queue, and make all wait."""

_READ_BYTES, _STRANGERS_READ_BYTES = 64 * 1024, 4 * 1024
CONNECTIONS_TO_REFUSE = 64
"""Beyond a full house there is room to say so to so many at a time; who comes then is cut off."""

_GOODBYE = "the registry stops; connect again"


class NodeListener:
    """Listens for nodes and holds their connections by number."""

    def __init__(
        self,
        limits: Limits,
        *,
        frame_arrived: Callable[[NodeConnection, bytes], None],
        connection_lost: Callable[[NodeConnection], None],
        judge: Callable[[NodeConnection, Handshake], HandshakeRefusal | None],
        tls: Contexts | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self.frames, self.errands = limits.frames, limits.errands
        self.monotonic = monotonic
        self.turns = FairQueue(monotonic=monotonic, patience_seconds=limits.handshake_patience_seconds)
        self._tls = None if tls is None else TlsPort(tls, turns=self.turns)
        self.log_limit = LogLimit()
        self.frame_arrived = frame_arrived
        self._anteroom: PendingConnections[NodeConnection] = PendingConnections(limits)
        self._appointments = RetrySchedule()
        self._holdings: MemoryBudget[NodeConnection] = MemoryBudget(most_bytes=limits.max_held_bytes)
        self._connections: dict[int, NodeConnection] = {}
        self._connection_lost = connection_lost
        self._judge = judge
        self._numbers = itertools.count(1)
        self._shared = memoryview(bytearray(_READ_BYTES))
        self._shared_with_strangers = self._shared[:_STRANGERS_READ_BYTES]
        self._listener: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._admitting = self._stopped = False
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def size(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    @property
    def closed_reason(self) -> str | None:
        """Why a node that comes now is not let in, as the end of a sentence; None while it is."""
        if not self._admitting:
            return "is starting or stopping"
        return "is full" if self.size > self.limits.max_connections else None

    async def listen(self, address: Address) -> Address:
        """Open the port and say which it is; nodes stand in line until `admit`. Raises `OSError`."""
        loop = asyncio.get_running_loop()
        self._listener = listener = address.bind()
        try:
            self._server = await loop.create_server(
                self._new_connection, sock=listener, backlog=ACCEPTED_AT_ONCE, start_serving=False
            )
        except OSError:
            listener.close()
            raise
        return bound_address(listener)

    async def admit(self) -> None:
        """Let nodes in from now on, those first that stand in line."""
        if self._server is None or self._listener is None:
            raise RuntimeError("there is no port: await listen() first")
        self._admitting = True
        await self._server.start_serving()
        self._listener.listen(BACKLOG)  # asyncio has one figure for the line and for a helping

    async def stop(self) -> None:
        """Let nobody in, say goodbye to all, and leave no socket behind when the close timeout is over."""
        self._admitting, self._stopped = False, True
        if self._server is not None:
            self._server.close()
        for connection in tuple(self._connections.values()):
            connection.close(CloseCode.GOING_AWAY, _GOODBYE)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.limits.close_timeout_seconds):
                await self._empty.wait()
        for connection in tuple(self._connections.values()):
            connection.abort()
        await self._empty.wait()
        self.log_limit.stop()

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

    # What connections need.

    def lend_buffer(self, *, registered: bool) -> memoryview:
        """Return a buffer to read into: one for all where reading never overlaps, else one for each."""
        if isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop):
            return self._shared if registered else self._shared_with_strangers
        return memoryview(bytearray(_READ_BYTES if registered else _STRANGERS_READ_BYTES))

    def connected(self, connection: NodeConnection) -> None:
        """Let a handshake begin; where too many are under way, the one that has taken longest ends."""
        self._connections[connection.number] = connection
        self._empty.clear()
        if self._stopped:  # accepted just before
            connection.abort()
            return
        longest = self._anteroom.connected(connection)
        if longest is None and self.size > self.limits.max_connections + CONNECTIONS_TO_REFUSE:
            longest = self._anteroom.longest_shaking()
        if longest is not None:
            longest.give_up()

    def turn_away(self, connection: NodeConnection, handshake: Handshake) -> HandshakeRefusal | None:
        """Say why a peer may not come in; None when it may. A full house looks at no credential."""
        if handshake.path != NODE_PATH:
            return HandshakeRefusal(http.HTTPStatus.NOT_FOUND, f"Nodes connect at {NODE_PATH}.")
        problem = self.closed_reason
        if problem is not None:
            return _later(problem)
        if self._anteroom.is_full_for(connection):
            return _later("waits for too many others to register")
        if connection.waited_seconds > self.limits.handshake_patience_seconds:
            seconds = self._appointments.next_in(self.monotonic())
            return _later("has more to do than it can", seconds=seconds)
        return self._judge(connection, handshake)

    def handshake_succeeded(self, connection: NodeConnection) -> None:
        """A handshake succeeded."""
        self._anteroom.handshake_succeeded(connection)

    def registered(self, connection: NodeConnection) -> None:
        """A connection has shown to be a node's."""
        self._anteroom.leaves(connection)
        self._appointments.served(self.monotonic())

    def holds(self, connection: NodeConnection, held_bytes: int) -> None:
        """Note how much is held for a connection."""
        self._holdings.note(connection, held_bytes)

    def forget(self, connection: NodeConnection) -> None:
        """A connection is gone."""
        del self._connections[connection.number]
        self._anteroom.leaves(connection)
        if not self._connections:
            self._empty.set()
        self.turns.do(partial(self._connection_lost, connection), urgent=True)

    def _new_connection(self) -> NodeConnection | TlsConnection:
        connection = NodeConnection(self, next(self._numbers))
        if self._tls is None:
            return connection
        return self._tls.wrap(
            connection,
            lambda reason: connection.log_violation("tls_handshake_failed", kind=reason, reason=reason),
        )


def _later(problem: str, *, seconds: int = RETRY_AFTER_SECONDS) -> HandshakeRefusal:
    return HandshakeRefusal(
        http.HTTPStatus.SERVICE_UNAVAILABLE, f"The registry {problem}; try later.", seconds
    )
