"""Forwards operators' requests to the instance that leads: one hop, with the client's own token.

Requests and answers pass unchanged, piece by piece, endless ones too. The leader's checks and limits see the
client's request: its token, its `Host`, and in a header its address. The leader trusts that header because it
holds a secret that the instances share through their store (`http_headers`).

A request that may have been executed is never sent twice. One that was not sent, or that changes nothing, is
refused as `REGISTRY_BUSY`; any other without an answer is refused as `OUTCOME_UNKNOWN`. An answer that breaks
off is cut off for the client too, so that no client takes a part for the whole. Nothing waits for an instance
that has lost the lead: it may be frozen, or its machine may be gone without a sign.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpu_agent.runtime.logs import Logger
from gpu_agent.runtime.tls.certificate import PinError
from gpu_agent.runtime.tls.contexts import OwnCertificate, TlsFileError, client_context
from gpu_agent.runtime.tls.errors import openssl_reason
from gpu_agent.server.api.auth import MAX_BODY_BYTES
from gpu_agent.server.api.connection import cut_answer
from gpu_agent.server.api.errors import STATUSES, problem_response
from gpu_agent.server.http_connection import Headers, HttpConnection
from gpu_agent.server.http_headers import FORWARDING_MARK, forwarding_mark
from gpu_agent.server.log_limit import LogLimit
from gpu_agent.wire.codes import ErrorCode

CONNECT_SECONDS = 3.0
IDLE_SECONDS = 2.0
"""An unused connection is closed before the leader closes it: no request may be sent into that close."""
MOST_IDLE = 32
LOOK_SECONDS = 0.5
"""The interval between two checks whether a leader that has not answered still leads."""

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"expect",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Headers of one connection, not of a request (RFC 9110 §7.6.1)."""
_OURS = frozenset({b"date", b"server"})
"""Headers of an answer that the instance's own server writes."""
_LENGTH, _CHUNKS = b"content-length", b"transfer-encoding"

_BUSY = ErrorCode.REGISTRY_BUSY.value
_NO_LEADER = (
    "no instance of the registry leads at the moment, or it is not known which: send the same request again "
    "in a moment"
)
_UNREACHABLE = (
    "this instance of the registry does not reach the one that leads (its log says why): send the same "
    "request again in a moment, or to another instance"
)
_UNKNOWN = (
    "the instance of the registry that leads was lost before its answer: the request may have been carried "
    "out. Look before you send it again; claims, renewals and releases may be repeated as they are"
)
_LOG = Logger("server.operator")

_Body = asyncio.Queue[Message]
"""The next part of a request's body."""


@dataclass(frozen=True, slots=True)
class LeaderApi:
    """The address of the leader's operator API."""

    url: str
    pin: str | None
    """The pin of its key; None without TLS, and where this machine trusts the certificate's authority."""
    secret: str
    """Proves to the leader that an instance forwards; all instances share it."""


