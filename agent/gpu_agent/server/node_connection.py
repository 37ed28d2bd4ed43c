"""One node's socket, and what all of them share: text frames arrive and leave within the limits of §2.

A heartbeat must not pay for a queue, a future and a task switch: a frame is handled inside the callback
that read it, so a slow registry leaves bytes in the kernel and thereby slows its peers. There is no task
per connection and no receive queue: only what is not a single whole frame of a registered node waits in the
fair queue when many connections are busy. `benchmarks/heartbeats.py` holds the figures. Knows no message
type and no status.
"""

import asyncio
import http
import itertools
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from enum import Enum, auto
from functools import partial

from gpu_agent.registry.tokens import Credential
from gpu_agent.runtime.address import Address
from gpu_agent.server.event_loop import reads_overlap
from gpu_agent.server.fair_queue import FairQueue, Work
from gpu_agent.server.limits import Limits, MemoryBudget, PendingConnections, RetrySchedule, TokenBucket
from gpu_agent.server.log_limit import LogLimit, origin_of
from gpu_agent.server.websocket import (
    FRAME_HEAD,
    FRAME_HEAD_BYTES,
    WHOLE_TEXT_FRAME,
    Handshake,
    HandshakeRefusal,
    OtherFrame,
    Received,
    WebSocket,
    unmask,
)
from gpu_agent.wire.codes import CloseCode

CONNECTIONS_TO_REFUSE = 64
"""Beyond `max_connections` this many are open at a time to be refused with a 503; others are cut off."""

_READ_BYTES, _UNREGISTERED_READ_BYTES = 64 * 1024, 4 * 1024
_CHARGED_BYTES = 2 * 1024
"""A longer frame counts as several: it costs as much as they do."""
_OWN_DELAY_SECONDS = 0.5
"""A peer whose bytes wait in our fair queue is not late: its timeout is checked again after this."""
_GOODBYE = "the registry stops; connect again"

_TCP_INFO = struct.Struct("=68xI")
"""Linux's `struct tcp_info` up to `tcpi_rtt`, in microseconds."""
_MICROSECOND = 1e-6


class Undecided(Enum):
    """Whether a handshake is accepted is not known yet: `NodeConnection.answer_handshake` will say."""

    UNDECIDED = auto()


Verdict = HandshakeRefusal | Undecided | None
"""Of a handshake; None accepts it."""


