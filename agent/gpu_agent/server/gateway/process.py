"""One gateway process: it holds node connections, and relays what nodes and leader say to each other.

It knows no token and no status. It enforces the limits of a connection, asks the leader whether a handshake
is accepted, and hands on each message; of heartbeats only those that say something new (`HeartbeatRelay`),
and once a second how many others there were. It ends when its link ends: the leader starts another one.
"""

import asyncio
import signal
import socket
import sys
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any

from pydantic import TypeAdapter

from gpu_agent.registry.settings import Thresholds
from gpu_agent.runtime import logs
from gpu_agent.runtime.logs import Logger, set_level
from gpu_agent.runtime.tasks import Tasks
from gpu_agent.runtime.tls.contexts import TlsFileError
from gpu_agent.server.address import Address
from gpu_agent.server.collector import tune_the_collector
from gpu_agent.server.event_loop import loop_factory
from gpu_agent.server.gateway.heartbeat_relay import HeartbeatRelay
from gpu_agent.server.gateway.link import HeartbeatRow, Kind, Link, pack_frame, pack_rows, read_document
from gpu_agent.server.limits import Limits
from gpu_agent.server.message_handler import read_ordinary_heartbeat
from gpu_agent.server.node_auth import Presented
from gpu_agent.server.node_connection import NodeConnection, NodeConnections, Undecided
from gpu_agent.server.node_listener import NodeListener
from gpu_agent.server.tls import Encryption, TlsFiles
from gpu_agent.server.websocket import Handshake, HandshakeRefusal
from gpu_agent.wire.codec import FrameError, decode_from_node
from gpu_agent.wire.heartbeat import Heartbeat
from gpu_agent.wire.messages import NodeHeartbeat, NodeRegister

MOST_NEWEST_BYTES = 16 * 1024
"""A longer heartbeat is always handed on; what a shorter one says is held for those who ask."""

ROWS_SECONDS = 1.0
"""How often the heartbeats that say nothing new are counted to the leader."""

_LOG = Logger("server.gateway")


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """What the leader tells a gateway first."""

    node_listen: Address
    limits: Limits
    thresholds: Thresholds
    tls: TlsFiles | None
    log_level: str


SETTINGS = TypeAdapter(GatewaySettings)


