"""One node's socket: whole text frames arrive and leave on it, within the limits of §2.

A heartbeat must not pay for a queue, a future and a task switch: a frame is handled inside the callback
that read it, so a slow registry leaves bytes in the kernel and thereby slows its peers. There is no task
per connection and no receive queue: only what is not a single complete frame of a registered node waits in
the fair queue when many connections are busy. `benchmarks/beats.py` holds the figures. Knows no message
type.
"""

import asyncio
import socket
import struct
import sys
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from gpu_agent.registry.credentials import Credential
from gpu_agent.server.address import Address
from gpu_agent.server.fair_queue import FairQueue
from gpu_agent.server.limits import Limits, Rate, TokenBucket
from gpu_agent.server.log_limit import LogLimit, origin_of
from gpu_agent.server.websocket import (
    HEAD_BYTES,
    LONE_HEAD,
    LONE_TEXT,
    Handshake,
    HandshakeRefusal,
    OtherFrame,
    WebSocket,
    unmask,
)
from gpu_agent.wire.codes import CloseCode

# What a connection needs of whoever keeps it, so that neither has to know how the other works.


Connection_contra = TypeVar("Connection_contra", contravariant=True)
"""A connection."""


class ConnectionOwner(Protocol[Connection_contra]):
    """Keeps all connections of one port."""

    @property
    def limits(self) -> Limits:
        """What its peer may ask."""

    @property
    def frames(self) -> Rate:
        """How fast a peer's frames may come."""

    @property
    def errands(self) -> Rate:
        """How fast a peer's messages besides beats may come."""

    @property
    def monotonic(self) -> Callable[[], float]:
        """The clock that rates are measured by."""

    @property
    def turns(self) -> FairQueue:
        """Where what may wait waits."""

    @property
    def log_limit(self) -> LogLimit:
        """Where offences are told."""

    def lend_buffer(self, *, registered: bool) -> memoryview:
        """Lend memory to read into, used up before the next connection reads."""

    def connected(self, connection: Connection_contra) -> None:
        """A handshake begins."""

    def turn_away(self, connection: Connection_contra, handshake: Handshake) -> HandshakeRefusal | None:
        """Say why a peer may not come in; None when it may."""

    def handshake_succeeded(self, connection: Connection_contra) -> None:
        """A handshake succeeded."""

    def registered(self, connection: Connection_contra) -> None:
        """A connection has shown to be a node's."""

    def frame_arrived(self, connection: Connection_contra, payload: bytes) -> None:
        """Take in a text frame."""

    def holds(self, connection: Connection_contra, held_bytes: int) -> None:
        """Note how much is held for a connection."""

    def forget(self, connection: Connection_contra) -> None:
        """A connection is gone."""


# One node's socket: whole text frames arrive and leave on it, within the limits of §2.
#
# A fleet's beats must not each pay for a queue, a future and a task switch: a frame is handed on inside
# the callback that read it, so a slow registry leaves bytes in the kernel and thereby slows its peers.
# No task per connection, and no receive queue at all: only what is no lone message of a registered node
# waits for its turn, when many speak at once. `benchmarks/beats.py` holds the figures. Knows no message.


_OUR_OWN_DELAY_SECONDS = 0.5  # what waits for its turn with us is not late: it is looked at again after this
SWITCHING_PROTOCOLS = 101

_FRAME_BYTES = 2 * 1024
"""A longer frame counts as several: it costs as much as they do."""


