"""The port where nodes connect: opened early, served once the registry is ready, closed at its end.

Reads and writes no connection itself: see `node_connection`.
"""

import asyncio
import socket

from gpu_agent.server.address import BACKLOG, Address, bound_address
from gpu_agent.server.node_connection import NodeConnection, NodeConnections
from gpu_agent.server.tls import Encryption, TlsConnection, TlsPort

ACCEPTED_AT_ONCE = 64
"""New connections in one turn of the loop: asyncio would accept all queued ones, and delay all else."""


class NodeListener:
    """Listens on one port."""

    def __init__(self, connections: NodeConnections, *, tls: Encryption | None = None) -> None:
        self._connections = connections
        self._tls = None if tls is None else TlsPort(tls, fair_queue=connections.fair_queue)
        self._listener: socket.socket | None = None
        self._server: asyncio.Server | None = None

    async def listen(self, address: Address) -> Address:
        """Open the port and return its address; peers wait in the kernel until `admit`. Raises `OSError`."""
        loop = asyncio.get_running_loop()
        self._listener = listener = address.bind()
        try:
            self._server = await loop.create_server(
                self._accepted, sock=listener, backlog=ACCEPTED_AT_ONCE, start_serving=False
            )
        except OSError:
            listener.close()
            raise
        return bound_address(listener)

    async def admit(self) -> None:
        """Accept connections from now on, those first that wait in the kernel."""
        if self._server is None or self._listener is None:
            raise RuntimeError("there is no port: await listen() first")
        self._connections.admitting = True
        await self._server.start_serving()
        self._listener.listen(BACKLOG)  # asyncio has one figure for the queue and for one turn

    async def stop(self) -> None:
        """Close the port and all connections, at the latest when the close timeout is over."""
        if self._server is not None:
            self._server.close()
        await self._connections.close_all()

    def _accepted(self) -> NodeConnection | TlsConnection:
        connection = self._connections.create()
        if self._tls is None:
            return connection
        return self._tls.wrap(
            connection,
            lambda reason: connection.log_violation("tls_handshake_failed", kind=reason, reason=reason),
        )
