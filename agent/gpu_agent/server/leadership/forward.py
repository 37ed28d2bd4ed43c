"""Forwards operators' requests to the instance that leads: one hop, with the client's own token.

Requests and answers pass as they are, piece by piece; also those that never end. What the leader's checks
and limits see is the client's request: its token, its `Host`, and in a mark its address, which the leader
believes because the mark holds a secret that the instances share through their store (`http_headers`).

A request that may have been carried out is never sent twice. One that was not sent, or that changes nothing,
is refused as `REGISTRY_BUSY`; after any other whose answer is missing the client gets `OUTCOME_UNKNOWN`. An
answer that breaks off is cut off for the client too, so that it takes no part for the whole. An instance that
has lost the lead is not waited for: it may be frozen, or its machine gone without a word.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpu_agent.runtime.logs import Logger
from gpu_agent.runtime.tls.certificate import PinError
from gpu_agent.runtime.tls.contexts import OwnCertificate, TlsFileError, client_context
from gpu_agent.runtime.tls.errors import openssl_reason
from gpu_agent.server.api.auth import MAX_BODY_BYTES
from gpu_agent.server.api.connection import cut_answer
from gpu_agent.server.api.errors import STATUSES, problem_response
from gpu_agent.server.http_headers import FORWARDING_MARK, forwarding_mark
from gpu_agent.server.log_limit import LogLimit
from gpu_agent.wire.codes import ErrorCode

CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 360.0
"""Longer than any job may wait for capacity, and than a backup takes before its first piece."""
UNREAD_SECONDS = 30.0
"""For the leader to read a piece of a request."""
IDLE_SECONDS = 2.0
"""An unused connection is closed before the leader closes it: a request must not meet that."""
MOST_IDLE = 32
LOOK_SECONDS = 0.5
"""How often it is looked whether a leader that has not answered still leads."""
SILENT_SECONDS = 10
"""After so long without a sign of its kernel, the leader's machine is gone."""

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
"""Of one connection, not of a request (RFC 9110 §7.6.1)."""
_OURS = frozenset({b"date", b"server"})
"""Of an answer: the instance's own server writes them."""
_LENGTH, _CHUNKS = b"content-length", b"transfer-encoding"
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)

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
_UNSENDABLE = "the request cannot be forwarded, since it is no valid HTTP: send one that RFC 9112 allows"
_LOG = Logger("server.operator")

Headers = list[tuple[bytes, bytes]]
_Body = asyncio.Queue[Message]
"""The next part of a request's body."""


@dataclass(frozen=True, slots=True)
class LeaderApi:
    """Where the operators' API of the instance that leads is."""

    url: str
    pin: str | None
    """Of its key; None without TLS, or where an authority that this machine trusts vouches for it."""
    secret: str
    """Proves to the leader that an instance forwards; equal for all of them."""


class Forwarder:
    """An ASGI application that has every request answered by the leader.

    `leader` returns where that is now, None while it is not known; `own` proves this instance to a leader
    that asks clients for certificates.
    """

    def __init__(self, leader: Callable[[], LeaderApi | None], *, own: OwnCertificate | None = None) -> None:
        self._leader = leader
        self._own = own
        self._link: _Link | None = None
        self._log_limit = LogLimit(_LOG.warning)
        self._closed = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have one request answered."""
        api = self._leader()
        if api is None or self._closed:
            await _refuse(_BUSY, _NO_LEADER)(scope, receive, send)
            return
        try:
            link = await self._link_to(api)
        except TlsFileError as error:
            self._log(api, str(error))
            await _refuse(_BUSY, _UNREACHABLE)(scope, receive, send)
            return
        body: _Body = asyncio.Queue(1)
        async with asyncio.TaskGroup() as tasks:
            forwarding = tasks.create_task(self._forward(link, scope, body=body, send=send), name="forward")
            watching = tasks.create_task(_read_client(receive, body, forwarding), name="forward client")
            forwarding.add_done_callback(lambda _: watching.cancel())

    async def close(self) -> None:
        """Cut off what is under way, and forward nothing more."""
        self._closed = True
        self._log_limit.stop()
        link, self._link = self._link, None
        if link is not None:
            await link.supersede()

    async def _link_to(self, api: LeaderApi) -> "_Link":
        """Return the connections to the leader; what is under way to one before it is cut off."""
        before = self._link
        if before is not None and before.api == api:
            return before
        link = self._link = _Link(api, self._own, self._leader)
        if before is not None:
            await before.supersede()
        return link

    async def _forward(self, link: "_Link", scope: Scope, *, body: _Body, send: Send) -> None:
        started = False
        try:
            async with link.request():
                answer = await link.transport.handle_async_request(_request(link, scope, body))
                try:
                    await send(_start(answer))
                    started = True
                    async for piece in answer.aiter_raw():
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
                finally:
                    await answer.aclose()
            await send({"type": "http.response.body", "body": b""})
        except httpx.LocalProtocolError:
            await _refuse("REQUEST_UNREADABLE", _UNSENDABLE)(scope, _nothing, send)
        except (httpx.TransportError, OSError, TimeoutError) as error:
            self._log(link.api, _problem(error))
            if started:
                cut_answer(scope)
            elif isinstance(error, _NOT_SENT) or scope["method"] in _SAFE:
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
        self.api = api
        self.url = httpx.URL(api.url)
        encrypted = self.url.scheme == "https"
        pins = frozenset() if api.pin is None else frozenset({api.pin})
        self.transport = httpx.AsyncHTTPTransport(
            verify=client_context(ca_file=None, own=own, pins=pins) if encrypted else False,
            trust_env=False,
            limits=httpx.Limits(
                max_connections=None, max_keepalive_connections=MOST_IDLE, keepalive_expiry=IDLE_SECONDS
            ),
            socket_options=_socket_options(),
        )
        self._leader = leader
        self._under_way: set[asyncio.Timeout] = set()
        self._superseded = False
        self._looking: asyncio.TimerHandle | None = None

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
            await self._close_if_unused()

    async def supersede(self) -> None:
        """Cut off what is under way, and close all connections."""
        self._superseded = True
        self._cut()
        await self._close_if_unused()

    def _look_later(self) -> None:
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        """See whether this leader still leads; while none is known, it may yet answer."""
        self._looking = None
        leader = self._leader()
        if leader is not None and leader != self.api:
            self._cut()
        elif self._under_way:
            self._look_later()

    def _cut(self) -> None:
        now = asyncio.get_running_loop().time()
        for deadline in self._under_way:
            if not deadline.expired():
                deadline.reschedule(now)

    async def _close_if_unused(self) -> None:
        if self._superseded and not self._under_way:
            if self._looking is not None:
                self._looking.cancel()
                self._looking = None
            await self.transport.aclose()


async def _read_client(receive: Receive, body: _Body, forwarding: asyncio.Task[None]) -> None:
    """Pass a request's body on, and cancel the request once its client is gone."""
    more = True
    while (message := await receive())["type"] != "http.disconnect":
        if more:
            await body.put(message)
            more = message.get("more_body", False)
    forwarding.cancel()