class NodeConnection(asyncio.BufferedProtocol):
    """One node's socket, known by a number that is never used again."""

    __slots__ = (
        "__weakref__",
        "_between_frames",
        "_buffer",
        "_closing",
        "_deaf",
        "_frames_paid",
        "_frames_paid_until",
        "_held_bytes",
        "_keeper",
        "_max_frame_bytes",
        "_socket",
        "_timer",
        "_transport",
        "_waiting",
        "_waits_since",
        "address",
        "beats",
        "credential",
        "errands",
        "malformed_in_a_row",
        "node_id",
        "number",
        "origin",
        "refused_in_a_row",
        "waited_seconds",
    )

    def __init__(self, keeper: ConnectionOwner["NodeConnection"], number: int) -> None:
        limits = keeper.limits
        self.number = number
        self.node_id: str | None = None
        """The node that registered here last."""
        self.credential: Credential | None = None
        """What its handshake presented; None with auth off."""
        self.address = self.origin = ""
        self.waited_seconds = 0.0
        """How long what it said last had to wait for its turn."""
        self.malformed_in_a_row = self.refused_in_a_row = self.beats = 0
        self.errands = TokenBucket(keeper.errands)
        """How many messages besides beats it may send."""
        self._keeper, self._max_frame_bytes = keeper, limits.max_frame_bytes
        self._frames_paid, self._frames_paid_until = keeper.frames.ahead, 0.0
        self._buffer = keeper.lend_buffer(registered=False)
        self._socket = WebSocket(
            max_frame_bytes=limits.max_frame_bytes, max_handshake_bytes=limits.max_handshake_bytes
        )
        self._between_frames = False
        """True when a registered node's next byte begins a frame."""
        self._waiting, self._waits_since, self._held_bytes = b"", 0.0, 0
        self._timer: asyncio.TimerHandle | None = None
        self._closing = self._deaf = False
        """Deaf once we end the connection: what the peer says after that counts for nothing."""
        self._transport: asyncio.Transport

    @property
    def is_registered(self) -> bool:
        """Whether it has shown to be a node's."""
        return self.node_id is not None

    @property
    def held_bytes(self) -> int:
        """What is held of unfinished messages, and of answers that the peer has not read."""
        return self._socket.held_bytes + len(self._waiting) + self._transport.get_write_buffer_size()

    @property
    def round_trip_seconds(self) -> float | None:
        """What its network takes there and back; None where that is unknown."""
        return round_trip_seconds(self._transport)

    def identify(self, node_id: str) -> None:
        """A valid registration came: the connection may stay."""
        if self._closing:
            return
        if self.node_id is None:
            self._cancel_timer()
            self._buffer = self._keeper.lend_buffer(registered=True)
            self._keeper.registered(self)
        self.node_id = node_id

    def send(self, text: str) -> None:
        """Send one text frame; on a connection that is closing it goes nowhere."""
        if self._socket.open:
            self._socket.send_text(text)
            self._flush()

    def close(self, code: int, reason: str) -> None:
        """Say goodbye with a code; the peer has the close timeout to answer."""
        if self._socket.open:
            self._deaf = True
            self._socket.send_close(code, reason)
            self._flush()
        elif self._socket.connecting:
            self._transport.abort()

    def fail(self, code: int, reason: str) -> None:
        """End a connection whose peer broke a rule: close frame, then deaf."""
        if self._socket.open:
            self.log_violation("connection_failed", kind=code, code=code, reason=reason)
            self._deaf = True
            self._socket.fail(code, reason)
            self._flush()
        elif self._socket.connecting:
            self._transport.abort()

    def give_up(self) -> None:
        """End the connection for what it makes the registry hold."""
        if self._socket.connecting or self._transport.get_write_buffer_size():
            self.log_violation("connection_evicted")
            self.abort()
        else:
            self.fail(CloseCode.TRY_AGAIN_LATER, "too many unfinished messages at a time: try later")

    def abort(self) -> None:
        """Drop the connection without a word."""
        self._transport.abort()

    def log_violation(self, event: str, *, kind: object = None, **fields: object) -> None:
        """Tell of an offence of this peer, with who it is."""
        self._keeper.log_limit.violation(
            event, self.origin, kind=kind, node_id=self.node_id, address=self.address, **fields
        )

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note the peer, and give it a while for its handshake."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - TCP transports are both
        self._transport = transport
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple):
            self.address, self.origin = str(Address(*peer[:2])), origin_of(peer[0])
        limits = self._keeper.limits
        transport.set_write_buffer_limits(high=limits.max_unsent_bytes)
        first = min(limits.handshake_timeout_seconds, limits.registration_timeout_seconds)
        self._after(first, self._handshake_over)
        self._keeper.connected(self)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Lend where the next bytes are read into."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was read, and hand on each message that it completes."""
        buffer = self._buffer
        if self._between_frames:
            kind, length, mask = LONE_HEAD.unpack_from(buffer)
            if kind == LONE_TEXT and nbytes == HEAD_BYTES + length <= self._max_frame_bytes:
                count = 1 + nbytes // _FRAME_BYTES
                if self._frames_paid >= count:
                    self._frames_paid -= count
                elif not self._may_come(count):
                    return
                self._keeper.frame_arrived(self, unmask(buffer[HEAD_BYTES:nbytes], mask))
                return
        data = bytes(buffer[:nbytes])
        inside = not self._socket.connecting
        if self._keeper.turns.has_time(urgent=inside):
            self._receive(data)
        else:
            self._waiting, self._waits_since = data, self._keeper.monotonic()
            self._transport.pause_reading()
            self._note_held()
            self._keeper.turns.wait(self._go_on, urgent=inside)

    def eof_received(self) -> None:
        """The peer says no more; asyncio closes the socket."""
        self._socket.receive_eof()
        self._flush()

    def pause_writing(self) -> None:
        """A peer that does not read what it is told is cut off."""
        self.log_violation("slow_consumer_dropped")
        self.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Tell the gateway, whatever the cause was."""
        self._cancel_timer()
        self._closing = self._deaf = True
        self._between_frames, self._waiting = False, b""
        self._socket.release()
        self._keeper.holds(self, 0)
        self._keeper.forget(self)

    def _go_on(self) -> None:
        """Take what has waited for its turn."""
        if data := self._waiting:
            self._waiting, self.waited_seconds = b"", self._keeper.monotonic() - self._waits_since
            self._transport.resume_reading()
            self._receive(data)

    def _receive(self, data: bytes) -> None:
        for heard in self._socket.receive(data):
            if isinstance(heard, Handshake):
                self._answer(heard)
            elif not self._deaf:  # a goodbye and the close frame may come in one read
                self._take(heard)
        if broken := self._socket.breakage():
            event = "handshake_refused" if broken.code is None else "connection_failed"
            self.log_violation(event, kind=broken.code, code=broken.code, reason=broken.reason)
        self._flush()
        self._between_frames = self.node_id is not None and self._socket.between_frames

    def _answer(self, handshake: Handshake) -> None:
        refusal = self._keeper.turn_away(self, handshake)
        status = self._socket.answer(refusal)
        if status == SWITCHING_PROTOCOLS:
            self._keeper.handshake_succeeded(self)
        else:
            reason = "no WebSocket handshake" if refusal is None else refusal.sentence
            self.log_violation("handshake_refused", kind=status, status=status, reason=reason)

    def _take(self, heard: bytes | OtherFrame) -> None:
        if not self._may_come(1 + (len(heard) // _FRAME_BYTES if isinstance(heard, bytes) else 0)):
            return
        if isinstance(heard, bytes):
            self._keeper.frame_arrived(self, heard)
        elif heard is OtherFrame.BINARY:
            self.fail(CloseCode.UNSUPPORTED_DATA, "messages are JSON in text frames")

    def _may_come(self, count: int) -> bool:
        """Pay for these frames, and some ahead if there is room; beyond the rate the connection ends."""
        keeper, missing = self._keeper, count - self._frames_paid
        paid = keeper.frames.paid(self._frames_paid_until, keeper.monotonic(), missing)
        if paid is None:
            self.fail(CloseCode.POLICY_VIOLATION, "too many frames in too short a time")
            return False
        self._frames_paid_until, self._frames_paid = paid
        return True

    def _flush(self) -> None:
        write_out(self._transport, self._socket.outgoing())
        self._note_held()
        if self._socket.closing and not self._closing:
            self._closing = True
            self._between_frames = False
            self._after(self._keeper.limits.close_timeout_seconds, self._transport.abort)

    def _note_held(self) -> None:
        if (held := self.held_bytes) != self._held_bytes:
            self._held_bytes = held
            self._keeper.holds(self, held)

    def _handshake_over(self) -> None:
        limits = self._keeper.limits
        if self._socket.connecting and self._waiting:
            self._after(_OUR_OWN_DELAY_SECONDS, self._handshake_over)
        elif self._socket.connecting:
            self.log_violation("handshake_timed_out")
            self._transport.abort()
        else:
            left = limits.registration_timeout_seconds - limits.handshake_timeout_seconds
            self._after(max(0.0, left), self._registration_overdue)

    def _registration_overdue(self) -> None:
        if self._waiting:
            self._after(_OUR_OWN_DELAY_SECONDS, self._registration_overdue)
        else:
            self.fail(CloseCode.POLICY_VIOLATION, "no valid node_register in time")

    def _after(self, seconds: float, then: Callable[[], None]) -> None:
        self._cancel_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, then)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


# Writes what is to go out on a socket, in pieces, the last of which may be its end.


def write_out(transport: asyncio.Transport, pieces: Iterable[bytes]) -> None:
    """Write each piece; an empty one closes our half, where the transport can do that."""
    for piece in pieces:
        if piece:
            transport.write(piece)
        elif transport.can_write_eof():
            _write_eof(transport)
        else:
            transport.close()


def _write_eof(transport: asyncio.Transport) -> None:
    try:
        transport.write_eof()
    except OSError:  # the peer has reset the connection before it could be told of its end
        transport.abort()


# How long a peer's network takes there and back, as the kernel knows it anyway: nothing is sent to learn
# it.
#
# Through a proxy it is the way to that. Where the kernel does not tell (`TCP_INFO` is Linux's) it is
# unknown.


_SMOOTHED = struct.Struct("=68xI")
"""Linux's `struct tcp_info` up to `tcpi_rtt`, in microseconds."""
_MICROSECOND = 1e-6


def round_trip_seconds(transport: asyncio.BaseTransport) -> float | None:
    """Return the smoothed round trip of a TCP connection; None where it is unknown."""
    if sys.platform != "linux":
        return None
    connection = transport.get_extra_info("socket")
    try:
        told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SMOOTHED.size)
        (microseconds,) = _SMOOTHED.unpack(told)
    except (OSError, struct.error):  # it is closed, or an older kernel tells less
        return None
    return microseconds * _MICROSECOND if microseconds else None
