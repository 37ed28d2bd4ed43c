"""The registry's end of one WebSocket without a socket: bytes in, handshake and frames out (RFC 6455).

Built on the Sans-I/O layer of `websockets`; this is the only module on this side that imports the library.
The common cases need not enter the library's parser. One whole masked frame in one read is recognised by its
head; the caller does so for heartbeats, which saves a tenth of their cost. A handshake as agents send it is
read here, which takes a fifth of the library's time; one that is refused, comes in parts or differs in
anything is the library's. All else is parsed in small parts, so that a read full of tiny frames can be
stopped in the middle. Reads no message and checks no credential.
"""

import http
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from enum import Enum, auto
from functools import lru_cache
from struct import Struct
from urllib.parse import parse_qs

from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.utils import accept_key

from gpu_agent.server.http_headers import UNREADABLE, bearer_token, plausible_token

try:
    from websockets.speedups import apply_mask
except ImportError:  # a platform for which websockets has no compiled wheel
    from websockets.utils import apply_mask

unmask = apply_mask
"""Takes a masked payload and its mask; returns the payload."""

PARSED_AT_ONCE_BYTES = 1024
"""About a hundred of the smallest frames: after each part the caller may end the connection."""

FRAME_HEAD = Struct("!HH4s")
"""The head of a masked frame with a 16-bit length, as a heartbeat's is: its kind, the length, the mask."""

FRAME_HEAD_BYTES = FRAME_HEAD.size

WHOLE_TEXT_FRAME = 0x81FE
"""The kind of a whole masked text frame with such a length."""

_UNMASKED_HEAD = Struct("!HH")
_UNMASKED_TEXT = 0x817E

_LONG_FRAME = 126
_LONGER_FRAME = 65536
"""From the first length on a frame has a 16-bit length, from the second on a longer one (RFC 6455 §5.2)."""

_REQUEST_END = b"\r\n\r\n"
_PLAIN_REQUEST = re.compile(
    rb"GET ([!-~]+) HTTP/1\.1\r\n((?:[-0-9A-Za-z!#$%&'*+.^_`|~]{1,64}:[\t -~]{0,1024}\r\n){1,32})\r\n"
)
_KEY = re.compile(r"[0-9A-Za-z+/]{22}==")
_UNCOMMON = frozenset(
    {"sec-websocket-extensions", "sec-websocket-protocol", "transfer-encoding", "content-length"}
)
"""Headers that the library must look at."""

_MAX_CLOSE_REASON_BYTES = 123
"""A control frame's 125 bytes, less two for the code."""

_MAX_QUERY_FIELDS = 32


@dataclass(frozen=True, slots=True)
class Handshake:
    """The request that asks for a WebSocket. A token in its URL or a header is never shown."""

    target: str = field(repr=False)
    """Path and query."""
    authorizations: tuple[str, ...] = field(default=(), repr=False)
    """The values of all `Authorization` headers."""
    origins: tuple[str, ...] = ()
    """The values of all `Origin` headers: the origin of the web page that asks, if one does."""
    host: str = field(default="", compare=False)
    """The `Host` header."""

    @property
    def path(self) -> str:
        """The path alone, which may be shown."""
        return self.target.partition("?")[0]

    @property
    def token(self) -> str | None:
        """The token in the header, else the one in the query, an older node's only means.

        None where there is none; `UNREADABLE` for what cannot be a token.
        """
        token = bearer_token(self.authorizations)
        return _token_in_query(self.target.partition("?")[2]) if token is None else token


@dataclass(frozen=True, slots=True)
class HandshakeRefusal:
    """How a handshake is refused."""

    status: http.HTTPStatus
    sentence: str
    retry_after_seconds: int | None = None


class OtherFrame(Enum):
    """A frame that completes no text message."""

    BINARY = auto()
    PART = auto()
    """A part of a message in several frames."""
    CONTROL = auto()


@dataclass(frozen=True, slots=True)
class ProtocolViolation:
    """How the peer broke the rules of HTTP or of WebSockets; the connection is over."""

    code: int | None
    """The close code; None before there was a WebSocket."""
    reason: str


Received = Handshake | bytes | OtherFrame


@dataclass(frozen=True, slots=True)
class _PlainRequest:
    """A handshake that is whole and as agents send it: it has nothing that the library would refuse."""

    data: bytes = field(repr=False)
    key: str