def _request(link: _Link, scope: Scope, body: _Body) -> httpx.Request:
    """Write the request as the leader gets it."""
    headers: Headers = scope["headers"]
    named = {
        one.strip().lower() for name, value in headers if name == b"connection" for one in value.split(b",")
    }
    sent = [one for one in headers if one[0] not in _HOP_BY_HOP and one[0] not in named]
    lengths = [int(value) for name, value in headers if name == _LENGTH]
    has_body = any(lengths) or any(name == _CHUNKS for name, _ in headers)
    if not lengths or max(lengths) > MAX_BODY_BYTES:  # chunks: it may end before, see `_pieces`
        sent = [one for one in sent if one[0] != _LENGTH]
    client = scope["client"]
    sent.append((FORWARDING_MARK, forwarding_mark(link.api.secret, client[0] if client else "unknown")))
    target: bytes = scope["raw_path"]
    if scope["query_string"]:
        target = b"%b?%b" % (target, scope["query_string"])
    seconds = {
        "connect": CONNECT_SECONDS,
        "read": ANSWER_SECONDS,
        "write": UNREAD_SECONDS,
        "pool": CONNECT_SECONDS,
    }
    return httpx.Request(
        scope["method"],
        link.url,
        headers=sent,
        content=_pieces(body) if has_body else None,
        extensions={"target": target, "timeout": seconds},
    )


async def _pieces(body: _Body) -> AsyncIterator[bytes]:
    """Yield a body as it comes, and of one that is too long so much that the leader refuses it."""
    left, more = MAX_BODY_BYTES + 1, True
    while more and left > 0:
        message = await body.get()
        piece, more = message.get("body", b"")[:left], message.get("more_body", False)
        left -= len(piece)
        if piece:
            yield bytes(piece)


def _start(answer: httpx.Response) -> Message:
    headers = [(name.lower(), value) for name, value in answer.headers.raw]
    passed = [one for one in headers if one[0] not in _HOP_BY_HOP and one[0] not in _OURS]
    return {"type": "http.response.start", "status": answer.status_code, "headers": passed}


def _socket_options() -> list[tuple[int, int, int]]:
    """Notice a leader whose machine is gone: its kernel acknowledges nothing any more."""
    seconds = {"TCP_KEEPIDLE": SILENT_SECONDS // 2, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": SILENT_SECONDS // 2}
    values = {**seconds, "TCP_USER_TIMEOUT": SILENT_SECONDS * 1000}
    known = [(getattr(socket, name), value) for name, value in values.items() if hasattr(socket, name)]
    return [
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        *((socket.IPPROTO_TCP, option, value) for option, value in known),
    ]


def _problem(error: BaseException) -> str:
    """Return what is at the bottom of an error of the HTTP library, whose pool drops the cause of its own."""
    inner: object = error
    while isinstance(inner, BaseException):
        error, inner = inner, inner.__cause__ or next(iter(inner.args), None)
    if isinstance(error, PinError):
        return str(error.args[0])
    if isinstance(error, ssl.SSLError):
        return openssl_reason(error)
    ended = "another instance leads now" if type(error) is TimeoutError else type(error).__name__
    return str(error) or ended


def _refuse(code: str, detail: str) -> ASGIApp:
    return problem_response(STATUSES[code], code, detail)


async def _nothing() -> Message:
    """A refusal reads no more of its request."""
    raise NotImplementedError