class Forwarder:
    """An ASGI application that forwards every request to the leader.

    `leader` returns the leader's address, None while it is unknown; `own` authenticates this instance to a
    leader that requires client certificates.
    """

    def __init__(self, leader: Callable[[], LeaderApi | None], *, own: OwnCertificate | None = None) -> None:
        self._leader = leader
        self._own = own
        self._link: _Link | None = None
        self._log_limit = LogLimit(_LOG.warning)
        self._closed = False

    @property
    def contexts(self) -> Iterable[ssl.SSLContext]:
        """The TLS contexts of the next connections to the leader."""
        link = self._link
        return () if link is None or link.context is None else (link.context,)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have one request answered."""
        api = self._leader()
        if api is None or self._closed:
            await _refuse(_BUSY, _NO_LEADER)(scope, receive, send)
            return
        try:
            link = self._link_to(api)
        except TlsFileError as error:
            self._log(api, str(error))
            await _refuse(_BUSY, _UNREACHABLE)(scope, receive, send)
            return
        body: _Body = asyncio.Queue(1)
        async with asyncio.TaskGroup() as tasks:
            forwarding = tasks.create_task(self._forward(link, scope, body=body, send=send), name="forward")
            watching = tasks.create_task(_read_client(receive, body, forwarding), name="forward client")
            forwarding.add_done_callback(lambda _: watching.cancel())

    def cut_off(self) -> None:
        """Stop waiting for answers: this instance leads now."""
        link, self._link = self._link, None
        if link is not None:
            link.supersede()

    async def close(self) -> None:
        """Cut off requests under way, and forward nothing more."""
        self._closed = True
        self._log_limit.stop()
        self.cut_off()

    def _link_to(self, api: LeaderApi) -> "_Link":
        """Return the connections to the leader; requests to an earlier leader are cut off."""
        before = self._link
        if before is not None and before.api.url == api.url:
            before.renew(api)
            return before
        link = self._link = _Link(api, self._own, self._leader)
        if before is not None:
            before.supersede()
        return link

    async def _forward(self, link: "_Link", scope: Scope, *, body: _Body, send: Send) -> None:
        sent = started = False
        try:
            async with link.request(), link.connection() as connection:
                sent = True
                await _send_request(connection, link, scope, body=body)
                status, headers = await connection.head()
                await send({"type": "http.response.start", "status": status, "headers": _passed(headers)})
                started = True
                async for piece in connection.pieces():
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except OSError as error:  # also `TimeoutError`
            self._log(link.api, _problem(error))
            if started:
                cut_answer(scope)
            elif not sent or scope["method"] in _SAFE:
                await _refuse(_BUSY, _UNREACHABLE)(scope, _nothing, send)
            else:
                await _refuse("OUTCOME_UNKNOWN", _UNKNOWN)(scope, _nothing, send)

    def _log(self, api: LeaderApi, problem: str) -> None:
        self._log_limit.violation("leader_unreachable", api.url, url=api.url, problem=problem)


class _Link:
    """The connections to one leader, and the requests that wait for its answers."""

    def __init__(
        self, api: LeaderApi, own: OwnCertificate | None, leader: Callable[[], LeaderApi | None]
    ) -> None:
        """Raises `TlsFileError`."""
        self.api, self._own = api, own
        url = urlsplit(api.url)
        encrypted = url.scheme == "https"
        self._name, self._port = url.hostname or "", url.port or (443 if encrypted else 80)
        self.host = url.netloc.encode()
        self.context = _context(api, own) if encrypted else None
        self._idle: dict[HttpConnection, asyncio.TimerHandle] = {}
        """Connections for the next requests, the one used last at the end."""
        self._leader = leader
        self._under_way: set[asyncio.Timeout] = set()
        self._superseded = False
        self._looking: asyncio.TimerHandle | None = None

    def renew(self, api: LeaderApi) -> None:
        """Accept the same leader's new key without cutting a request off; raises `TlsFileError`."""
        if api != self.api:
            self.context = None if self.context is None else _context(api, self._own)
            self.api = api
            for connection in tuple(self._idle):
                self._drop_idle(connection)

    @asynccontextmanager
    async def request(self) -> AsyncIterator[None]:
        """Wait for an answer in this block; raises `TimeoutError` once another instance leads."""
        deadline = asyncio.timeout(None)
        try:
            async with deadline:
                self._under_way.add(deadline)
                self._look_later()
                yield
        finally:
            self._under_way.discard(deadline)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[HttpConnection]:
        """Use a connection for one request; raises `OSError` where there is none."""
        connection = self._take_idle()
        if connection is None:
            async with asyncio.timeout(CONNECT_SECONDS):
                connection = await HttpConnection.open(self._name, self._port, context=self.context)
        try:
            yield connection
        finally:
            if connection.reusable and not self._superseded and len(self._idle) < MOST_IDLE:
                later = asyncio.get_running_loop().call_later
                self._idle[connection] = later(IDLE_SECONDS, self._drop_idle, connection)
            else:
                connection.close()

    def supersede(self) -> None:
        """Cut off requests under way, and close all connections."""
        self._superseded = True
        self._cut()
        for connection in tuple(self._idle):
            self._drop_idle(connection)
        if self._looking is not None:
            self._looking.cancel()

    def _take_idle(self) -> HttpConnection | None:
        while self._idle:
            connection, timer = self._idle.popitem()
            timer.cancel()
            if connection.reusable:
                return connection
        return None

    def _drop_idle(self, connection: HttpConnection) -> None:
        self._idle.pop(connection).cancel()
        connection.close()

    def _look_later(self) -> None:
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        """Check whether this leader still leads; while no leader is known, it may yet answer."""
        self._looking = None
        leader = self._leader()
        if leader is not None and leader.url != self.api.url:
            self._cut()
        elif self._under_way:
            self._look_later()

    def _cut(self) -> None:
        now = asyncio.get_running_loop().time()
        for deadline in self._under_way:
            if not deadline.expired():
                deadline.reschedule(now)


