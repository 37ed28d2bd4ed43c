"""One node's socket: whole text frames arrive and leave on it, within the limits of §2.

Built on the Sans-I/O layer of `websockets`, because a fleet's beats must not each pay for a
queue, a future and a task switch: a frame is handed on inside the callback that read it, so a
slow registry leaves bytes in the kernel and thereby slows its peers. There is no task per
connection, and no receive queue at all.

The common case, one whole masked frame in one read, does not even enter the Sans-I/O parser:
that alone takes a tenth off what a beat costs. `benchmarks/beats.py` holds the figures.

Reads no message and knows no node: a frame's meaning is found elsewhere.
"""

import asyncio
import http
from dataclasses import dataclass
from math import inf
from typing import Protocol

from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol

from gpu_agent.registry.credentials import Credential
from gpu_agent.runtime.logs import EventLog
from gpu_agent.server.address import Address
from gpu_agent.server.handshake import Handshake, TurnedAway
from gpu_agent.wire.codec import MAX_FRAME_BYTES

try:
    from websockets.speedups import apply_mask
except ImportError:  # a platform for which websockets has no compiled wheel
    from websockets.utils import apply_mask

_WHOLE_TEXT, _MASKED_16_BIT_LENGTH = 0x81, 0xFE
_HEAD_BYTES = 8
"""Of a masked frame with a 16-bit length: 2 and 2 bytes, then the mask."""

_LONGEST_CLOSE_REASON_BYTES = 123
"""A control frame's 125 bytes, less two for the code."""