class NodeConnection(asyncio.BufferedProtocol):
    """One node's socket, known by a number that is never used again."""

    __slots__ = (
        "__weakref__",
        "_between_frames",
        "_buffer",
        "_closing",
        "_connections",
        "_frames_empty_until",
        "_held_bytes",
        "_ignores_input",
        "_max_frame_bytes",
        "_on_frame",
        "_on_lost",
        "_prepaid_frames",
        "_refuse",
        "_socket",
        "_timer",
        "_transport",
        "_unanswered",
        "_waiting",
        "_waits_since",
        "address",
        "credential",
        "heartbeats",
        "malformed_in_a_row",
        "node_id",
        "number",
        "origin",
        "quota",
        "refused_in_a_row",
        "waited_seconds",
    )

    is_inherited = False
    """Only a gateway's may be an earlier leader's."""

    def __init__(
        self,
        connections: "NodeConnections",
        number: int,
        *,
        on_frame: Callable[["NodeConnection", bytes], None],
        on_lost: Callable[["NodeConnection"], None],
        refuse: Callable[["NodeConnection", Handshake], Verdict],
    ) -> None:
        limits = connections.limits
        self.number = number
        self.node_id: str | None = None
        """The node that registered here last."""
        self.credential: Credential | None = None
        """What the handshake presented; None with auth off."""
        self.address = self.origin = ""
        self.waited_seconds = 0.0
        """How long the last bytes that waited in the fair queue did so."""
        self.malformed_in_a_row = self.refused_in_a_row = self.heartbeats = 0
        self.quota = TokenBucket(limits.message_rate)
        """How many messages other than heartbeats it may send."""
        self._connections, self._max_frame_bytes = connections, limits.max_frame_bytes
        self._on_frame, self._on_lost, self._refuse = on_frame, on_lost, refuse
        self._prepaid_frames, self._frames_empty_until = connections.frame_rate.prepaid, 0.0
        self._buffer = connections.lend_buffer(registered=False)
        self._socket = WebSocket(
            max_frame_bytes=limits.max_frame_bytes, max_handshake_bytes=limits.max_handshake_bytes
        )
        self._between_frames = False
        """True when a registered node's next byte begins a frame."""
        self._waiting, self._waits_since, self._held_bytes = b"", 0.0, 0
        self._unanswered: Iterator[Received] | None = None
        """What follows a handshake whose answer is not known yet."""
        self._timer: asyncio.TimerHandle | None = None
        self._closing = self._ignores_input = False
        """Input is ignored once we end the connection."""
        self._transport: asyncio.Transport

    @property
    def is_registered(self) -> bool:
        """Whether a node has registered on it."""
        return self.node_id is not None

    @property
    def held_bytes(self) -> int:
        """Bytes held of unfinished messages, and of answers that the peer has not read."""
        return self._socket.held_bytes + len(self._waiting) + self._transport.get_write_buffer_size()

    @property
    def round_trip_seconds(self) -> float | None:
        """The network's round trip; None where it is unknown."""
        return round_trip_seconds(self._transport)

    def identify(self, node_id: str) -> None:
        """A valid registration arrived: the connection may stay."""
        if self._closing:
            return
        if self.node_id is None:
            self._cancel_timer()
            self._buffer = self._connections.lend_buffer(registered=True)
            self._connections.registered(self)
        self.node_id = node_id

    def answer_handshake(self, refusal: HandshakeRefusal | None) -> None:
        """Answer a handshake that was `Undecided`, and go on with what followed it."""
        rest, self._unanswered = self._unanswered, None
        if rest is not None and self._socket.connecting:
            self._transport.resume_reading()
            self._answer(refusal)
            self._go_on(rest)

    def send(self, text: str) -> None:
        """Send one text frame, with all others of this turn; a connection that is closing drops it."""
        if self._socket.open:
            self._socket.send_text(text)
            self._connections.flush_soon(self)

    def close(self, code: int, reason: str) -> None:
        """Send a close frame; the peer has the close timeout to answer."""
        if self._socket.open:
            self._ignores_input = True
            self._socket.send_close(code, reason)
            self.flush()
        elif self._socket.connecting:
            self._transport.abort()

    def fail(self, code: int, reason: str) -> None:
        """End a connection whose peer broke a rule: send a close frame and ignore further input."""
        if self._socket.open:
            self.log_violation("connection_failed", kind=code, code=code, reason=reason)
            self._ignores_input = True
            self._socket.fail(code, reason)
            self.flush()
        elif self._socket.connecting:
            self._transport.abort()

    def evict(self) -> None:
        """End the connection because too much memory is held for it."""
        if self._socket.connecting or self._transport.get_write_buffer_size():
            self.log_violation("connection_evicted")
            self.abort()
        else:
            self.fail(CloseCode.TRY_AGAIN_LATER, "too many unfinished messages at a time: try later")

    def abort(self) -> None:
        """Drop the connection without a close frame."""
        self._transport.abort()

    def pause_reading(self) -> None:
        """Leave what the peer sends in the kernel for now."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        self._transport.resume_reading()

    def log_violation(self, event: str, *, kind: object = None, **fields: object) -> None:
        """Log a violation of this peer, with its node id and address."""
        self._connections.log_limit.violation(
            event, self.origin, kind=kind, node_id=self.node_id, address=self.address, **fields
        )

    # What asyncio calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # TCP's is both
        """Record the peer's address, and start the handshake's timeout."""
        self._transport = transport
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple):
            self.address, self.origin = str(Address(*peer[:2])), origin_of(peer[0])
        limits = self._connections.limits
        transport.set_write_buffer_limits(high=limits.max_unsent_bytes)
        timeout = min(limits.handshake_timeout_seconds, limits.registration_timeout_seconds)
        self._after(timeout, self._handshake_timed_out)
        self._connections.connected(self)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Return where the next bytes are read into."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Handle what was read: each message that it completes."""
        buffer = self._buffer
        if self._between_frames:
            kind, length, mask = FRAME_HEAD.unpack_from(buffer)
            if kind == WHOLE_TEXT_FRAME and nbytes == FRAME_HEAD_BYTES + length <= self._max_frame_bytes:
                count = 1 + nbytes // _CHARGED_BYTES
                if self._prepaid_frames >= count:
                    self._prepaid_frames -= count
                elif not self._within_frame_rate(count):
                    return
                self._on_frame(self, unmask(buffer[FRAME_HEAD_BYTES:nbytes], mask))
                return
        data = bytes(buffer[:nbytes])
        kind = self._kind_of_work()
        if self._connections.fair_queue.has_time(kind):
            self._receive(data)
        else:
            self._waiting, self._waits_since = data, self._connections.monotonic()
            self._transport.pause_reading()
            self._record_held()
            self._connections.fair_queue.wait(self._resume, kind)

    def eof_received(self) -> None:
        """The peer sends no more; asyncio closes the socket."""
        self._socket.receive_eof()
        self.flush()

    def pause_writing(self) -> None:
        """Disconnect a peer that does not read what it is sent."""
        self.log_violation("slow_consumer_dropped")
        self.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Clean up, whatever the cause was."""
        self._cancel_timer()
        self._closing = self._ignores_input = True
        self._between_frames, self._waiting, self._unanswered = False, b"", None
        self._socket.release()
        self._connections.lost(self)
        self._connections.fair_queue.run(partial(self._on_lost, self), Work.SERVED)

    def _kind_of_work(self) -> Work:
        if self._socket.connecting:
            return Work.NEW
        return Work.REGISTERING if self.node_id is None else Work.SERVED

    def _resume(self) -> None:
        """Handle what has waited in the fair queue."""
        if data := self._waiting:
            self._waiting, self.waited_seconds = b"", self._connections.monotonic() - self._waits_since
            self._transport.resume_reading()
            self._receive(data)

    def _receive(self, data: bytes) -> None:
        self._go_on(self._socket.receive(data))

    def _go_on(self, rest: Iterator[Received]) -> None:
        for received in rest:
            if isinstance(received, Handshake):
                verdict = self._refuse(self, received)
                if verdict is Undecided.UNDECIDED:
                    self._unanswered = rest
                    self._transport.pause_reading()
                    return
                self._answer(verdict)
            elif not self._ignores_input:  # we may have closed the connection in the same read
                self._handle(received)
        if violation := self._socket.violation():
            event = "handshake_refused" if violation.code is None else "connection_failed"
            self.log_violation(event, kind=violation.code, code=violation.code, reason=violation.reason)
        self.flush()
        self._between_frames = self.node_id is not None and self._socket.between_frames

    def _answer(self, refusal: HandshakeRefusal | None) -> None:
        status = self._socket.answer(refusal)
        if status == http.HTTPStatus.SWITCHING_PROTOCOLS:
            self._connections.handshake_succeeded(self)
        else:
            reason = "no WebSocket handshake" if refusal is None else refusal.sentence
            self.log_violation("handshake_refused", kind=status, status=status, reason=reason)

    def _handle(self, received: bytes | OtherFrame) -> None:
        extra = len(received) // _CHARGED_BYTES if isinstance(received, bytes) else 0
        if not self._within_frame_rate(1 + extra):
            return
        if isinstance(received, bytes):
            self._on_frame(self, received)
        elif received is OtherFrame.BINARY:
            self.fail(CloseCode.UNSUPPORTED_DATA, "messages are JSON in text frames")

    def _within_frame_rate(self, count: int) -> bool:
        """Pay for these frames, and prepay some if there is room; beyond the rate the connection ends."""
        connections, missing = self._connections, count - self._prepaid_frames
        paid = connections.frame_rate.consume_and_prepay(
            self._frames_empty_until, connections.monotonic(), missing
        )
        if paid is None:
            self.fail(CloseCode.POLICY_VIOLATION, "too many frames in too short a time")
            return False
        self._frames_empty_until, self._prepaid_frames = paid
        return True

    def flush(self) -> None:
        """Write what is to be sent to the socket."""
        write_pieces(self._transport, self._socket.outgoing())
        self._record_held()
        if self._socket.closing and not self._closing:
            self._closing = True
            self._between_frames = False
            self._after(self._connections.limits.close_timeout_seconds, self._transport.abort)

    def _record_held(self) -> None:
        if (held := self.held_bytes) != self._held_bytes:
            self._held_bytes = held
            self._connections.record_held(self, held)

    def _handshake_timed_out(self) -> None:
        limits = self._connections.limits
        if self._socket.connecting and (self._waiting or self._unanswered):
            self._after(_OWN_DELAY_SECONDS, self._handshake_timed_out)
        elif self._socket.connecting:
            self.log_violation("handshake_timed_out")
            self._transport.abort()
        else:
            left = limits.registration_timeout_seconds - limits.handshake_timeout_seconds
            self._after(max(0.0, left), self._registration_timed_out)

    def _registration_timed_out(self) -> None:
        if self._waiting:
            self._after(_OWN_DELAY_SECONDS, self._registration_timed_out)
        else:
            self.fail(CloseCode.POLICY_VIOLATION, "no valid node_register in time")

    def _after(self, seconds: float, then: Callable[[], None]) -> None:
        self._cancel_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, then)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class NodeConnections:
    """All open connections of one port by number, and their shared limits, fair queue, buffers and log."""

    def __init__(self, limits: Limits, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self.frame_rate = limits.frame_rate
        self.monotonic = monotonic
        self.fair_queue = FairQueue(monotonic=monotonic, patience_seconds=limits.handshake_patience_seconds)
        self.log_limit = LogLimit()
        self.memory = MemoryBudget(max_bytes=limits.max_held_bytes)
        self.pending = PendingConnections(limits)
        self.retries = RetrySchedule()
        self._by_number: dict[int, NodeConnection] = {}
        self._numbers = itertools.count(1)
        self._unflushed: dict[int, None] = {}
        """The numbers of those with texts that are not written yet."""
        self._evicting = self._stopped = False
        self._shared_buffer = memoryview(bytearray(_READ_BYTES))
        self._shared_small_buffer = self._shared_buffer[:_UNREGISTERED_READ_BYTES]
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def size(self) -> int:
        """How many connections are open."""
        return len(self._by_number)

    def __contains__(self, number: int) -> bool:
        return number in self._by_number

    def create(
        self,
        *,
        on_frame: Callable[[NodeConnection, bytes], None],
        on_lost: Callable[[NodeConnection], None],
        refuse: Callable[[NodeConnection, Handshake], Verdict],
    ) -> NodeConnection:
        """Return the protocol for a new socket; `refuse` returns None to accept its handshake."""
        number = next(self._numbers)
        return NodeConnection(self, number, on_frame=on_frame, on_lost=on_lost, refuse=refuse)

    def send(self, number: int, text: str, *, is_refusal: bool = False) -> None:  # noqa: ARG002 - a gateway's
        """Send a text frame; a connection that is gone is ignored."""
        connection = self._by_number.get(number)
        if connection is not None:
            connection.send(text)

    def answer_handshake(self, number: int, refusal: HandshakeRefusal | None) -> None:
        """Answer a handshake that was `Undecided`."""
        connection = self._by_number.get(number)
        if connection is not None:
            connection.answer_handshake(refusal)

    def identify(self, number: int, node_id: str, *, session_epoch: int | None = None) -> None:  # noqa: ARG002 - a gateway's
        """A node registered on a connection: it may stay."""
        connection = self._by_number.get(number)
        if connection is not None:
            connection.identify(node_id)

    def close(self, number: int, code: int, reason: str) -> None:
        """Send a close frame on a connection."""
        connection = self._by_number.get(number)
        if connection is not None:
            connection.close(code, reason)

    def fail(self, number: int, code: int, reason: str) -> None:
        """End a connection whose peer broke a rule."""
        connection = self._by_number.get(number)
        if connection is not None:
            connection.fail(code, reason)

    async def close_all(self) -> None:
        """Close all connections; those without an answer are aborted after the close timeout."""
        self._stopped = True
        for connection in tuple(self._by_number.values()):
            connection.close(CloseCode.GOING_AWAY, _GOODBYE)
        try:
            async with asyncio.timeout(self.limits.close_timeout_seconds):
                await self._empty.wait()
        except TimeoutError:
            for connection in tuple(self._by_number.values()):
                connection.abort()
            await self._empty.wait()
        self.log_limit.stop()

    # What connections call.

    def lend_buffer(self, *, registered: bool) -> memoryview:
        """Return a buffer to read into: one for all where reads never overlap, else one for each."""
        if reads_overlap():
            return memoryview(bytearray(_READ_BYTES if registered else _UNREGISTERED_READ_BYTES))
        return self._shared_buffer if registered else self._shared_small_buffer

    def connected(self, connection: NodeConnection) -> None:
        """A socket was accepted; where there are too many, the oldest handshake ends."""
        self._by_number[connection.number] = connection
        self._empty.clear()
        if self._stopped:  # accepted just before
            connection.abort()
            return
        oldest = self.pending.connected(connection.number)
        if oldest is None and self.size > self.limits.max_connections + CONNECTIONS_TO_REFUSE:
            oldest = self.pending.oldest_handshake()
        if oldest is not None:
            self._by_number[oldest].evict()

    def handshake_succeeded(self, connection: NodeConnection) -> None:
        """A WebSocket is open."""
        self.pending.handshake_succeeded(connection.number, connection.origin)

    def registered(self, connection: NodeConnection) -> None:
        """A node registered on a connection for the first time."""
        self.pending.remove(connection.number)
        self.retries.registered(self.monotonic())

    def flush_soon(self, connection: NodeConnection) -> None:
        """Flush a connection at the end of this turn: an ack and the status behind it are one write."""
        if not self._unflushed:
            asyncio.get_running_loop().call_soon(self._flush_all)
        self._unflushed[connection.number] = None

    def record_held(self, connection: NodeConnection, held_bytes: int) -> None:
        """Record how many bytes are held for a connection; beyond the budget the largest are closed."""
        self.memory.record(connection.number, held_bytes)
        if self.memory.exceeded and not self._evicting:
            self._evicting = True
            self._evict()
            self._evicting = False

    def lost(self, connection: NodeConnection) -> None:
        """A socket is closed."""
        self.memory.record(connection.number, 0)
        del self._by_number[connection.number]
        self.pending.remove(connection.number)
        if not self._by_number:
            self._empty.set()

    def _flush_all(self) -> None:
        unflushed, self._unflushed = self._unflushed, {}
        for number in unflushed:
            if (connection := self._by_number.get(number)) is not None:
                connection.flush()

    def _evict(self) -> None:
        connections = self._by_number
        for number in self.memory.holders:  # peers may have read their answers meanwhile
            self.memory.record(number, connections[number].held_bytes)
        for number in self.memory.evict(lambda number: connections[number].is_registered):
            connections[number].evict()


def write_pieces(transport: asyncio.Transport, pieces: Iterable[bytes]) -> None:
    """Write each piece; an empty one closes our half, where the transport can do that."""
    for piece in pieces:
        if piece:
            transport.write(piece)
        elif transport.can_write_eof():
            _write_eof(transport)
        else:
            transport.close()


def round_trip_seconds(transport: asyncio.BaseTransport) -> float | None:
    """Return the smoothed round trip of a TCP connection, which the kernel measures anyway.

    Behind a proxy it is the round trip to that. None where the kernel does not report it (`TCP_INFO` is
    Linux's).
    """
    if sys.platform != "linux":
        return None
    connection = transport.get_extra_info("socket")
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        (microseconds,) = _TCP_INFO.unpack(info)
    except (OSError, struct.error):  # the socket is closed, or an older kernel reports less
        return None
    return microseconds * _MICROSECOND if microseconds else None


def _write_eof(transport: asyncio.Transport) -> None:
    try:
        transport.write_eof()
    except OSError:  # the peer has reset the connection before it received our end
        transport.abort()
