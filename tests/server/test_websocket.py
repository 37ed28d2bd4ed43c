"""The WebSocket without a socket: what bytes mean, however odd their sender."""

import http

import pytest
from websockets.asyncio.client import connect
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from gpu_agent.server.service import RegistryService
from gpu_agent.server.websocket import (
    FRAME_HEAD,
    WHOLE_TEXT_FRAME,
    Handshake,
    HandshakeRefusal,
    OtherFrame,
    WebSocket,
    unmask,
)
from tests.server.harness import url
from tests.server.raw_peer import masked

REQUEST = (
    b"GET /ws/node HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def websocket(*, max_frame_bytes: int = 1024, max_handshake_bytes: int = 1024) -> WebSocket:
    return WebSocket(max_frame_bytes=max_frame_bytes, max_handshake_bytes=max_handshake_bytes)


def opened(*, max_frame_bytes: int = 1024) -> WebSocket:
    socket = websocket(max_frame_bytes=max_frame_bytes)
    assert heard(socket, REQUEST) == [Handshake("/ws/node")]
    assert socket.open
    said(socket)
    return socket


def heard(socket: WebSocket, data: bytes) -> list[Handshake | bytes | OtherFrame]:
    """What the bytes contain; a handshake is answered at once, as it must be."""
    events = []
    for event in socket.receive(data):
        events.append(event)
        if isinstance(event, Handshake):
            assert socket.answer(None) == 101
    return events


def said(socket: WebSocket) -> bytes:
    return b"".join(socket.outgoing())


def test_frames_behind_the_request_are_received_after_its_answer() -> None:
    socket = websocket()
    assert heard(socket, REQUEST + masked(b"{}") + masked(b"", opcode=9)) == [
        Handshake("/ws/node"),
        b"{}",
        OtherFrame.CONTROL,
    ]
    answer = said(socket)
    assert answer.startswith(b"HTTP/1.1 101")
    assert answer.endswith(b"\x8a\x00")


def test_a_request_is_read_byte_by_byte_as_well() -> None:
    socket = websocket()
    events = [event for byte in REQUEST + masked(b"{}") for event in heard(socket, bytes([byte]))]
    assert events == [Handshake("/ws/node"), b"{}"]
    assert socket.between_frames


def test_a_handshake_that_never_ends_is_refused_as_too_long() -> None:
    socket = websocket(max_handshake_bytes=200)
    heard(socket, b"GET /ws/node HTTP/1.1\r\n")
    for _ in range(4):
        heard(socket, b"X-Padding: " + b"x" * 50 + b"\r\n")
    assert said(socket).startswith(b"HTTP/1.1 431")
    broken = socket.violation()
    assert broken is not None
    assert broken.code is None
    assert socket.violation() is None
    assert not socket.connecting
    assert socket.closing


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\r\n\r\n",
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /ws/node HTTP/2.0\r\n\r\n",
        b"GET /ws/node HTTP/1.1\nHost: x\n\r\n\r\n",
        b"GET /\xc3\xa4 HTTP/1.1\r\n\r\n",
        b"GET /ws/node HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /ws/node HTTP/1.1\r\nA b: c\r\n\r\n",
        b"GET /ws/node HTTP/1.1\r\nA: b\x00c\r\n\r\n",
        b"GET /ws/node HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /ws/node HTTP/1.1\r\nContent-Length: 5\r\n\r\n",
        b"GET /ws/node HTTP/1.1\r\n" + b"A: b\r\n" * 129 + b"\r\n",
    ],
)
def test_input_that_is_no_request_ends_the_connection_and_is_reported_once(request_bytes: bytes) -> None:
    socket = websocket()
    assert heard(socket, request_bytes) == []
    assert socket.violation() is not None
    assert socket.violation() is None
    assert socket.closing
    assert heard(socket, REQUEST) == []


@pytest.mark.parametrize(
    "request_bytes",
    [
        REQUEST.replace(b"Upgrade: websocket\r\n", b""),
        REQUEST.replace(b"Upgrade: websocket", b"Upgrade: websocket, h2c"),
        REQUEST.replace(b"Connection: Upgrade\r\n", b""),
        REQUEST.replace(b"Version: 13", b"Version: 8"),
        REQUEST.replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"short"),
        REQUEST.replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"not base64 at all!"),
        REQUEST.replace(b"Sec-WebSocket-Version: 13\r\n", b"Sec-WebSocket-Version: 13\r\n" * 2),
        REQUEST.replace(b"Host: x\r\n", b"Host: x\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"),
        REQUEST.replace(b"GET", b"POST"),
        REQUEST.replace(b"HTTP/1.1", b"HTTP/1.0"),
    ],
)
def test_a_request_for_something_else_is_answered_with_its_error(request_bytes: bytes) -> None:
    socket = websocket()
    for event in socket.receive(request_bytes):
        assert isinstance(event, Handshake)
        assert socket.answer(None) >= 400
    assert said(socket).startswith((b"HTTP/1.1 4", b"HTTP/1.1 505"))
    assert socket.violation() is None  # the caller that answers reports it