class WebSocket:
    """The state of one connection; the caller writes what `outgoing` returns to the socket."""

    __slots__ = (
        "__weakref__",
        "_handshake_bytes_left",
        "_library",
        "_max_frame_bytes",
        "_parts",
        "_request",
        "_request_tail",
        "_unparsed",
        "_violation",
        "_violation_reported",
        "between_frames",
    )

    def __init__(self, *, max_frame_bytes: int, max_handshake_bytes: int) -> None:
        self.between_frames = False
        """True when the next byte begins a frame."""
        self._handshake_bytes_left = max_handshake_bytes
        self._max_frame_bytes = max_frame_bytes
        self._library: ServerProtocol | None = None
        """None until the first bytes show in which state it begins."""
        self._request: Request | _PlainRequest | None = None
        self._request_tail = b""
        self._parts: bytearray | None = None
        self._unparsed = 0
        """Bytes of an incomplete frame that the parser holds back."""
        self._violation: ProtocolViolation | None = None
        self._violation_reported = False
        """True once the end of this connection has a reason that is reported, here or by the caller."""

    @property
    def connecting(self) -> bool:
        """True until the handshake is answered."""
        library = self._library
        return library is None or (library.state is State.CONNECTING and not library.eof_sent)

    @property
    def open(self) -> bool:
        """True while either side may send."""
        return self._library is not None and self._library.state is State.OPEN

    @property
    def closing(self) -> bool:
        """True when the peer is expected to close its socket, and soon."""
        return self._library is not None and self._library.close_expected()

    @property
    def held_bytes(self) -> int:
        """How many bytes are held of a message, or a handshake, that is not complete."""
        parts = 0 if self._parts is None else len(self._parts)
        return parts if self._library is None else parts + len(self._library.reader.buffer)

    def receive(self, data: bytes) -> Iterator[Received]:
        """Yield what the bytes contain. A handshake must be answered before the iteration goes on."""
        if self.between_frames and (payload := self._whole_frame(data)) is not None:
            yield payload
            self.between_frames = self.open
            return
        if self.connecting:
            end = self._request_end(data)
            yield from self._receive_request(data[:end])
            data = data[end:]
        for start in range(0, len(data), PARSED_AT_ONCE_BYTES):
            if self._protocol.eof_sent:  # the connection is over: the rest is ignored
                return
            yield from self._receive_frames(data[start : start + PARSED_AT_ONCE_BYTES])
        self.between_frames = not self._unparsed and self._parts is None and self.open

    def receive_eof(self) -> None:
        """The peer sends no more."""
        self._protocol.receive_eof()

    def answer(self, refusal: HandshakeRefusal | None) -> int:
        """Answer the handshake: accept or refuse it; returns the HTTP status of the answer."""
        request = self._request
        if isinstance(request, _PlainRequest):
            if refusal is None:
                self._accept(request.key)
                return http.HTTPStatus.SWITCHING_PROTOCOLS
            self._protocol.receive_data(request.data)
            self._protocol.events_received()
        if refusal is None and isinstance(request, Request):
            response = self._protocol.accept(request)
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
        self._violation_reported = response.status_code != http.HTTPStatus.SWITCHING_PROTOCOLS
        return response.status_code

    def send_text(self, text: str) -> None:
        """Send one text frame."""
        payload = text.encode()
        if _LONG_FRAME <= len(payload) < _LONGER_FRAME and self.open:
            self._protocol.writes.append(_UNMASKED_HEAD.pack(_UNMASKED_TEXT, len(payload)) + payload)
        else:
            self._protocol.send_text(payload)

    def send_close(self, code: int, reason: str) -> None:
        """Send a close frame; the peer answers and closes."""
        self._protocol.send_close(code, _fit_reason(reason))

    def fail(self, code: int, reason: str) -> None:
        """Send a close frame to a peer that broke a rule, and ignore what it still sends."""
        self._violation_reported = True
        self._protocol.fail(code, _fit_reason(reason))

    def outgoing(self) -> list[bytes]:
        """Return what to write; an empty piece means that nothing follows."""
        return [] if self._library is None else self._library.data_to_send()

    def violation(self) -> ProtocolViolation | None:
        """Return once how the peer broke the rules; a connection that merely ended broke none."""
        protocol = self._library
        violation, self._violation = self._violation, None
        if violation is not None or self._violation_reported or protocol is None:
            return violation
        if protocol.state is State.CONNECTING and protocol.handshake_exc is not None:
            self._violation_reported = True
            return ProtocolViolation(None, str(protocol.handshake_exc))
        if protocol.parser_exc is None or isinstance(protocol.parser_exc, EOFError):
            return None
        self._violation_reported = True
        code = protocol.close_sent.code if protocol.close_sent is not None else None
        return ProtocolViolation(code, str(protocol.parser_exc))

    def release(self) -> None:
        """Free the memory: the parser is a generator of the object that holds it, a cycle."""
        if self._library is not None:
            self._library.parser.close()

    @property
    def _protocol(self) -> ServerProtocol:
        if self._library is None:
            self._library = ServerProtocol(max_size=self._max_frame_bytes)
        return self._library

    def _whole_frame(self, data: bytes) -> bytes | None:
        """Return the payload of data that is one whole text frame; None for all else."""
        if len(data) < FRAME_HEAD_BYTES:
            return None
        kind, length, mask = FRAME_HEAD.unpack_from(data)
        if kind != WHOLE_TEXT_FRAME or not _LONG_FRAME <= length == len(data) - FRAME_HEAD_BYTES:
            return None
        return unmask(data[FRAME_HEAD_BYTES:], mask) if length <= self._max_frame_bytes else None

    def _accept(self, key: str) -> None:
        self._request = None
        self._library = ServerProtocol(state=State.OPEN, max_size=self._max_frame_bytes)
        head = f"{_accepted_at(int(time.time()))}Sec-WebSocket-Accept: {accept_key(key)}\r\n\r\n"
        self._library.writes.append(head.encode())

    def _request_end(self, data: bytes) -> int:
        """Return where the request ends in this read; what follows it is taken later."""
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
            self._violation = ProtocolViolation(None, "the handshake is too long")
            return
        if self._library is None and (plain := _plain_request(data)) is not None:
            self._request, handshake = plain
            yield handshake
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
                self._unparsed -= _wire_bytes(event)
                yield self._received(event)

    def _received(self, frame: Frame) -> Received:
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


