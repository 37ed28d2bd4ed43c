"""A gateway: it holds node connections, and relays the messages between nodes and leader.

It knows no token and no status. It enforces the limits of a connection, asks the leader whether a handshake
is accepted, and forwards each message. Of heartbeats it forwards those with news (`HeartbeatRelay`), and once
a second the number of the others. Only a window of nodes register at a time, and other handshakes wait as
long as their peers may: an acknowledgement comes once all is stored, and the leader would refuse what it
cannot store in time, so that all of it came again.

It may lose its leader and get another. Without one its connections stay open, handshakes wait, and it stores
in memory what must not get lost: the newest heartbeat of each node, the last heartbeat with each declaration,
and messages without an answer. The next leader receives the state of each connection, and these.
"""

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from itertools import islice, takewhile
from math import inf
from typing import Any

from pydantic import TypeAdapter

from gpu_agent.registry.settings import Thresholds
from gpu_agent.runtime.address import Address
from gpu_agent.runtime.logs import Logger
from gpu_agent.server.gateway.heartbeat_relay import HeartbeatRelay, News, amounts_of
from gpu_agent.server.gateway.link import (
    HeartbeatRow,
    Kind,
    Link,
    pack_amounts,
    pack_frame,
    pack_held,
    pack_rows,
    read_document,
)
from gpu_agent.server.limits import Limits
from gpu_agent.server.message_handler import read_ordinary_heartbeat
from gpu_agent.server.node_auth import Presented
from gpu_agent.server.node_connection import NodeConnection, NodeConnections, Undecided, Verdict
from gpu_agent.server.node_listener import NodeListener
from gpu_agent.server.tls import Encryption, TlsFiles
from gpu_agent.server.websocket import Handshake, HandshakeRefusal
from gpu_agent.wire.codec import FrameError, decode_from_node
from gpu_agent.wire.codes import CloseCode, ErrorCode
from gpu_agent.wire.heartbeat import Heartbeat
from gpu_agent.wire.messages import NodeHeartbeat, NodeRegister, NodeStatusMessage, NodeUnregister

MOST_NEWEST_BYTES = 16 * 1024
"""A longer heartbeat is always forwarded; a shorter one is stored until the leader asks for it."""

MOST_HELD_BYTES = 512 * 1024
"""Size of one connection's messages that wait for a leader; with more its node must connect again."""

MOST_HELD_TOGETHER_BYTES = 256 * 1024 * 1024
"""Size of all messages that wait for a leader; each connection may use an equal share."""

REPORTED_AT_ONCE = 100
"""Connections that are reported to a new leader at a time: all of them may be more than the link takes."""

ROWS_SECONDS = 1.0
"""The interval at which the leader receives the number of heartbeats without news."""

ANSWERS_NO_REGISTRATION = frozenset({ErrorCode.RATE_LIMITED, ErrorCode.UNKNOWN_NODE})
"""Codes that refuse other messages than `node_register`, which still waits for its answer."""

MOST_REGISTERING = 64
"""The window: handshakes that the leader has not answered, and nodes whose registration it has not."""

REGISTERING_SECONDS = 2.0
"""A peer that has not registered for so long after its handshake keeps no other waiting."""

MOST_WAITING = 4096
"""Handshakes that wait; with more the next ones are refused at once. Half of a fleet of 8,000 may come from a
gateway that is lost: one that waits costs little, one that is refused comes again."""

_A_STATUS = f'"type":"{NodeStatusMessage.model_fields["type"].default}"'
_LOG = Logger("server.gateway")


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """The leader's first frame to a gateway."""

    node_listen: Address
    limits: Limits
    thresholds: Thresholds
    tls: TlsFiles | None
    log_level: str


SETTINGS = TypeAdapter(GatewaySettings)


@dataclass(slots=True)
class _Session:
    """The leaders' state of one connection, and the messages that wait for the next leader."""

    accepted: Mapping[str, Any] | None = None
    """The number that the leader assigned, and the credential that it accepted; None before."""
    registered: Mapping[str, Any] | None = None
    """The node's id and epoch; None before."""
    newest: bytes = b""
    """The newest heartbeat, unchanged, where it is no longer than `MOST_NEWEST_BYTES`."""
    newest_at: float | None = None
    """When any heartbeat came last, in monotonic seconds."""
    parts: dict[int, bytes] = field(default_factory=dict)
    """By declared part: the heartbeat that replaced it last, since the node registered; in their order."""
    is_complete: bool = True
    """Whether these hold everything that a leader may not have stored."""
    registration: bytes = b""
    """The newest `node_register`, while it has no answer."""
    unregistration: bytes = b""
    """A `node_unregister` that no status has followed."""
    unheard: list[bytes] = field(default_factory=list)
    """Other messages that came without a leader; the next leader receives them once."""


