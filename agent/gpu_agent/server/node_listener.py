"""The port where nodes connect: opened early, served once the registry is ready, closed at its end.

Decides which handshakes are accepted: none while the registry starts, stops, is full or too busy, and
otherwise those that `node_auth` accepts. Reads and writes no connection itself: see `node_connection`.
"""

import asyncio
import http
import socket
from collections.abc import Callable
from functools import partial

from gpu_agent.runtime.address import BACKLOG, Address, bound_address
from gpu_agent.server.event_loop import handles_of
from gpu_agent.server.node_connection import NodeConnection, NodeConnections, Verdict
from gpu_agent.server.tls import Encryption, TlsConnection, TlsPort
from gpu_agent.server.websocket import Handshake, HandshakeRefusal

NODE_PATH = "/ws/node"
RETRY_AFTER_SECONDS = 5

ACCEPTED_AT_ONCE = 64
"""New connections in one turn of the loop: asyncio would accept all queued ones, and delay all else."""


class NodeListener:
    """Listens on one port, and holds its connections."""

    def __init__(
        self,
        connections: NodeConnections,
        *,
        on_frame: Callable[[NodeConnection, bytes], None],
        on_lost: Callable[[NodeConnection], None],
        authenticate: Callable[[NodeConnection, Handshake], Verdict],
        tls: Encryption | None = None,
    ) -> None:
        self.connections = connections
        self._limits = connections.limits
        self._create_connection = partial(
            connections.create,
            on_frame=on_frame,
            on_lost=on_lost,
            refuse=self._refuse,
        )
        self._authenticate = authenticate
        self._tls = None if tls is None else TlsPort(tls, fair_queue=self.connections.fair_queue)
        self._listener: socket.socket | None = None
        self._servers: list[asyncio.Server] = []
        self._admitting = False

    @property
    def closed_reason(self) -> str | None:
        """Why a new node is refused, as the end of a sentence; None while nodes may connect."""
        if not self._admitting:
            return "is starting or stopping"
        return "is full" if self.connections.size > self._limits.max_connections else None

    async def listen(self, address: Address, *, shared: bool = False) -> Address:
        """Open the port and return its address; peers wait in the kernel until `admit`. Raises `OSError`.

        Several processes may listen on a `shared` port: each connection goes to one of them.
        """
        loop = asyncio.get_running_loop()
        self._listener = listener = address.bind(shared=shared)
        try:
            for handle in handles_of(listener):
                server = await loop.create_server(
                    self._accepted, sock=handle, backlog=ACCEPTED_AT_ONCE, start_serving=False
                )
                self._servers.append(server)
        except OSError:
            listener.close()
            raise
        return bound_address(listener)

    async def admit(self) -> None:
        """Accept connections from now on, those first that wait in the kernel."""
        if self._listener is None:
            raise RuntimeError("there is no port: await listen() first")
        self._admitting = True
        for server in self._servers:
            await server.start_serving()
        self._listener.listen(BACKLOG)  # asyncio has one figure for the queue and for one turn

    async def stop(self) -> None:
        """Close the port and all connections, at the latest when the close timeout is over."""
        self._admitting = False
        for server in self._servers:
            server.close()
        await self.connections.close_all()

    def _accepted(self) -> NodeConnection | TlsConnection:
        connection = self._create_connection()
        if self._tls is None:
            return connection
        return self._tls.wrap(
            connection,
            lambda reason: connection.log_violation("tls_handshake_failed", kind=reason, reason=reason),
        )

    def _refuse(self, connection: NodeConnection, handshake: Handshake) -> Verdict:
        """Return why a handshake is refused; None to accept it. A full registry checks no credential."""
        if handshake.path != NODE_PATH:
            return HandshakeRefusal(http.HTTPStatus.NOT_FOUND, f"Nodes connect at {NODE_PATH}.")
        problem = self.closed_reason
        if problem is not None:
            return _unavailable(problem)
        if self.connections.pending.is_full_for(connection.origin):
            return _unavailable("waits for too many others to register")
        if connection.waited_seconds > self._limits.handshake_patience_seconds:
            seconds = self.connections.retries.next_retry_seconds(self.connections.monotonic())
            return _unavailable("has more to do than it can", seconds=seconds)
        return self._authenticate(connection, handshake)


def _unavailable(problem: str, *, seconds: int = RETRY_AFTER_SECONDS) -> HandshakeRefusal:
    return HandshakeRefusal(
        http.HTTPStatus.SERVICE_UNAVAILABLE, f"The registry {problem}; try later.", seconds
    )
