"""The registry's end of one WebSocket without a socket: bytes in, handshake and frames out (RFC 6455).

Built on the Sans-I/O layer of `websockets`; this is the only module on this side that imports the library.
The common case, one whole masked frame in one read, need not enter the library's parser: the caller
recognises it by its head, which saves a tenth of a heartbeat's cost. Everything else is parsed in small
parts, so that a read full of tiny frames can be stopped in the middle. Reads no message and checks no
credential.
"""

import http
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from struct import Struct
from urllib.parse import parse_qs

from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol

from gpu_agent.server.http_headers import UNREADABLE, bearer_token, plausible_token

# A node's handshake: what it presents, and how it is refused (§2). Judges no credential.
#
# Keeps what is presented to itself: a token in a URL is as secret as one in a header.


_MOST_QUERY_FIELDS = 32


@dataclass(frozen=True, slots=True)
class Handshake:
    """The request of a peer that wants to come in."""

    target: str = field(repr=False)
    """Path and query."""
    authorizations: tuple[str, ...] = field(default=(), repr=False)
    """The values of every `Authorization` header."""
    origins: tuple[str, ...] = ()
    """The values of every `Origin` header: whose web page asks, if one does."""
    host: str = field(default="", compare=False)
    """The `Host` header."""

    @property
    def path(self) -> str:
        """The path alone, which may be shown."""
        return self.target.partition("?")[0]

    @property
    def token(self) -> str | None:
        """The token that is presented: the header's, else the query's, an older node's only means.

        None when none is; `UNREADABLE` when what is presented can be nobody's token.
        """
        token = bearer_token(self.authorizations)
        return _in_query(self.target.partition("?")[2]) if token is None else token


@dataclass(frozen=True, slots=True)
class HandshakeRefusal:
    """Why a handshake is refused."""

    status: http.HTTPStatus
    sentence: str
    retry_after_seconds: int | None = None


def _in_query(query: str) -> str | None:
    if "token=" not in query:
        return None
    try:
        found = parse_qs(query, keep_blank_values=True, max_num_fields=_MOST_QUERY_FIELDS).get("token", [])
    except ValueError:
        return UNREADABLE
    if not found:
        return None
    return plausible_token(found[0]) if len(found) == 1 else UNREADABLE


# The registry's end of one WebSocket, without a socket: bytes in, what they say out (RFC 6455).
#
# Built on the Sans-I/O layer of `websockets`, the library's one door on this side. The common case,
# one whole masked frame in one read, need not enter its parser: who reads may know it by its head, and
# that alone takes a tenth off what a beat costs. Everything else is parsed in small parts, so that a
# read full of tiny frames can be broken off in the middle.
#
# Reads no message; judges nobody.


try:
    from websockets.speedups import apply_mask
except ImportError:  # a platform for which websockets has no compiled wheel
    from websockets.utils import apply_mask

unmask = apply_mask
"""Takes what is masked, and its mask; returns the payload."""

PARSED_AT_ONCE_BYTES = 1024
"""Some hundred of the smallest frames: what is found in one part is found before anybody can object."""

LONE_HEAD = Struct("!HH4s")
"""Of a masked frame with a 16-bit length, as a beat's is: its kind, the length, the mask."""

HEAD_BYTES = LONE_HEAD.size

LONE_TEXT = 0x81FE
"""The kind of a whole masked text frame with such a length."""

_REQUEST_END = b"\r\n\r\n"
_LONGEST_CLOSE_REASON_BYTES = 123
"""A control frame's 125 bytes, less two for the code."""


class OtherFrame(Enum):
    """A frame that completes no message."""

    BINARY = auto()
    PART = auto()
    """Of a message in several frames."""
    CONTROL = auto()


@dataclass(frozen=True, slots=True)
class ProtocolViolation:
    """How the peer broke the rules of HTTP or of WebSockets; the connection is over."""

    code: int | None
    """What it is closed with; None before there was a WebSocket."""
    reason: str


Received = Handshake | bytes | OtherFrame