def _plain_request(data: bytes) -> tuple[_PlainRequest, Handshake] | None:
    """Read a request that is whole and as agents send it; None for all else."""
    found = _PLAIN_REQUEST.fullmatch(data)
    if found is None:
        return None
    lines = found[2].decode().split("\r\n")[:-1]
    headers = {name.lower(): value.strip(" \t") for name, _, value in (line.partition(":") for line in lines)}
    key = headers.get("sec-websocket-key", "")
    if (
        len(headers) != len(lines)  # one came twice
        or headers.get("upgrade", "").lower() != "websocket"
        or headers.get("connection", "").lower() != "upgrade"
        or headers.get("sec-websocket-version") != "13"
        or _KEY.fullmatch(key) is None
        or not _UNCOMMON.isdisjoint(headers)
    ):
        return None
    authorizations, origins = (
        (headers[name],) if name in headers else () for name in ("authorization", "origin")
    )
    handshake = Handshake(found[1].decode(), authorizations, origins=origins, host=headers.get("host", ""))
    return _PlainRequest(data, key), handshake


@lru_cache(maxsize=2)
def _accepted_at(second: int) -> str:
    """Write the answer to a handshake as the library does, but for its last line."""
    date = formatdate(second, usegmt=True)
    return (
        f"HTTP/1.1 101 Switching Protocols\r\nDate: {date}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    )


def _fit_reason(reason: str) -> str:
    """Cut a close reason to what a control frame holds, between two characters."""
    return reason.encode()[:_MAX_CLOSE_REASON_BYTES].decode(errors="ignore")


def _wire_bytes(frame: Frame) -> int:
    """Return the length of a masked frame whose length is written as short as can be."""
    length = len(frame.data)
    return 6 + length + (0 if length < 126 else 2 if length < 65536 else 8)  # noqa: PLR2004 - RFC 6455 §5.2


def _token_in_query(query: str) -> str | None:
    if "token=" not in query:
        return None
    try:
        found = parse_qs(query, keep_blank_values=True, max_num_fields=_MAX_QUERY_FIELDS).get("token", [])
    except ValueError:
        return UNREADABLE
    if not found:
        return None
    return plausible_token(found[0]) if len(found) == 1 else UNREADABLE
