"""One HTTP connection of the operators' API, with limits for connections that send or read nothing.

A subclass of uvicorn's protocol because uvicorn has no limit against three attacks: a connection that never
completes a request (no header timeout), thousands of idle connections (each takes an open file that a node needs),
and a client that reads nothing of its answer.
"""

import asyncio
from typing import ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from gpu_agent.runtime.logs import Logger
from gpu_agent.server.log_limit import LogLimit, origin_of

MAX_CONNECTIONS = 320
"""Room for all who may follow the events, and 64 besides."""

REQUEST_SECONDS = 10.0
"""For a whole request with its body, and for what is left of a body that nobody wants."""

UNREAD_SECONDS = 60.0
"""A reader that takes nothing of what waits for it is cut off after that; where it was it can ask again."""

_LOG = Logger("server.operator")


class ApiConnection(H11Protocol):
    """A connection of any one server's; `connections` makes the class of one server's own."""

    _idle: ClassVar[dict["ApiConnection", None]]
    """On which nothing is under way, the one that has idled longest first."""
    _log_limit: ClassVar[LogLimit]
    _most: ClassVar[int]

    _overdue: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Wait for the first request; too many, and whoever has idled longest makes room."""
        super().connection_made(transport)
        self._rest()
        if len(self.connections) > self._most:
            next(iter(self._idle)).drop("too many connections")

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        super().connection_lost(exc)
        self._work()
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        """Read on; a request that has come whole is answered without haste."""
        super().data_received(data)
        if self._is_busy:
            self._work()

    def on_response_complete(self) -> None:
        """Wait for the next request, unless it is there already."""
        super().on_response_complete()
        if not self._is_busy:
            self._rest()

    def pause_writing(self) -> None:
        """Begin to wait for a reader that takes nothing."""
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD_SECONDS, self.drop, "an answer is not read")

    def resume_writing(self) -> None:
        """It takes something again."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def speaks_no_tls(self, reason: str) -> None:
        """Tell of a peer with which no TLS came up; the connection is over."""
        host = self.client[0] if self.client is not None else "unknown"
        self._log_limit.violation(
            "tls_handshake_failed", origin_of(host), kind=reason, address=host, reason=reason
        )

    def drop(self, reason: str) -> None:
        """Cut the connection off, and tell of it once a minute for each origin."""
        self._work()
        self.transport.abort()
        host = self.client[0] if self.client is not None else "unknown"
        self._log_limit.violation(
            "operator_connection_dropped", origin_of(host), kind=reason, address=host, reason=reason
        )

    @property
    def _is_busy(self) -> bool:
        """True while a request that has come whole is being answered."""
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        return cycle is not None and not cycle.more_body and not cycle.response_complete

    def _rest(self) -> None:
        self._work()
        self._idle[self] = None
        self._overdue = self.loop.call_later(REQUEST_SECONDS, self.drop, "no request in time")

    def _work(self) -> None:
        self._idle.pop(self, None)
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None


def connections(log_limit: LogLimit, *, most: int = MAX_CONNECTIONS) -> type[ApiConnection]:
    """Make the class of one server's connections, which know of each other."""

    class OfOneServer(ApiConnection):
        _idle: ClassVar[dict[ApiConnection, None]] = {}
        _log_limit = log_limit
        _most = most

    return OfOneServer