class WebSocket:
    """One connection's state; whoever has a socket writes what `outgoing` yields."""

    __slots__ = (
        "__weakref__",
        "_blamed",
        "_broken",
        "_handshake_bytes_left",
        "_parts",
        "_protocol",
        "_request",
        "_request_tail",
        "_unparsed",
        "between_frames",
    )

    def __init__(self, *, max_frame_bytes: int, max_handshake_bytes: int) -> None:
        self.between_frames = False
        """True when the next byte begins a frame."""
        self._handshake_bytes_left = max_handshake_bytes
        self._protocol = ServerProtocol(max_size=max_frame_bytes)
        self._request: Request | None = None
        self._request_tail = b""
        self._parts: bytearray | None = None
        self._unparsed = 0
        """Bytes of an incomplete frame that the parser holds back."""
        self._broken: ProtocolViolation | None = None
        self._blamed = False
        """True once it is told, or told elsewhere, whose fault the end of this connection is."""

    @property
    def connecting(self) -> bool:
        """True until the handshake is answered."""
        return self._protocol.state is State.CONNECTING and not self._protocol.eof_sent

    @property
    def open(self) -> bool:
        """True while either side may send."""
        return self._protocol.state is State.OPEN

    @property
    def closing(self) -> bool:
        """True when the peer is expected to close its socket, and soon."""
        return self._protocol.close_expected()

    @property
    def held_bytes(self) -> int:
        """What is held of a message, or a handshake, that is not complete."""
        return len(self._protocol.reader.buffer) + (len(self._parts) if self._parts is not None else 0)

    def receive(self, data: bytes) -> Iterator[Received]:
        """Yield what the bytes say. A handshake must be answered before more is asked for."""
        if self.connecting:
            end = self._request_end(data)
            yield from self._receive_request(data[:end])
            data = data[end:]
        for start in range(0, len(data), PARSED_AT_ONCE_BYTES):
            if self._protocol.eof_sent:  # it is over: nothing counts any more
                return
            yield from self._receive_frames(data[start : start + PARSED_AT_ONCE_BYTES])
        self.between_frames = not self._unparsed and self._parts is None and self.open

    def receive_eof(self) -> None:
        """The peer says no more."""
        self._protocol.receive_eof()

    def answer(self, refusal: HandshakeRefusal | None) -> int:
        """Answer the handshake: let the peer in, or refuse it; returns the HTTP status that it is told."""
        if refusal is None and self._request is not None:
            response = self._protocol.accept(self._request)
        elif refusal is not None:
            response = self._protocol.reject(refusal.status, f"{refusal.sentence}\n")
            if refusal.retry_after_seconds is not None:
                response.headers["Retry-After"] = str(refusal.retry_after_seconds)
            if refusal.status is http.HTTPStatus.UNAUTHORIZED:
                response.headers["WWW-Authenticate"] = "Bearer"
        else:
            raise RuntimeError("there is no handshake to answer")
        self._request = None
        self._protocol.send_response(response)
        self._blamed = response.status_code != http.HTTPStatus.SWITCHING_PROTOCOLS
        return response.status_code

    def send_text(self, text: str) -> None:
        """Send one text frame."""
        self._protocol.send_text(text.encode())

    def send_close(self, code: int, reason: str) -> None:
        """Say goodbye; the peer answers and closes."""
        self._protocol.send_close(code, _fitting(reason))

    def fail(self, code: int, reason: str) -> None:
        """Close on a peer that broke a rule, deaf to what it still says."""
        self._blamed = True
        self._protocol.fail(code, _fitting(reason))

    def outgoing(self) -> list[bytes]:
        """Return what is to be written; an empty piece means that nothing will follow."""
        return self._protocol.data_to_send()

    def breakage(self) -> ProtocolViolation | None:
        """Say, once, how the peer broke the rules; a connection that merely ended broke none."""
        protocol = self._protocol
        broken, self._broken = self._broken, None
        if broken is not None or self._blamed:
            return broken
        if protocol.state is State.CONNECTING and protocol.handshake_exc is not None:
            self._blamed = True
            return ProtocolViolation(None, str(protocol.handshake_exc))
        if protocol.parser_exc is None or isinstance(protocol.parser_exc, EOFError):
            return None
        self._blamed = True
        code = protocol.close_sent.code if protocol.close_sent is not None else None
        return ProtocolViolation(code, str(protocol.parser_exc))

    def release(self) -> None:
        """Let the memory go: the parser is a generator of the object that holds it, a cycle."""
        self._protocol.parser.close()

    def _request_end(self, data: bytes) -> int:
        """Return where the request ends in this read; what stands behind it is not yet asked for."""
        joined = self._request_tail + data
        at = joined.find(_REQUEST_END)
        if at < 0:
            self._request_tail = joined[-len(_REQUEST_END) + 1 :]
            return len(data)
        return at + len(_REQUEST_END) - len(self._request_tail)

    def _receive_request(self, data: bytes) -> Iterator[Received]:
        self._handshake_bytes_left -= len(data)
        if self._handshake_bytes_left < 0:
            too_large = http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            self.answer(HandshakeRefusal(too_large, "This handshake is too long."))
            self._broken = ProtocolViolation(None, "a handshake beyond what is allowed")
            return
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Request):
                self._request = event
                headers = event.headers
                yield Handshake(
                    event.path,
                    tuple(headers.get_all("Authorization")),
                    origins=tuple(headers.get_all("Origin")),
                    host=next(iter(headers.get_all("Host")), ""),
                )

    def _receive_frames(self, data: bytes) -> Iterator[Received]:
        self._protocol.receive_data(data)
        self._unparsed += len(data)
        for event in self._protocol.events_received():
            if isinstance(event, Frame):
                self._unparsed -= _bytes_on_wire(event)
                yield self._heard(event)

    def _heard(self, frame: Frame) -> Received:
        match frame.opcode:
            case Opcode.TEXT if frame.fin:
                return bytes(frame.data)
            case Opcode.TEXT:
                self._parts = bytearray(frame.data)
                return OtherFrame.PART
            case Opcode.CONT if self._parts is not None:
                self._parts += frame.data
                if not frame.fin:
                    return OtherFrame.PART
                whole, self._parts = bytes(self._parts), None
                return whole
            case Opcode.BINARY | Opcode.CONT:
                return OtherFrame.BINARY
            case _:  # the protocol has answered already
                return OtherFrame.CONTROL


def _fitting(reason: str) -> str:
    """Cut a close reason to what a control frame can hold, between two characters."""
    return reason.encode()[:_LONGEST_CLOSE_REASON_BYTES].decode(errors="ignore")


def _bytes_on_wire(frame: Frame) -> int:
    """Return the length of a masked frame whose length is written as short as can be."""
    length = len(frame.data)
    return 6 + length + (0 if length < 126 else 2 if length < 65536 else 8)  # noqa: PLR2004 - RFC 6455 §5.2