_LOG = EventLog("server.gateway")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a peer may ask of the gateway (§2)."""

    max_connections: int = 16384
    registration_timeout_seconds: float = 10.0
    """A connection without a valid registration by then is closed with 1008."""
    close_timeout_seconds: float = 2.0
    max_frame_bytes: int = MAX_FRAME_BYTES
    max_unsent_bytes: int = 64 * 1024
    """A peer that leaves more than this unread is cut off."""


class Keeper(Protocol):
    """What a connection needs of whoever keeps it."""

    @property
    def limits(self) -> Limits:
        """What its peer may ask."""

    def lend_buffer(self) -> memoryview:
        """Lend memory to read into, used up before the next connection reads."""

    def turn_away(self, connection: "NodeConnection", handshake: Handshake) -> TurnedAway | None:
        """Say why a peer may not come in; None when it may."""

    def frame_arrived(self, connection: "NodeConnection", payload: bytes) -> None:
        """Take in a text frame."""

    def forget(self, connection: "NodeConnection") -> None:
        """A connection is gone."""


class NodeConnection(asyncio.BufferedProtocol):
    """One node's socket, known by a number that is never used again."""

    def __init__(self, keeper: Keeper, number: int) -> None:
        self.number = number
        self.node_id: str | None = None
        """The node that registered here last."""
        self.credential: Credential | None = None
        """What its handshake presented; None with auth off."""
        self.malformed_in_a_row = 0
        self.address = ""
        self._keeper = keeper
        self._buffer = keeper.lend_buffer()
        self._protocol = ServerProtocol(max_size=keeper.limits.max_frame_bytes)
        self._parts: bytearray | None = None
        self._unparsed: float = 0
        """Bytes of an incomplete frame that the parser holds back."""
        self._between_frames = False
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False
        self._deaf = False
        """Set when we end the connection: what the peer says after that counts for nothing."""
        self._transport: asyncio.Transport

    def identify(self, node_id: str) -> None:
        """A valid registration came: the connection may stay."""
        if self.node_id is None:
            self._cancel_timer()
        self.node_id = node_id

    def send(self, text: str) -> None:
        """Send one text frame; on a connection that is closing it goes nowhere."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_text(text.encode())
            self._flush()

    def close(self, code: int, reason: str) -> None:
        """Say goodbye with a code; the peer has the close timeout to answer."""
        if self._protocol.state is State.CONNECTING:
            self._transport.abort()
        elif self._protocol.state is State.OPEN:
            self._deaf = True
            self._protocol.send_close(code, _fitting(reason))
            self._flush()

    def fail(self, code: int, reason: str) -> None:
        """End a connection whose peer broke a rule: close frame, then deaf."""
        if self._protocol.state is State.CONNECTING:
            self._transport.abort()
        elif self._protocol.state is State.OPEN:
            _LOG.info(
                "connection_failed", node_id=self.node_id, address=self.address, code=code, reason=reason
            )
            self._deaf = True
            self._protocol.fail(code, _fitting(reason))
            self._flush()

    def abort(self) -> None:
        """Drop the connection without a word."""
        self._transport.abort()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note the peer, and give it a while to register."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - TCP transports are both
        self._transport = transport
        peer = transport.get_extra_info("peername")
        self.address = str(Address(*peer[:2])) if isinstance(peer, tuple) else ""
        limits = self._keeper.limits
        transport.set_write_buffer_limits(high=limits.max_unsent_bytes)
        self._timer = asyncio.get_running_loop().call_later(
            limits.registration_timeout_seconds, self._registration_overdue
        )

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Lend where the next bytes are read into."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was read, and hand on each message that it completes."""
        buffer = self._buffer
        if (
            self._between_frames
            and buffer[0] == _WHOLE_TEXT
            and buffer[1] == _MASKED_16_BIT_LENGTH
            and nbytes == _HEAD_BYTES + (buffer[2] << 8 | buffer[3]) <= self._keeper.limits.max_frame_bytes
        ):
            mask = bytes(buffer[4:_HEAD_BYTES])
            self._keeper.frame_arrived(self, apply_mask(buffer[_HEAD_BYTES:nbytes], mask))
        else:
            self._feed(bytes(buffer[:nbytes]))

    def eof_received(self) -> None:
        """The peer says no more; asyncio closes the socket."""
        self._protocol.receive_eof()
        self._flush()

    def pause_writing(self) -> None:
        """A peer that does not read what it is told is cut off."""
        _LOG.info("slow_consumer_dropped", node_id=self.node_id, address=self.address)
        self._transport.abort()

    def resume_writing(self) -> None:
        """Nothing waits for room: a full buffer ended the connection."""

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Tell the gateway, whatever the cause was."""
        self._cancel_timer()
        self._protocol.parser.close()  # a generator of the object that holds it: the one cycle there is
        self._keeper.forget(self)

    # What follows from it.

    def _feed(self, data: bytes) -> None:
        """Let the parser find the frames; it may hold back the beginning of one."""
        protocol = self._protocol
        protocol.receive_data(data)
        self._unparsed += len(data)
        for event in protocol.events_received():
            if isinstance(event, Frame):
                self._unparsed -= _bytes_on_wire(event)
                self._frame(event)
            elif isinstance(event, Request):
                protocol.send_response(self._answer(event))
                _head, end, rest = data.partition(b"\r\n\r\n")
                self._unparsed = len(rest) if end else inf  # an odd peer: never sure where a frame begins
        self._flush()
        self._between_frames = not self._unparsed and self._parts is None and protocol.state is State.OPEN

    def _answer(self, request: Request) -> Response:
        authorizations = tuple(request.headers.get_all("Authorization"))
        refusal = self._keeper.turn_away(self, Handshake(request.path, authorizations))
        if refusal is None:
            return self._protocol.accept(request)
        response = self._protocol.reject(refusal.status, f"{refusal.sentence}\n")
        if refusal.retry_after_seconds is not None:
            response.headers["Retry-After"] = str(refusal.retry_after_seconds)
        if refusal.status is http.HTTPStatus.UNAUTHORIZED:
            response.headers["WWW-Authenticate"] = "Bearer"
        return response

    def _frame(self, frame: Frame) -> None:
        if self._deaf:  # not the protocol's state: a goodbye and the close frame may come in one read
            return
        match frame.opcode:
            case Opcode.TEXT if frame.fin:
                self._keeper.frame_arrived(self, bytes(frame.data))
            case Opcode.TEXT:
                self._parts = bytearray(frame.data)
            case Opcode.CONT if self._parts is not None:
                self._parts += frame.data
                if frame.fin:
                    whole, self._parts = bytes(self._parts), None
                    self._keeper.frame_arrived(self, whole)
            case Opcode.BINARY | Opcode.CONT:
                self.fail(CloseCode.UNSUPPORTED_DATA, "messages are JSON in text frames")
            case Opcode.CLOSE | Opcode.PING | Opcode.PONG:
                pass  # the protocol has answered already

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._transport.write(data)
            elif self._transport.can_write_eof():
                self._transport.write_eof()
            else:
                self._transport.close()
        if self._protocol.close_expected() and not self._closing:
            self._closing = True
            self._between_frames = False
            self._cancel_timer()
            self._timer = asyncio.get_running_loop().call_later(
                self._keeper.limits.close_timeout_seconds, self._transport.abort
            )

    def _registration_overdue(self) -> None:
        self.fail(CloseCode.POLICY_VIOLATION, "no valid node_register in time")

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _fitting(reason: str) -> str:
    """Cut a close reason to what a control frame can hold, between two characters."""
    return reason.encode()[:_LONGEST_CLOSE_REASON_BYTES].decode(errors="ignore")


def _bytes_on_wire(frame: Frame) -> int:
    """Return the length of a masked frame whose length is written as short as can be."""
    length = len(frame.data)
    return 6 + length + (0 if length < 126 else 2 if length < 65536 else 8)  # noqa: PLR2004 - RFC 6455 §5.2
