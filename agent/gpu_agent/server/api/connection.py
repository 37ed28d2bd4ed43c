"""One HTTP connection of the operators' API, and the limits of all: a subclass of uvicorn's protocol.

uvicorn has no limit for three attacks, which need no token; each connection takes an open file that a node
needs:
1. A client that never completes a request: uvicorn has no timeout for headers or bodies
   (`REQUEST_SECONDS`).
2. Thousands of idle connections: `limit_concurrency` refuses the operator then. Here the connection that
   has been idle longest is closed (`MAX_CONNECTIONS`).
3. A client that reads nothing of a large answer (`UNREAD_SECONDS`).
"""

import asyncio
from http import HTTPStatus
from typing import cast

import h11
from uvicorn._types import HTTPScope
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from gpu_agent.server.api.errors import problem_response
from gpu_agent.server.api.plain_requests import PlainCycle, PlainRequest, read_plain
from gpu_agent.server.log_limit import LogLimit, origin_of

MAX_CONNECTIONS = 320
"""Room for all clients that may follow the events, and 64 others."""

REQUEST_SECONDS = 10.0
"""For a whole request with its body, and for the rest of a body that the route did not read."""

MOST_HEAD_BYTES = 64 * 1024
"""Of a request's first line and headers."""

_FRAMINGS = {b"content-length", b"transfer-encoding"}

UNREAD_SECONDS = 60.0
"""A client that reads nothing of its answer for so long is disconnected; it can resume where it was."""


class _Reader(h11.Connection):
    """Reads requests; one with a length *and* chunks is unreadable, since proxies disagree on its end."""

    error: h11.RemoteProtocolError | None = None

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Return what comes next; raises `RemoteProtocolError`."""
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            self.error = error
            raise
        if isinstance(event, h11.Request) and {name for name, _ in event.headers}.issuperset(_FRAMINGS):
            self.error = h11.RemoteProtocolError("it has both Content-Length and Transfer-Encoding")
            raise self.error
        return event


class ConnectionLimit:
    """The idle connections of one server, the one that is idle longest first."""

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


class ApiConnection(H11Protocol):
    """A connection within the limits."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, object],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limit: ConnectionLimit,
        plain: bool = True,
    ) -> None:
        """Make a connection; without `plain` the parser reads every request, for comparison."""
        super().__init__(config, server_state, app_state, _loop)
        self._reads_plain = plain
        self.conn: _Reader = _Reader(h11.SERVER, MOST_HEAD_BYTES)
        self._limit = limit
        self._early = b""
        """What came behind a plain request before its answer."""
        self._overdue: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Wait for the first request; above the limit, close the connection that is idle longest."""
        super().connection_made(transport)
        self._become_idle()
        if len(self.connections) > self._limit.most:
            next(iter(self._limit.idle)).drop("too many connections")

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers."""
        super().connection_lost(exc)
        self._become_busy()
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        """Read on; once a request is complete its answer may take its time."""
        if self._is_busy and isinstance(self.cycle, PlainCycle):
            self._early += data
            self.flow.pause_reading()
            return
        plain = read_plain(bytes(data)) if self._may_be_plain else None
        if plain is None:
            super().data_received(data)
        else:
            self._begin(plain)
        if self._is_busy:
            self._become_busy()

    def on_response_complete(self) -> None:
        """Wait for the next request, unless it has arrived already."""
        super().on_response_complete()
        if self._early and not self.transport.is_closing():
            data, self._early = self._early, b""
            self.data_received(data)
        if not self._is_busy:
            self._become_idle()

    def send_400_response(self, msg: str) -> None:
        """Refuse an unreadable request with a problem document, where an answer is still possible."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            error = self.conn.error
            status = 400 if error is None else error.error_status_hint
            detail = f"the request cannot be read ({error or msg}): send one that RFC 9112 allows"
            document = problem_response(status, "REQUEST_UNREADABLE", detail)
            headers = [*document.raw_headers, (b"connection", b"close")]
            for event in (
                h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase),
                h11.Data(data=bytes(document.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def pause_writing(self) -> None:
        """Wait until the client reads."""
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD_SECONDS, self.drop, "an answer is not read")

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def speaks_no_tls(self, reason: str) -> None:
        """Log a failed TLS handshake; the connection is over."""
        self._limit.log("tls_handshake_failed", self, reason)

    def drop(self, reason: str) -> None:
        """Close the connection at once."""
        self._become_busy()
        self.transport.abort()
        self._limit.log("operator_connection_dropped", self, reason)

    def _begin(self, plain: PlainRequest) -> None:
        """Let the application answer a plain request, as `handle_events` does for others."""
        self._unset_keepalive_if_required()
        scope = {
            **plain.scope(),
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "state": self.app_state.copy(),
        }
        self.cycle = cycle = PlainCycle(
            scope=cast("HTTPScope", scope),
            conn=self.conn,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            on_response=self.on_response_complete,
        )
        cycle.body, cycle.more_body = bytearray(plain.body), False
        cycle.message_event.set()
        task = self.loop.create_task(cycle.run_asgi(self.app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    @property
    def _may_be_plain(self) -> bool:
        """True when the next byte begins a request that may be a plain one."""
        reader = self.conn
        if not self._reads_plain:
            return False
        return reader.our_state is reader.their_state is h11.IDLE and reader.trailing_data == (b"", False)

    @property
    def _is_busy(self) -> bool:
        """True while a complete request is being answered."""
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        return cycle is not None and not cycle.more_body and not cycle.response_complete

    def _become_idle(self) -> None:
        self._become_busy()
        self._limit.idle[self] = None
        self._overdue = self.loop.call_later(REQUEST_SECONDS, self.drop, "no request in time")

    def _become_busy(self) -> None:
        self._limit.idle.pop(self, None)
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None