def test_a_refusal_states_the_next_step() -> None:
    socket = websocket()
    for _ in socket.receive(REQUEST):
        refusal = HandshakeRefusal(http.HTTPStatus.UNAUTHORIZED, "Who are you?", retry_after_seconds=7)
        assert socket.answer(refusal) == 401
    answer = said(socket)
    assert b"WWW-Authenticate: Bearer" in answer
    assert b"Retry-After: 7" in answer
    assert answer.endswith(b"Who are you?\n")
    assert not socket.open


def test_an_answer_without_a_handshake_is_a_bug() -> None:
    with pytest.raises(RuntimeError, match="no handshake"):
        websocket().answer(None)


def test_offered_compression_is_declined() -> None:
    socket = websocket()
    offer = b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
    heard(socket, REQUEST.replace(b"Host: x\r\n", b"Host: x\r\n" + offer * 20))
    assert b"permessage-deflate" not in said(socket)


def test_fragments_are_joined_and_each_part_is_reported() -> None:
    socket = opened()
    assert heard(socket, masked(b"ab", fin=False) + masked(b"", opcode=0, fin=False)) == [
        OtherFrame.PART,
        OtherFrame.PART,
    ]
    assert socket.held_bytes == 2
    assert heard(socket, masked(b"", opcode=9) + masked(b"cd", opcode=0)) == [OtherFrame.CONTROL, b"abcd"]
    assert socket.held_bytes == 0


@pytest.mark.parametrize(
    ("odd", "code"),
    [
        (b"\xc1\x80" + b"\0" * 4, 1002),  # RSV1: compression that was not agreed on
        (b"\xa1\x80" + b"\0" * 4, 1002),
        (b"\x91\x80" + b"\0" * 4, 1002),
        (b"\x81\x02{}", 1002),  # not masked
        (b"\x83\x80" + b"\0" * 4, 1002),  # an opcode that is reserved
        (b"\x8b\x80" + b"\0" * 4, 1002),
        (b"\x09\x80" + b"\0" * 4, 1002),  # a ping in parts
        (b"\x89\xfe\x00\x7e" + b"\0" * 130, 1002),  # a ping of 126 bytes
        (b"\x80\x80" + b"\0" * 4, 1002),  # continues nothing
        (b"\x01\x80" + b"\0" * 4 + b"\x81\x80" + b"\0" * 4, 1002),  # begins another message in the middle
        (b"\x88\x81" + b"\0" * 5, 1002),  # a close frame of one byte
        (b"\x88\x82" + b"\0" * 4 + b"\x03\xed", 1002),  # 1005 may not be sent
        (b"\x88\x84" + b"\0" * 4 + b"\x03\xe8\xff\xff", 1007),  # a reason that is no UTF-8
        (b"\x81\xfe\x04\x01" + b"\0" * 4, 1009),
        (b"\x81\xff" + b"\xff" * 8 + b"\0" * 4, 1009),
    ],
    ids=str,
)
def test_a_broken_rule_closes_with_its_code_and_the_rest_is_ignored(odd: bytes, code: int) -> None:
    socket = opened()
    assert masked(b"{}") not in heard(socket, odd)
    broken = socket.violation()
    assert broken is not None
    assert broken.code == code
    assert said(socket)[2:4] == code.to_bytes(2, "big")
    assert heard(socket, masked(b"{}")) == []


def test_a_text_that_is_no_utf8_is_left_to_the_message_handler() -> None:
    assert heard(opened(), masked(b"\xff\xfe")) == [b"\xff\xfe"]


def test_a_peer_that_only_disconnects_broke_no_rule() -> None:
    for socket in (websocket(), opened()):
        socket.receive_eof()
        assert socket.violation() is None


def test_a_close_frame_is_answered_and_ends_the_connection() -> None:
    socket = opened()
    assert heard(socket, masked(b"\x03\xe8", opcode=8) + masked(b"{}")) == [OtherFrame.CONTROL]
    assert said(socket) == b"\x88\x02\x03\xe8"
    assert not socket.open
    assert socket.violation() is None


def test_a_failure_is_reported_once_and_the_rest_of_the_read_is_ignored() -> None:
    socket = opened(max_frame_bytes=100_000)
    flood = masked(b"x" * 600) * 20
    texts = 0
    for event in socket.receive(flood):
        texts += isinstance(event, bytes)
        if texts == 1:
            socket.fail(1008, "ä" * 200)
    assert texts < 5  # those of the part that was parsed already
    assert len(said(socket)) <= 127
    assert socket.violation() is None


def test_a_heartbeat_is_recognised_by_its_head_and_read_without_the_parser() -> None:
    frame = masked(b"x" * 200)
    kind, length, mask = FRAME_HEAD.unpack_from(frame)
    assert (kind, length) == (WHOLE_TEXT_FRAME, 200)
    assert unmask(frame[FRAME_HEAD.size :], mask) == b"x" * 200