def _context(api: LeaderApi, own: OwnCertificate | None) -> ssl.SSLContext:
    pins = frozenset() if api.pin is None else frozenset({api.pin})
    return client_context(ca_file=None, own=own, pins=pins)


async def _read_client(receive: Receive, body: _Body, forwarding: asyncio.Task[None]) -> None:
    """Forward a request's body, and cancel the request once its client is gone."""
    more = True
    while (message := await receive())["type"] != "http.disconnect":
        if more:
            await body.put(message)
            more = message.get("more_body", False)
    forwarding.cancel()


async def _send_request(connection: HttpConnection, link: _Link, scope: Scope, *, body: _Body) -> None:
    """Send the request unchanged; of too long a body, send just enough for the leader to refuse it."""
    headers: Headers = scope["headers"]
    named = b",".join(value for name, value in headers if name == b"connection").lower()
    dropped = _HOP_BY_HOP | {one.strip() for one in named.split(b",")}
    length = next((int(value) for name, value in headers if name == _LENGTH), None)
    has_body = bool(length) or any(name == _CHUNKS for name, _ in headers)
    chunked = has_body and (length is None or length > MAX_BODY_BYTES)
    if chunked:
        dropped |= {_LENGTH}
    sent = [one for one in headers if one[0] not in dropped]
    if scope["http_version"] == "1.0" and not any(name == b"host" for name, _ in sent):
        sent.append((b"host", link.host))
    if chunked:
        sent.append((_CHUNKS, b"chunked"))
    client = scope["client"]
    sent.append((FORWARDING_MARK, forwarding_mark(link.api.secret, client[0] if client else "unknown")))
    target: bytes = scope["raw_path"]
    if scope["query_string"]:
        target = b"%b?%b" % (target, scope["query_string"])
    await connection.send(scope["method"].encode(), target, sent)
    left, more = MAX_BODY_BYTES + 1, has_body
    while more:
        message = await body.get()
        piece, more = message.get("body", b"")[:left], message.get("more_body", False)
        left -= len(piece)
        more &= left > 0
        if piece and not await connection.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece):
            return
    if chunked:
        await connection.write(b"0\r\n\r\n")
    connection.end_request()


def _passed(headers: Headers) -> Headers:
    """Drop the headers of an answer that belong to its connection."""
    return [one for one in headers if one[0] not in _HOP_BY_HOP and one[0] not in _OURS]


def _problem(error: OSError) -> str:
    if isinstance(error, PinError):
        return str(error.args[0])
    if isinstance(error, ssl.SSLError):
        return openssl_reason(error)
    return str(error) or "it does not answer in time, or another instance leads now"


def _refuse(code: str, detail: str) -> ASGIApp:
    return problem_response(STATUSES[code], code, detail)


async def _nothing() -> Message:
    """A refusal reads no more of its request."""
    raise NotImplementedError
