"""The leader's side of every link: the node connections that gateways hold, and what their frames mean.

To the rest of the registry this is the nodes' port with its connections. Connection numbers are the leader's,
so that of two connections of one node the newer has the higher number. A connection that an earlier leader
accepted keeps the number which that one gave it: terms stand in the high bits.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pydantic import TypeAdapter

from gpu_agent.registry.tokens import Credential
from gpu_agent.runtime.logs import Logger
from gpu_agent.runtime.tasks import crash_of
from gpu_agent.server.gateway.connection import GatewayConnection, GatewayConnections
from gpu_agent.server.gateway.link import (
    HeartbeatRow,
    Kind,
    Link,
    read_document,
    unpack_amounts,
    unpack_frame,
    unpack_held,
    unpack_rows,
)
from gpu_agent.server.limits import TokenBucket
from gpu_agent.server.message_handler import MessageHandler
from gpu_agent.server.node_auth import Presented
from gpu_agent.server.websocket import HandshakeRefusal
from gpu_agent.wire.codes import CloseCode

WATCH_SECONDS = 1.0
"""The interval at which a gateway sends at least one frame, and the leader checks that it did."""
SILENT_SECONDS = 10.0
"""A gateway that sends nothing for this time hangs, or is cut off."""

_CREDENTIAL: TypeAdapter[Credential | None] = TypeAdapter(Credential | None)

_LOG = Logger("server.gateway")


@dataclass(eq=False)
class LinkedGateway:
    """One gateway, as its leader knows it."""

    name: str
    heard_at: float
    """When it sent its last frame, or was started; monotonic seconds, as below."""
    link: Link = field(init=False)
    listening_since: float | None = None
    lag_seconds: float | None = None
    """How far its copy of the store is behind; None for one without a copy, and before its first report."""
    connections: dict[int, GatewayConnection] = field(default_factory=dict)
    """By their numbers at the gateway."""


class GatewayLinks:
    """Handles the frames of all gateways of one leader about node connections."""

    def __init__(
        self,
        connections: GatewayConnections,
        *,
        messages: MessageHandler,
        authenticate: Callable[[GatewayConnection, Presented], HandshakeRefusal | None],
        wants_exact_figures: Callable[[int], bool],
    ) -> None:
        self.connections = connections
        self._messages = messages
        self._authenticate, self._wants_exact_figures = authenticate, wants_exact_figures

    def received(  # noqa: PLR0917 - as a link calls it
        self, gateway: LinkedGateway, kind: Kind, local: int, payload: memoryview
    ) -> bool:
        """Handle a frame; returns False for one that is about the gateway itself."""
        gateway.heard_at = now = time.monotonic()
        match kind:
            case Kind.ROWS:
                self._repeat_each(gateway, unpack_rows(payload, now), now)
            case Kind.AMOUNTS:
                self._repeat_each(gateway, unpack_amounts(payload, now), now)
            case Kind.FRAME:
                connection = gateway.connections[local]
                connection.round_trip_seconds, frame = unpack_frame(payload)
                self._contain(connection, partial(self._take_frame, connection, frame))
            case Kind.NEWEST:
                if (asked := gateway.connections.get(local)) is not None:
                    self._contain(asked, partial(self._take_figures, asked, bytes(payload)))
            case Kind.HANDSHAKE:
                self._answer_handshake(gateway, local, read_document(payload))
            case Kind.LOST:
                if (lost := gateway.connections.get(local)) is not None:
                    self._lost(gateway, lost)
            case _:
                return self._inherited(gateway, kind, local, payload)
        return True

    def _inherited(  # noqa: PLR0917 - as a link calls it
        self, gateway: LinkedGateway, kind: Kind, local: int, payload: memoryview
    ) -> bool:
        """Handle a report of a connection that an earlier leader accepted."""
        if kind is Kind.SESSION:
            self._take_session(gateway, local, read_document(payload))
        elif kind is Kind.HELD:
            connection = gateway.connections[local]
            age, frames = unpack_held(payload)
            take = partial(self._messages.held_message_arrived, connection, frames, age_seconds=age)
            self._contain(connection, take)
        else:
            return False
        return True

    def drop(self, gateway: LinkedGateway) -> None:
        """Close all connections of a gateway that has ended."""
        for connection in tuple(gateway.connections.values()):
            self._lost(gateway, connection)

    def cut_off(self, gateway: LinkedGateway) -> None:
        """Treat its connections as cut off: the link has ended, and they may still be open."""
        for connection in tuple(gateway.connections.values()):
            self._lost(gateway, connection, link_ended=True)

    def _contain(self, connection: GatewayConnection, work: Callable[[], None]) -> None:
        """Handle a node's message; a crash in that ends the connection, as on a socket of our own."""
        error = crash_of(work)
        if error is not None:
            problem = f"{type(error).__name__}: {error}"
            _LOG.crash("node_message_crashed", error, node_id=connection.node_id, problem=problem)
            connection.end(Kind.FAIL, CloseCode.INTERNAL_ERROR, "the registry failed; this is a bug of it")

    def _repeat_each(
        self, gateway: LinkedGateway, rows: Iterable[tuple[int, HeartbeatRow]], now: float
    ) -> None:
        for number, row in rows:
            connection = gateway.connections[number]
            self._contain(connection, partial(self._repeat, connection, row, now))

    def _repeat(self, connection: GatewayConnection, row: HeartbeatRow, now: float) -> None:
        self._messages.heartbeats_repeated(
            connection,
            row.heartbeats,
            age_seconds=now - row.at,
            probe_age_seconds=row.probe_age_seconds,
            amounts=row.amounts,
        )
        connection.set_exact(exact=self._wants_exact_figures(connection.number))

    def _take_frame(self, connection: GatewayConnection, frame: bytes) -> None:
        self._messages.frame_arrived(connection, frame)
        connection.set_exact(exact=self._wants_exact_figures(connection.number))

    def _take_figures(self, connection: GatewayConnection, heartbeat: bytes) -> None:
        if heartbeat:
            self._messages.figures_fetched(connection, heartbeat)
        connection.figures_fetched()

    def _answer_handshake(self, gateway: LinkedGateway, local: int, document: dict[str, Any]) -> None:
        connection = self._connection(gateway, local, document["address"], self.connections.next_number())
        presented = Presented(document["token_digest"], tuple(document["origins"]), document["host"])
        refusal = self._authenticate(connection, presented)
        if refusal is None:
            self._add(gateway, connection)
            credential = _CREDENTIAL.dump_python(connection.credential, mode="json")
            gateway.link.send_document(
                Kind.ACCEPT, local, {"number": connection.number, "credential": credential}
            )
            return
        connection.log_violation(
            "handshake_refused", kind=refusal.status, status=refusal.status, reason=refusal.sentence
        )
        gateway.link.send_document(
            Kind.REFUSE,
            local,
            {
                "status": refusal.status,
                "sentence": refusal.sentence,
                "retry_after_seconds": refusal.retry_after_seconds,
            },
        )

    def _take_session(self, gateway: LinkedGateway, local: int, document: dict[str, Any]) -> None:
        """Take over a connection that an earlier leader accepted."""
        connection = self._connection(gateway, local, document["address"], document["number"])
        connection.credential, connection.is_inherited = (
            _CREDENTIAL.validate_python(document["credential"]),
            True,
        )
        self._add(gateway, connection)
        if (node_id := document["node_id"]) is not None:
            connection.node_id = node_id
            self._messages.session_reported(
                connection,
                epoch=document["session_epoch"],
                age_seconds=document["heartbeat_age_seconds"],
                is_complete=document["is_complete"],
            )

    def _connection(  # noqa: PLR0917 - one call beside another
        self, gateway: LinkedGateway, local: int, address: str, number: int
    ) -> GatewayConnection:
        quota = TokenBucket(self.connections.limits.message_rate)
        return GatewayConnection(
            local,
            number=number,
            link=gateway.link,
            log_limit=self.connections.log_limit,
            address=address,
            quota=quota,
        )

    def _add(self, gateway: LinkedGateway, connection: GatewayConnection) -> None:
        gateway.connections[connection.local] = connection
        self.connections.add(connection)

    def _lost(
        self, gateway: LinkedGateway, connection: GatewayConnection, *, link_ended: bool = False
    ) -> None:
        del gateway.connections[connection.local]
        self.connections.remove(connection)
        self._messages.connection_lost(connection, link_ended=link_ended)