class Gateway:
    """The node connections of one process, and its link to the leader where there is one."""

    def __init__(
        self, limits: Limits, thresholds: Thresholds, *, encryption: Encryption | None = None
    ) -> None:
        self.connections = NodeConnections(limits)
        self.listener = NodeListener(
            self.connections,
            on_frame=self._frame_arrived,
            on_lost=self._connection_lost,
            authenticate=self._ask,
            tls=encryption,
        )
        self._relay = HeartbeatRelay(thresholds)
        self._link: Link | None = None
        self._rows: dict[int, HeartbeatRow] = {}
        self._paused: set[NodeConnection] = set()
        """Connections that are not read because too much waits for the leader."""
        self._sessions: dict[int, _Session] = {}
        """By the numbers of their connections here."""
        self._asked: dict[int, Mapping[str, Any]] = {}
        """Handshakes that no leader has answered."""
        self._waiting: dict[int, float] = {}
        """Those of which no leader was asked, and when they began to wait; monotonic seconds."""
        self._registering: dict[int, float] = {}
        """Those accepted whose nodes have no answer to a registration, and when they were accepted."""
        self._expects_leader = True
        """Whether handshakes may wait for a leader."""
        self._unreported: dict[int, None] = {}
        """Connections that this leader does not know yet: for them there is no leader."""
        self._is_listening = False
        """Whether the leader has been sent that all connections are reported."""

    def attach(self, link: Link) -> None:
        """Use this leader from now on; it receives LISTENING once all connections are reported."""
        self._link, self._is_listening, self._expects_leader = link, False, True
        self._unreported = dict.fromkeys(self._sessions)
        self._ask_waiting()
        self._report_some(link)

    def detach(self) -> None:
        """Go on without a leader."""
        self._link = None
        self._unreported.clear()
        self._rows.clear()
        self._relay.leader_lost()
        self.go_on_reading()
        self._waiting = dict.fromkeys(self._asked, self.connections.monotonic())
        self._registering.clear()

    def judge_by(self, thresholds: Thresholds) -> None:
        """Take over the leader's thresholds."""
        self._relay.judge_by(thresholds)

    def close_all(self, code: int, reason: str) -> None:
        """Close all node connections, and accept none: their nodes may find the leader elsewhere."""
        self._expects_leader = False
        self._refuse_waiting(began_before=inf)
        for number in tuple(self._sessions):
            self.connections.close(number, code, reason)

    def go_on_reading(self) -> None:
        """Read the nodes again: the leader has read the frames that waited."""
        paused, self._paused = self._paused, set()
        for connection in paused:
            connection.resume_reading()
        if self._link is not None:
            self._report_some(self._link)

    async def send_rows(self) -> None:
        """Send the leader the number of heartbeats without news every second, until cancelled.

        Each second it refuses the handshakes, too, that have waited in vain.
        """
        patience = self.connections.limits.handshake_patience_seconds
        while True:
            await asyncio.sleep(ROWS_SECONDS)
            self._refuse_waiting(began_before=self.connections.monotonic() - patience)
            self._ask_waiting()
            if self._link is not None and not self._link.is_backed_up:  # else newer rows replace these
                rows, self._rows = self._rows, {}
                self._send_rows(self._link, rows)

    # From the leader.

    def received(self, kind: Kind, number: int, payload: memoryview) -> bool:
        """Handle a frame of the leader; returns False for one that is about no node connection."""
        match kind:
            case Kind.SEND:
                self._take_answer(number, str(payload, "utf-8"))
            case Kind.REGISTERED:
                self._registered(number, read_document(payload))
            case Kind.REFUSAL:
                self._refused(number, str(payload, "utf-8"))
            case Kind.ACCEPT:
                self._accepted(number, read_document(payload))
            case Kind.REFUSE:
                self._asked.pop(number, None)
                self._ask_waiting()
                self.connections.answer_handshake(number, _refusal(read_document(payload)))
            case Kind.CLOSE:
                self.connections.close(number, **read_document(payload))
            case Kind.FAIL:
                self.connections.fail(number, **read_document(payload))
            case Kind.EXACT:
                self._relay.set_exact(number, exact=payload[0] == 1)
            case Kind.FIGURES:
                session = self._sessions.get(number)
                self._send_row(number)
                self._send(Kind.NEWEST, number, b"" if session is None else session.newest)
            case _:
                return False
        return True

    def _accepted(self, number: int, accepted: Mapping[str, Any]) -> None:
        address = self._asked.pop(number, {}).get("address", "")
        if number in self.connections:
            self._sessions[number] = _Session({**accepted, "address": address})
            self._registering[number] = self.connections.monotonic()
            self.connections.answer_handshake(number, None)
        # Else it is closed, which the leader hears behind this.

    def _registered(self, number: int, registered: Mapping[str, Any]) -> None:
        session = self._sessions.get(number)
        if session is not None:
            session.registered = registered
            session.newest, session.is_complete = b"", True
            session.parts.clear()
            session.registration = b""
        self._relay.registered(number, registered["node_id"])
        self._registration_ended(number)
        self.connections.identify(number, registered["node_id"])

    def _take_answer(self, number: int, text: str) -> None:
        session = self._sessions.get(number)
        if session is not None and session.unregistration and _A_STATUS in text:
            session.unregistration = b""
        self.connections.send(number, text)

    def _refused(self, number: int, text: str) -> None:
        session = self._sessions.get(number)
        code = json.loads(text)["code"]
        if session is not None and code not in ANSWERS_NO_REGISTRATION:
            session.registration = b""
            self._registration_ended(number)
        elif session is not None and code == ErrorCode.UNKNOWN_NODE:
            session.unregistration = b""
        self._relay.refused(number)
        self.connections.send(number, text)

    # From the nodes.

    def _ask(self, connection: NodeConnection, handshake: Handshake) -> Verdict:
        is_alone = self._link is None and not self._expects_leader
        if is_alone or len(self._waiting) >= MOST_WAITING:
            return self._try_later()
        presented = Presented.by(handshake)
        document = {
            "address": connection.address,
            "token_digest": presented.token_digest,
            "origins": presented.origins,
            "host": presented.host,
        }
        self._asked[connection.number] = document
        self._waiting[connection.number] = self.connections.monotonic()
        self._ask_waiting()
        return Undecided.UNDECIDED

    def _registration_ended(self, number: int) -> None:
        """Leave the place of a connection in the window to one that waits."""
        self._registering.pop(number, None)
        self._ask_waiting()

    def _ask_waiting(self) -> None:
        """Ask the leader of handshakes that wait, the oldest first, as far as there is room in the window."""
        link, registering = self._link, self._registering
        if link is None or not self._waiting:
            return
        late = self.connections.monotonic() - REGISTERING_SECONDS
        for number in tuple(takewhile(lambda one: registering[one] < late, registering)):
            del registering[number]
        room = MOST_REGISTERING - len(registering) - (len(self._asked) - len(self._waiting))
        for number in tuple(islice(self._waiting, max(room, 0))):
            del self._waiting[number]
            link.send_document(Kind.HANDSHAKE, number, self._asked[number])

    def _refuse_waiting(self, *, began_before: float) -> None:
        overdue = takewhile(lambda number: self._waiting[number] < began_before, self._waiting)
        for number in tuple(overdue):
            del self._waiting[number], self._asked[number]
            self.connections.answer_handshake(number, self._try_later())

    def _try_later(self) -> HandshakeRefusal:
        seconds = self.connections.retries.next_retry_seconds(self.connections.monotonic())
        problem = "has no leader at the moment" if self._link is None else "has more to do than it can"
        sentence = f"The registry {problem}; try later."
        return HandshakeRefusal(HTTPStatus.SERVICE_UNAVAILABLE, sentence, seconds)

    def _frame_arrived(self, connection: NodeConnection, frame: bytes) -> None:
        number, session = connection.number, self._sessions[connection.number]
        heartbeat = self._heartbeat_in(connection, frame, session)
        link = None if number in self._unreported else self._link
        if heartbeat is not None and connection.is_registered:
            now = asyncio.get_running_loop().time()
            is_held = self._hold_heartbeat(session, heartbeat, frame, now=now)
            if link is None:
                return
            measure = partial(_round_trip, connection)
            news = self._relay.news_of(number, heartbeat, now, round_trip=measure) if is_held else News.WHOLE
            if news is not News.WHOLE:
                self._count(number, heartbeat, news, now=now)
                return
        elif link is None:
            self._hold(connection, session, frame)
            return
        self._send_row(number)
        link.send(Kind.FRAME, number, pack_frame(connection.round_trip_seconds, frame))
        if link.is_backed_up:
            self._paused.add(connection)
            connection.pause_reading()

    def _count(self, number: int, heartbeat: Heartbeat, news: News, *, now: float) -> None:
        """Count a heartbeat of which the leader needs its amounts at most."""
        before = self._rows.get(number)
        count, amounts = (1, None) if before is None else (before.heartbeats + 1, before.amounts)
        if news is News.AMOUNTS:
            amounts = amounts_of(heartbeat)
        self._rows[number] = HeartbeatRow(count, now, heartbeat.probe_age_seconds, amounts)

    @staticmethod
    def _hold_heartbeat(session: _Session, heartbeat: Heartbeat, frame: bytes, *, now: float) -> bool:
        """Store a heartbeat for a leader that asks, or the next one; returns False where it is too long."""
        is_short = len(frame) <= MOST_NEWEST_BYTES
        session.newest, session.newest_at = frame if is_short else b"", now
        if heartbeat.parts is not None:
            for part in [at for at, value in enumerate(heartbeat.parts) if value is not None]:
                session.parts.pop(part, None)
                session.parts[part] = session.newest
            session.is_complete &= is_short
        return is_short

    def _hold(self, connection: NodeConnection, session: _Session, frame: bytes) -> None:
        if frame is not session.registration and frame is not session.unregistration:
            session.unheard.append(frame)
        most = min(MOST_HELD_BYTES, MOST_HELD_TOGETHER_BYTES // len(self._sessions))
        if sum(map(len, (session.registration, session.unregistration, *session.unheard))) > most:
            session.unheard.clear()
            connection.close(CloseCode.TRY_AGAIN_LATER, "the registry has no leader at the moment")

    def _heartbeat_in(self, connection: NodeConnection, frame: bytes, session: _Session) -> Heartbeat | None:
        """Read a heartbeat; None for any other frame, and for a malformed one: the leader refuses it."""
        heartbeat = read_ordinary_heartbeat(frame, connection.node_id)
        if heartbeat is not None:
            return heartbeat
        try:
            message = decode_from_node(frame)
        except FrameError:
            return None
        if isinstance(message, NodeRegister):
            self._relay.declared(connection.number, message.hardware)
            session.registration = frame
        elif isinstance(message, NodeUnregister):
            session.unregistration = frame
        return Heartbeat.of(message) if isinstance(message, NodeHeartbeat) else None

    def _connection_lost(self, connection: NodeConnection) -> None:
        number = connection.number
        self._paused.discard(connection)
        self._asked.pop(number, None)
        self._waiting.pop(number, None)
        self._registration_ended(number)
        self._sessions.pop(number, None)
        self._relay.forget(number)
        if number in self._unreported:
            del self._unreported[number]
        else:
            self._send_row(number)
            self._send(Kind.LOST, number)

    def _send(self, kind: Kind, number: int, payload: bytes = b"") -> None:
        if self._link is not None:
            self._link.send(kind, number, payload)

    def _send_row(self, number: int) -> None:
        """Send the counts before another frame: one node's messages stay in order."""
        row = self._rows.pop(number, None)
        if row is not None and self._link is not None:
            self._send_rows(self._link, {number: row})

    @staticmethod
    def _send_rows(link: Link, rows: Mapping[int, HeartbeatRow]) -> None:
        now = asyncio.get_running_loop().time()
        link.send(Kind.ROWS, 0, pack_rows(rows, now))
        if amounts := pack_amounts(rows, now):
            link.send(Kind.AMOUNTS, 0, amounts)

    def _report_some(self, link: Link) -> None:
        """Report as many connections as the link takes now; the rest follows."""
        if link is not self._link or self._is_listening:
            return
        for number in tuple(islice(self._unreported, REPORTED_AT_ONCE)):
            del self._unreported[number]
            self._report(link, number, self._sessions[number])
        if not self._unreported:
            self._is_listening = True
            link.send(Kind.LISTENING)
        elif not link.is_backed_up:
            asyncio.get_running_loop().call_soon(self._report_some, link)

    def _report(self, link: Link, number: int, session: _Session) -> None:
        """Report the state of a connection, and the messages that an earlier leader may not have stored."""
        at = session.newest_at
        age = None if at is None else asyncio.get_running_loop().time() - at
        link.send_document(
            Kind.SESSION,
            number,
            {
                **(session.accepted or {}),
                **(session.registered or {"node_id": None, "session_epoch": None}),
                "heartbeat_age_seconds": age,
                "is_complete": session.is_complete,
            },
        )
        for message in _held_messages(session):
            link.send(Kind.HELD, number, pack_held(age or 0.0, message))
        session.unheard.clear()


def _held_messages(session: _Session) -> Iterator[Sequence[bytes]]:
    """Yield each message; a heartbeat with those before it that replaced other parts, the newest first."""
    heartbeats = {id(frame): frame for frame in (*session.parts.values(), session.newest) if frame}
    if heartbeats:
        yield tuple(reversed(heartbeats.values()))
    messages = (session.registration, *session.unheard, session.unregistration)
    yield from ((frame,) for frame in messages if frame)


def _round_trip(connection: NodeConnection) -> float | None:
    return connection.round_trip_seconds


def _refusal(document: dict[str, Any]) -> HandshakeRefusal:
    return HandshakeRefusal(
        HTTPStatus(document["status"]), document["sentence"], document["retry_after_seconds"]
    )
