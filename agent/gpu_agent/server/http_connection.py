"""One HTTP/1.1 connection to another instance: a request at a time, request and answer piece by piece.

`httptools` (llhttp) reads the answers, as it reads the requests of the operators' API. With `httpx` each
forwarded request took 1.7 ms of CPU, seven times what a direct one takes; so it takes 0.4 ms.
"""

import asyncio
import contextlib
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import cast

import httptools

WAIT_SECONDS = 360.0
"""For the next piece of an answer: longer than any job may wait, and than a backup takes before its first."""
SILENT_SECONDS = 10
"""After so long without a sign of its kernel, the other machine is gone."""

_MOST_UNREAD_BYTES = 256 * 1024
_MOST_HEAD_BYTES = 256 * 1024
"""Of status and headers; an answer whose head goes on is given up."""

Headers = list[tuple[bytes, bytes]]


class BrokenAnswerError(ConnectionError):
    """The connection ended before its answer did, or brought what is none."""


class HttpConnection(asyncio.Protocol):
    """A connection; `reusable` says whether another request may follow."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._lost: str | None = None
        self._writable = True
        self._headers: Headers = []
        self._news = asyncio.Event()
        """Set whenever what a caller may wait for has changed."""
        self._begin(has_body=True)

    @classmethod
    async def open(
        cls, host: str, port: int, *, context: ssl.SSLContext | None, connected: socket.socket | None = None
    ) -> "HttpConnection":
        """Connect, or begin on a socket that a proxy has connected; raises `OSError`."""
        loop = asyncio.get_running_loop()
        name = None if context is None else host
        if connected is not None:
            with contextlib.ExitStack() as undo:
                undo.callback(connected.close)
                _, connection = await loop.create_connection(
                    cls, ssl=context, server_hostname=name, sock=connected
                )
                undo.pop_all()
            return connection
        _, connection = await loop.create_connection(cls, host, port, ssl=context, server_hostname=name)
        return connection

    @property
    def reusable(self) -> bool:
        """Whether its last answer is complete and the other side keeps it open."""
        return self._complete and self._sent and self._keep_alive and self._lost is None

    async def send(self, method: bytes, target: bytes, headers: Headers) -> None:
        """Begin a request; raises `BrokenAnswerError` where the connection has ended."""
        self._begin(has_body=method != b"HEAD")
        lines = [b"%b: %b" % header for header in headers]
        await self.write(b"\r\n".join([b"%b %b HTTP/1.1" % (method, target), *lines, b"", b""]))

    async def write(self, data: bytes) -> bool:
        """Send a piece once there is room; False where the answer has begun: nothing more is read then."""
        transport = self._open_transport()
        transport.write(data)
        async with asyncio.timeout(WAIT_SECONDS):
            while not (self._writable or self._headers_complete or self._lost):
                await self._next_news()
        return not self._headers_complete

    def end_request(self) -> None:
        """Say that the request is sent whole."""
        self._sent = True

    async def head(self) -> tuple[int, Headers]:
        """Wait for the status and the headers; raises `BrokenAnswerError`."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not self._headers_complete:
                self._open_transport()
                await self._next_news()
        return self._status, self._headers

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the answer's body as it comes; raises `BrokenAnswerError` where it ends too early."""
        while True:
            while self._pieces:
                piece = self._pieces.popleft()
                self._unread_bytes -= len(piece)
                if self._transport is not None and self._unread_bytes <= _MOST_UNREAD_BYTES:
                    self._transport.resume_reading()
                yield piece
            if self._complete:
                return
            self._open_transport()
            async with asyncio.timeout(WAIT_SECONDS):
                await self._next_news()

    def close(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Notice an other side whose machine is gone: its kernel acknowledges nothing any more."""
        self._transport = cast("asyncio.Transport", transport)
        ours = transport.get_extra_info("socket")
        with socket.fromfd(ours.fileno(), ours.family, ours.type) as same:  # uvloop's has no options
            same.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _TCP_OPTIONS.items():
                if hasattr(socket, name):
                    same.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def data_received(self, data: bytes) -> None:
        """Read a part of an answer; what comes behind one belongs to no request."""
        if self._complete:
            self._end("data came that answers nothing")
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(f"the answer is no HTTP ({error})")
            self.close()
        self._head_bytes += 0 if self._headers_complete else len(data)
        if self._head_bytes > _MOST_HEAD_BYTES:
            self._end("the head of the answer has no end")
            self.close()
        if self._unread_bytes > _MOST_UNREAD_BYTES and self._transport is not None:
            self._transport.pause_reading()
        self._news.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let the caller know."""
        self._end("the connection was closed" if exc is None else str(exc) or type(exc).__name__)

    def pause_writing(self) -> None:
        """Wait until the other side has read more."""
        self._writable = False

    def resume_writing(self) -> None:
        """Go on."""
        self._writable = True
        self._news.set()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; those behind a body are left out."""
        if not self._headers_complete:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Begin an answer."""
        self._status = self._parser.get_status_code()
        if self._status < HTTPStatus.OK:  # one before the answer itself
            self._headers = []
            return
        self._headers_complete = True
        self._keep_alive = self._parser.should_keep_alive()
        if not self._has_body:  # llhttp cannot know, and would wait for its body: this connection ends
            self._complete, self._keep_alive = True, False

    def on_body(self, body: bytes) -> None:
        """Take a part of a body."""
        self._pieces.append(body)
        self._unread_bytes += len(body)

    def on_message_complete(self) -> None:
        """End an answer."""
        self._complete = self._headers_complete

    def _begin(self, *, has_body: bool) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._has_body = has_body
        self._status = 0
        self._headers = []
        self._pieces: deque[bytes] = deque()
        self._unread_bytes = self._head_bytes = 0
        self._headers_complete = self._complete = self._keep_alive = self._sent = False

    def _open_transport(self) -> asyncio.Transport:
        if self._lost is not None or self._transport is None:
            raise BrokenAnswerError(self._lost)
        return self._transport

    async def _next_news(self) -> None:
        self._news.clear()
        await self._news.wait()

    def _end(self, problem: str) -> None:
        self._lost = self._lost or problem
        self._news.set()


_TCP_OPTIONS = {
    "TCP_KEEPIDLE": SILENT_SECONDS // 2,
    "TCP_KEEPINTVL": 1,
    "TCP_KEEPCNT": SILENT_SECONDS // 2,
    "TCP_USER_TIMEOUT": SILENT_SECONDS * 1000,
}
"""Seconds, and milliseconds for the last; each where the system has it."""