@pytest.mark.parametrize(
    "frame",
    [masked(b"x" * 10), masked(b"x" * 200, opcode=9), masked(b"x" * 200, fin=False), masked(b"x" * 70_000)],
    ids=["short", "no text", "a part", "long"],
)
def test_no_other_frame_has_the_head_of_a_heartbeat(frame: bytes) -> None:
    assert FRAME_HEAD.unpack_from(frame)[0] != WHOLE_TEXT_FRAME


async def test_compression_is_not_negotiated(service: RegistryService) -> None:
    async with connect(url(service), proxy=None) as socket:
        assert socket.response is not None
        assert "Sec-WebSocket-Extensions" not in socket.response.headers


def answered(pieces: list[bytes], refusal: HandshakeRefusal | None) -> tuple[object, ...]:
    """What comes of a request in these pieces: what was read, the answer without its date, and the state."""
    socket, events, statuses = websocket(max_handshake_bytes=4096), list[object](), list[int]()
    for piece in pieces:
        for event in socket.receive(piece):
            events.append(event)
            if isinstance(event, Handshake):
                events += [event.host, event.authorizations, event.token]
                statuses.append(socket.answer(refusal))
    lines = [line for line in said(socket).split(b"\r\n") if not line.startswith(b"Date: ")]
    return events, statuses, lines, socket.violation(), socket.open, socket.closing, socket.connecting


@pytest.mark.parametrize(
    "changed",
    [
        (b"", b""),
        (b"Host: x", b"Host: x\r\nAuthorization: Bearer gpuj_1\r\nOrigin: http://x\r\nX-Trace:1"),
        (b"Host: x", b"Authorization: Bearer a\r\nAuthorization: Bearer b"),
        (b"Host: x", b"Host:   x  \r\nUser-Agent: \xc3\xa9"),
        (b"Host: x", b"Sec-WebSocket-Extensions: permessage-deflate\r\nSec-WebSocket-Protocol: chat"),
        (b"Host: x", b"Content-Length: 3"),
        (b"Host: x", b"Transfer-Encoding: chunked"),
        (b"Host: x", b"Host : x"),
        (b"Host: x", b"Host: x\r\n folded"),
        (b"Host: x", b": x"),
        (b"Host: x\r\n", b""),
        (b"GET /ws/node HTTP", b"GET /ws/node?token=gpuj_2 HTTP"),
        (b"GET", b"POST"),
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"/ws/node", b"/ws/\xc3\xa9"),
        (b"\r\nHost", b"\nHost"),
        (b"Upgrade: websocket", b"upgrade: WebSocket"),
        (b"Upgrade: websocket", b"Upgrade: h2c"),
        (b"Connection: Upgrade", b"Connection: keep-alive, Upgrade"),
        (b"Connection: Upgrade", b"Connection: close"),
        (b"Version: 13", b"Version: 8"),
        (b"Sec-WebSocket-Version: 13\r\n", b""),
        (b"dGhlIHNhbXBsZSBub25jZQ==", b"dGhlIHNhbXBsZSBub25jZR=="),
        (b"dGhlIHNhbXBsZSBub25jZQ==", b"dGhlIHNhbXBsZSBub25jZ==="),
        (b"dGhlIHNhbXBsZSBub25jZQ==", b"c2hvcnQ="),
        (b"dGhlIHNhbXBsZSBub25jZQ==", b""),
    ],
)
@pytest.mark.parametrize("status", [None, http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.SERVICE_UNAVAILABLE])
def test_a_handshake_that_comes_whole_is_answered_as_one_that_comes_in_parts(
    changed: tuple[bytes, bytes], status: http.HTTPStatus | None
) -> None:
    refusal = None if status is None else HandshakeRefusal(status, "No.", 5)
    request = REQUEST.replace(*changed, 1) if changed[0] else REQUEST
    assert answered([request], refusal) == answered([request[:7], request[7:]], refusal)


@pytest.mark.parametrize("length", [2, 125, 126, 127, 1023, 1024, 1025, 65535, 65536])
def test_a_whole_frame_is_received_as_one_in_parts(length: int) -> None:
    frame = masked(b"x" * length)
    whole, parts = opened(), opened()
    assert heard(whole, frame) == [*heard(parts, frame[:3]), *heard(parts, frame[3:])]
    assert (said(whole), whole.violation(), whole.open) == (said(parts), parts.violation(), parts.open)


@pytest.mark.parametrize("length", [2, 125, 126, 65535, 65536])
def test_texts_of_any_length_are_framed_as_the_library_reads_them(length: int) -> None:
    socket, client = opened(), ClientProtocol(parse_uri("ws://x"), state=State.OPEN)
    socket.send_text("é" * (length // 2) + "x" * (length % 2))
    client.receive_data(said(socket))
    (frame,) = client.events_received()
    assert isinstance(frame, Frame)
    assert (frame.opcode, len(frame.data)) == (Opcode.TEXT, length)
