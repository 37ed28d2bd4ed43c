"""One HTTP connection of the operators' API, and the limits of all: a subclass of uvicorn's protocol.

`httptools` (llhttp) reads the requests. What it does not check of RFC 9112 is checked here, and where uvicorn
would let an upgrade cut off a body, the request is read again without it.

uvicorn has no limit for four attacks, which need no token; each connection takes an open file that a node
needs:
1. A client that never completes a request: uvicorn has no timeout for headers or bodies
   (`REQUEST_SECONDS`).
2. Thousands of idle connections: `limit_concurrency` refuses the operator then. Here the connection that
   has been idle longest is closed (`MAX_CONNECTIONS`).
3. A client that reads nothing of a large answer (`UNREAD_SECONDS`). One that reads slowly may take its time:
   uvicorn calls an answer complete once it waits to be sent, so a connection is idle only once all is sent.
4. A head without end (`MOST_HEAD_BYTES`, `MOST_HEADERS`), or requests without end behind one that waits: they
   are read once it is answered.
"""

import array
import asyncio
import sys
import time
from collections.abc import MutableMapping
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from gpu_agent.server.api.errors import problem_response
from gpu_agent.server.log_limit import LogLimit, origin_of

if sys.platform != "win32":
    import fcntl
    import termios

MAX_CONNECTIONS = 448
"""Room for all clients that may follow the events, for the streams of all open pages, and 64 others."""

REQUEST_SECONDS = 10.0
"""For a whole request with its body, and for the rest of a body that the route did not read."""

MOST_HEAD_BYTES = 64 * 1024
"""Of a request's first line and headers, or of its trailers: a piece more at most."""

MOST_HEADERS = 100
"""Read before the end of a head is seen."""

_PIECE_BYTES = 1024
"""Read at once: what one piece begins waits in memory."""

UNREAD_SECONDS = 60.0
"""A client that reads nothing of its answer for so long is disconnected; it can resume where it was."""

_UNREAD_CHECKS = 6
"""In that time. A client that has read nothing between two of them yields to a new connection."""


_CUT = "gpu_agent.cut"
"""Where a request has, in its scope, what `cut_answer` calls."""