class Gateway:
    """The node connections of one process, and its link to the leader."""

    def __init__(self) -> None:
        self.link = Link(self._received, self._link_lost, on_drained=self._go_on_reading)
        self.ended = asyncio.Event()
        """Set once the link has ended."""
        self._tasks: Tasks | None = None
        self._connections: NodeConnections
        self._listener: NodeListener
        self._relay: HeartbeatRelay
        self._encryption: Encryption | None = None
        self._rows: dict[int, HeartbeatRow] = {}
        self._paused: set[NodeConnection] = set()
        """Those that are not read because too much waits for the leader."""
        self._newest: dict[int, bytes] = {}
        """The newest heartbeat of each connection, as it came."""

    async def run(self, own: socket.socket) -> None:
        """Serve until the link ends, then close all connections."""
        async with Tasks() as tasks:
            self._tasks = tasks  # before the first frame, which may arrive at once
            await asyncio.get_running_loop().create_connection(lambda: self.link, sock=own)
            await self.ended.wait()
            if hasattr(self, "_listener"):
                await self._listener.stop()
            tasks.end()

    # From the leader.

    def _received(self, kind: Kind, connection: int, payload: memoryview) -> None:
        match kind:
            case Kind.SEND:
                self._connections.send(connection, str(payload, "utf-8"))
            case Kind.REGISTERED:
                node_id = str(payload, "utf-8")
                self._relay.registered(connection, node_id)
                self._connections.identify(connection, node_id)
            case Kind.REFUSAL:
                self._relay.refused(connection)
                self._connections.send(connection, str(payload, "utf-8"))
            case Kind.ACCEPT:
                self._connections.answer_handshake(connection, None)
            case Kind.REFUSE:
                self._connections.answer_handshake(connection, _refusal(read_document(payload)))
            case Kind.CLOSE:
                self._connections.close(connection, **read_document(payload))
            case Kind.FAIL:
                self._connections.fail(connection, **read_document(payload))
            case Kind.EXACT:
                self._relay.set_exact(connection, exact=payload[0] == 1)
            case Kind.FIGURES:
                self.link.send(Kind.NEWEST, connection, self._newest.get(connection, b""))
            case _:
                self._rarely_received(kind, payload)

    def _rarely_received(self, kind: Kind, payload: memoryview) -> None:
        if self._tasks is None:
            return
        if kind is Kind.SETTINGS:
            self._tasks.start("gateway-listen", self._listen(SETTINGS.validate_json(bytes(payload))))
        elif kind is Kind.ADMIT:
            self._tasks.start("gateway-admit", self._listener.admit())
        elif kind is Kind.RELOAD:
            set_level(read_document(payload)["log_level"])
            if self._encryption is not None:
                self._tasks.start("certificate-reload", self._reload(self._encryption))

    async def _listen(self, settings: GatewaySettings) -> None:
        set_level(settings.log_level)
        try:
            self._encryption = None if settings.tls is None else Encryption(settings.tls)
        except TlsFileError as error:
            self._give_up(str(error))
            return
        self._relay = HeartbeatRelay(settings.thresholds)
        self._connections = NodeConnections(settings.limits)
        self._listener = NodeListener(
            self._connections,
            on_frame=self._frame_arrived,
            on_lost=self._connection_lost,
            authenticate=self._ask,
            tls=self._encryption,
        )
        try:
            await self._listener.listen(settings.node_listen, shared=True)
        except OSError as error:
            self._give_up(error.strerror or str(error))
            return
        tune_the_collector()
        self.link.send(Kind.LISTENING)
        if self._tasks is not None:
            self._tasks.start("gateway-rows", self._send_rows())
            if self._encryption is not None:
                self._tasks.start("certificate", self._encryption.watch())

    def _give_up(self, problem: str) -> None:
        self.link.send(Kind.PROBLEM, 0, problem.encode())
        self.link.close()

    @staticmethod
    async def _reload(encryption: Encryption) -> None:
        await encryption.reload()

    def _link_lost(self, problem: str) -> None:
        _LOG.info("gateway_ending", problem=problem)
        self.ended.set()

    # From the nodes.

    def _ask(self, connection: NodeConnection, handshake: Handshake) -> Undecided:
        presented = Presented.by(handshake)
        document = {
            "address": connection.address,
            "token_digest": presented.token_digest,
            "origins": presented.origins,
            "host": presented.host,
        }
        self.link.send_document(Kind.HANDSHAKE, connection.number, document)
        return Undecided.UNDECIDED

    def _frame_arrived(self, connection: NodeConnection, frame: bytes) -> None:
        number = connection.number
        now = asyncio.get_running_loop().time()
        heartbeat = self._heartbeat_in(number, frame)
        if heartbeat is not None and connection.is_registered and len(frame) <= MOST_NEWEST_BYTES:
            self._newest[number] = frame
            if not self._relay.is_news(number, heartbeat, now, round_trip=partial(_round_trip, connection)):
                before = self._rows.get(number)
                count = 1 if before is None else before.heartbeats + 1
                self._rows[number] = HeartbeatRow(count, now, heartbeat.probe_age_seconds)
                return
        self._send_row(number)
        self.link.send(Kind.FRAME, number, pack_frame(connection.round_trip_seconds, frame))
        if self.link.is_backed_up:
            self._paused.add(connection)
            connection.pause_reading()

    def _go_on_reading(self) -> None:
        """The leader has read what waited."""
        paused, self._paused = self._paused, set()
        for connection in paused:
            connection.resume_reading()

    def _heartbeat_in(self, number: int, frame: bytes) -> Heartbeat | None:
        """Read a heartbeat; None for any other frame, and for a malformed one: the leader refuses it."""
        heartbeat = read_ordinary_heartbeat(frame)
        if heartbeat is not None:
            return heartbeat
        try:
            message = decode_from_node(frame)
        except FrameError:
            return None
        if isinstance(message, NodeRegister):
            self._relay.declared(number, message.hardware)
        return Heartbeat.of(message) if isinstance(message, NodeHeartbeat) else None

    def _connection_lost(self, connection: NodeConnection) -> None:
        self._paused.discard(connection)
        self._newest.pop(connection.number, None)
        self._send_row(connection.number)
        self._relay.forget(connection.number)
        self.link.send(Kind.LOST, connection.number)

    def _send_row(self, number: int) -> None:
        """Count what came before, since all of one node stays in order."""
        row = self._rows.pop(number, None)
        if row is not None:
            self.link.send(Kind.ROWS, 0, pack_rows({number: row}, asyncio.get_running_loop().time()))

    async def _send_rows(self) -> None:
        while True:
            await asyncio.sleep(ROWS_SECONDS)
            rows, self._rows = self._rows, {}
            self.link.send(Kind.ROWS, 0, pack_rows(rows, asyncio.get_running_loop().time()))


def _round_trip(connection: NodeConnection) -> float | None:
    return connection.round_trip_seconds


def _refusal(document: dict[str, Any]) -> HandshakeRefusal:
    return HandshakeRefusal(
        HTTPStatus(document["status"]), document["sentence"], document["retry_after_seconds"]
    )


def main() -> None:
    """Run one gateway on the link whose file descriptor is the only argument.

    The leader's end ends it, and nothing else: a signal to the whole group must reach the leader first.
    """
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    own = socket.socket(fileno=int(sys.argv[1]))

    async def serve() -> None:
        logs.configure(call_soon=asyncio.get_running_loop().call_soon)
        await Gateway().run(own)

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(serve())