class _UnreadableError(Exception):
    """A request that RFC 9112 does not allow."""

    def __init__(self, why: str, status: int = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(why)
        self.status = status


def cut_answer(scope: MutableMapping[str, Any]) -> None:
    """End an answer in its middle, so that its reader takes it for no whole one; logs nothing."""
    scope[_CUT]()


class ConnectionLimit:
    """The connections of one server that are idle or whose client reads nothing, the oldest such first."""

    def __init__(self, log_limit: LogLimit, *, most: int = MAX_CONNECTIONS) -> None:
        self.most = most
        self.idle: dict[ApiConnection, None] = {}
        self._log_limit = log_limit

    def log(self, event: str, connection: "ApiConnection", reason: str) -> None:
        """Log why a connection was closed, once a minute for each origin."""
        host = connection.client[0] if connection.client is not None else "unknown"
        self._log_limit.violation(event, origin_of(host), kind=reason, address=host, reason=reason)

    def stop(self) -> None:
        """Log how many were not logged one by one."""
        self._log_limit.stop()


class ApiConnection(HttpToolsProtocol):
    """A connection within the limits."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, object],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limit: ConnectionLimit,
    ) -> None:
        """Make a connection."""
        super().__init__(config, server_state, app_state, _loop)
        self.headers = []
        self._limit = limit
        self._received = b""
        """What is not read yet."""
        self._head_bytes = 0
        """Read since the last end of a head, or part of a body."""
        self._unreadable: _UnreadableError | None = None
        self._answered: RequestResponseCycle | None = None
        """The request that is answered now, or was last; `cycle` is the last one that was read."""
        self._overdue: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        """Set while an answer waits to be sent."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Wait for the first request; above the limit, close the connection that is idle longest."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # writing is paused until all is sent
        self._become_idle()
        if len(self.connections) > self._limit.most:
            next(iter(self._limit.idle)).drop("too many connections")

    def connection_lost(self, exc: Exception | None) -> None:
        """Let the request that is answered end, and cancel the timers."""
        super().connection_lost(exc)
        self._disconnect()
        self.resume_writing()
        self._become_busy()

    def data_received(self, data: bytes) -> None:
        """Read on; once a request is complete its answer may take its time."""
        self._received += data
        self._read_on()

    def on_response_complete(self) -> None:
        """Wait for the next request, unless it has arrived already, or the answer is not sent yet."""
        super().on_response_complete()
        self._read_on()
        if self._unread is not None:
            self._become_busy()
        elif not self._is_busy:
            self._become_idle()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, without the spaces behind it."""
        super().on_header(name, value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        """Begin a request that RFC 9112 allows; raises `_UnreadableError`."""
        self._head_bytes = 0
        self._check_head()
        super().on_headers_complete()
        self.headers = []  # takes the trailers, which are no headers

    def on_body(self, body: bytes) -> None:
        """Take a part of a body."""
        self._head_bytes = 0
        super().on_body(body)

    def pause_writing(self) -> None:
        """Wait until the client has read enough that all is sent."""
        super().pause_writing()
        self._await_reading(self._unread_bytes(), _UNREAD_CHECKS)

    def resume_writing(self) -> None:
        """All is sent: wait for the next request, unless it has arrived already."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        if self._overdue is None:
            self._become_busy()
            if not self._is_busy:
                self._become_idle()

    def speaks_no_tls(self, reason: str) -> None:
        """Log a failed TLS handshake; the connection is over."""
        self._limit.log("tls_handshake_failed", self, reason)

    def drop(self, reason: str) -> None:
        """Close the connection at once."""
        self._become_busy()
        self.transport.abort()
        self._limit.log("operator_connection_dropped", self, reason)

    def cut(self) -> None:
        """Close the connection, whatever is being answered."""
        self._disconnect()
        self.transport.close()

    def _read_on(self) -> None:
        """Read up to the end of a request; what is behind it waits for its answer."""
        if self.transport.is_closing():
            return
        self.server_state.default_headers = _dated(int(time.time()))
        data, at = self._received, 0
        while at < len(data) and not self._is_busy and self._unreadable is None:
            self._read(data[at : at + _PIECE_BYTES])
            at += _PIECE_BYTES
        self._received = data[at:]
        if self._is_busy:
            self._become_busy()
            if self._received:
                self.flow.pause_reading()
        elif self._unreadable is not None:
            self._refuse(self._unreadable)

    def _read(self, piece: bytes) -> None:
        self._unset_keepalive_if_required()
        self._head_bytes += len(piece)
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            self._read(self._without_upgrade())
            self._read(piece[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            why = error.__context__
            if not isinstance(why, _UnreadableError):
                why = _UnreadableError(str(error) if why is None else "its target is no path")
            self._unreadable = why
        if self._head_bytes > MOST_HEAD_BYTES or len(self.headers) > MOST_HEADERS:
            too_large = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            self._unreadable = _UnreadableError("its headers are too long or too many", too_large)

    def _check_head(self) -> None:
        """Check what llhttp does not; raises `_UnreadableError`."""
        names = [name for name, _ in self.headers]
        hosts, version = names.count(b"host"), self.parser.get_http_version()
        if version not in {"1.0", "1.1"}:
            unknown = HTTPStatus.HTTP_VERSION_NOT_SUPPORTED
            raise _UnreadableError("it is neither HTTP/1.1 nor HTTP/1.0", unknown)
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            raise _UnreadableError(f"it has {hosts or 'no'} Host headers")
        if b"transfer-encoding" in names:
            codings = [value.lower() for name, value in self.headers if name == b"transfer-encoding"]
            if codings != [b"chunked"] or version == "1.0":
                raise _UnreadableError("its Transfer-Encoding is not `chunked`", HTTPStatus.NOT_IMPLEMENTED)
        if b"#" in self.url or self.parser.get_method() == b"CONNECT":
            raise _UnreadableError("its target is no path")

    def _should_upgrade(self) -> bool:
        """Begin no request that asks for an upgrade: it is read again `_without_upgrade`."""
        return True

    def _without_upgrade(self) -> bytes:
        """Return the head without its upgrade, because of which the parser would leave out the body."""
        self.parser = httptools.HttpRequestParser(self)
        lines = [
            b"%b %b HTTP/%b" % (self.scope["method"].encode(), self.url, self.scope["http_version"].encode())
        ]
        lines += [b"%b: %b" % header for header in self.scope["headers"] if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Begin to answer a request."""
        self._answered = cycle
        cycle.scope[_CUT] = self.cut  # type: ignore[literal-required]  # of ours
        super()._start_asgi_task(
            cycle, app if cycle.scope["http_version"] == "1.1" else _without_chunks(cycle, app)
        )

    def _refuse(self, unreadable: _UnreadableError) -> None:
        """Answer an unreadable request with a problem document, where that is still possible; close."""
        answered = self._answered
        if answered is None or answered.response_complete or not answered.response_started:
            detail = f"the request cannot be read ({unreadable}): send one that RFC 9112 allows"
            document = problem_response(unreadable.status, "REQUEST_UNREADABLE", detail)
            headers = [*self.server_state.default_headers, *document.raw_headers, (b"connection", b"close")]
            lines = b"".join(b"%b: %b\r\n" % header for header in headers)
            body = bytes(document.body)
            self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[unreadable.status], lines, body))
        self.cut()

    def _disconnect(self) -> None:
        """Let the request that is answered end without its answer."""
        if self._answered is not None and not self._answered.response_complete:
            self._answered.disconnected = True
            self._answered.message_event.set()

    @property
    def _is_busy(self) -> bool:
        """True while a complete request is being answered."""
        answered = self._answered
        return answered is not None and not answered.more_body and not answered.response_complete

    def _await_reading(self, unread: int, checks: int) -> None:
        self._unread = self.loop.call_later(
            UNREAD_SECONDS / _UNREAD_CHECKS, self._check_reading, unread, checks - 1
        )

    def _check_reading(self, before: int, checks: int) -> None:
        """Go on while the client reads; without that, yield to a new connection, and at last close."""
        unread = self._unread_bytes()
        if unread < before:
            if self._overdue is None:
                self._limit.idle.pop(self, None)
            checks = _UNREAD_CHECKS
        elif checks == 0:
            self.drop("an answer is not read")
            return
        else:
            self._limit.idle.setdefault(self)
        self._await_reading(unread, checks)

    def _unread_bytes(self) -> int:
        """How many bytes the client has not acknowledged: the kernel takes more only in large steps.

        Windows does not tell what the kernel holds: there a very slow client may be cut off.
        """
        in_kernel = array.array("i", [0])
        if sys.platform != "win32":
            fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, in_kernel)
        return self.transport.get_write_buffer_size() + in_kernel[0]

    def _become_idle(self) -> None:
        self._become_busy()
        self._limit.idle[self] = None
        self._overdue = self.loop.call_later(REQUEST_SECONDS, self.drop, "no request in time")

    def _become_busy(self) -> None:
        self._limit.idle.pop(self, None)
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None


def _without_chunks(cycle: RequestResponseCycle, app: ASGI3Application) -> ASGI3Application:
    """Answer a client of HTTP/1.0, which knows no chunks: the connection's end is the answer's."""

    async def answer(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        async def send_whole(message: ASGISendEvent) -> None:
            if message["type"] == "http.response.body":
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, send_whole)

    cycle.chunked_encoding = False
    return answer


@lru_cache(maxsize=2)
def _dated(second: int) -> list[tuple[bytes, bytes]]:
    """Return the headers of every answer of this second."""
    return [(b"date", formatdate(second, usegmt=True).encode())]
