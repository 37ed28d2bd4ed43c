"""Checks every request to the operators' API before its route runs: host, origin, role, body, trace.

Fails closed: a route that declares no role needs an admin. A call that may change something is logged with the id
and the name of its token, never the token. A token is looked up by its digest, so no comparison needs constant time.
"""

import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from functools import partial
from typing import Any, Literal, Protocol

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute, Match

from gpu_agent.registry.credentials import Credential, Role, allows
from gpu_agent.runtime.logs import Logger
from gpu_agent.server.http_headers import bearer_token, is_same_origin, names_this_host
from gpu_agent.server.log_limit import LogLimit, origin_of
from gpu_agent.server.requests import caused_by, current_trace_id, is_trace_id

# Keeps web pages in an operator's browser from using the operator API behind the operator's back.
#
# A page of another origin can make a browser send requests to 127.0.0.1, and by rebinding its
# own name to that address can even read the answers. So a request must name a host that is
# ours, must not come from a foreign origin, and must carry JSON where it carries anything; and
# no more of it than a request can need. Checks no credentials.


Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Refuse = Callable[[int, str, str], App]
"""Makes the answer to a refused request from a status, a code and a sentence."""

MAX_BODY_BYTES = 1024 * 1024
"""Far more than the largest job's demands; a longer body is not even read to its end."""
MAX_BODIES_BYTES = 32 * 1024 * 1024
"""Of all bodies together, from their first byte until they are answered."""


class Guard:
    """Stands before an ASGI application."""

    def __init__(
        self, app: App, *, hosts: Iterable[str] | None, refuse: Refuse, takes: Callable[[Scope], bool]
    ) -> None:
        self._app = app
        self._takes = takes
        """Says whether anything takes a request; what nothing takes does no harm, whatever it carries."""
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts)
        """Names under which we may be called; None when nobody can know them all."""
        self._refuse = refuse
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif (refusal := self._refusal(scope)) is not None:
            await refusal(scope, receive, send)
        else:
            await self._hold(scope, receive, send)

    async def _hold(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read a body to its end and hand it on, unless it is too long, or all bodies together are."""
        body = bytearray()
        try:
            while True:
                message = await receive()
                part = message.get("body", b"")
                body += part
                self._held_bytes += len(part)
                refusal = self._too_much(len(body))
                if message["type"] != "http.request" or refusal is not None:
                    break
                if not message.get("more_body", False):
                    await self._app(scope, _replaying(bytes(body), receive), send)
                    return
            if refusal is not None:  # else its sender left in the middle
                await refusal(scope, receive, send)
        finally:
            self._held_bytes -= len(body)

    def _too_much(self, length: int) -> App | None:
        if length > MAX_BODY_BYTES:
            return self._refuse(413, "BODY_TOO_LARGE", f"a request is at most {MAX_BODY_BYTES} bytes long")
        if self._held_bytes > MAX_BODIES_BYTES:
            return self._refuse(
                413, "BODIES_TOO_LARGE", "too many long requests come at a time: ask again in a moment"
            )
        return None

    def _refusal(self, scope: Scope) -> App | None:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if not names_this_host(host, self._hosts):
            return self._refuse(
                403,
                "HOST_NOT_ALLOWED",
                f"this registry is not called {host!r}: use the address it listens on",
            )
        origin = headers.get(b"origin")
        if origin is not None and not is_same_origin(origin, host):
            return self._refuse(
                403, "ORIGIN_NOT_ALLOWED", f"pages of {origin!r} may not use this API: use it from a program"
            )
        has_body = headers.get(b"content-length", "0") != "0" or b"transfer-encoding" in headers
        if scope["method"] in _READING or not (has_body or scope["method"] == "POST"):
            return None
        kind = headers.get(b"content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and self._takes(scope):
            return self._refuse(
                415, "JSON_REQUIRED", "send the request with the header `Content-Type: application/json`"
            )
        return None


def _replaying(body: bytes, receive: Receive) -> Receive:
    """Hand a body on that was read already, then whatever comes after it."""
    waiting = [body]

    async def replay() -> MutableMapping[str, Any]:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replay


# Who may do what over the operators' HTTP API: each route's role, and whether the caller's token has it.
#
# Goes by the role that a route was declared with, and by the very match by which the request is
# routed. Fails closed: a route without a role is an admin's. Each call that may change something is
# logged with the id and the name of its token, never the token; so is, once a minute, who has none.
#
# A token is looked up by the digest of its 256 bits of chance: how long a look-up takes tells nothing
# that helps to guess one, so nothing here needs to compare in constant time.


_PUBLIC = "public"
_OF_THE_FRAMEWORK = frozenset({"/openapi.json", "/docs", "/docs/oauth2-redirect"})
"""What the API says of itself: these routes are FastAPI's own and carry no role."""
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_LONGEST_PATH = 300
_LOG = Logger("server.operator")


class Desk(Protocol):
    """Where presented tokens are recognised."""

    def authenticate(self, text: str) -> Credential | None:
        """Say what a token stands for now; None when it opens nothing."""

    def name_of(self, credential: Credential) -> str:
        """Return the name that an operator's token was given."""


class Authorization:
    """Stands before an ASGI application; without a desk, as with auth off, everybody may do everything."""

    def __init__(self, app: App, *, routes: Sequence[BaseRoute], desk: Desk | None, refuse: Refuse) -> None:
        self._app = app
        self._routes = routes
        self._desk = desk
        self._refuse = refuse
        self._log_limit = LogLimit(_LOG.warning)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        needed = needed_role(self._routes, scope)
        if needed is None:
            await self._app(scope, receive, send)
            return
        credential: Credential | None = None
        if self._desk is not None:
            token = bearer_token([value.decode("latin-1") for value in _values(scope, b"authorization")])
            credential = None if token is None else self._desk.authenticate(token)
            if credential is None or credential.role is None:
                self._note_stranger(scope, presented=token is not None)
                await self._unauthorized(presented=token is not None)(scope, receive, _challenging(send))
                return
            if not allows(credential.role, needed):
                self._note_refused(scope, credential, needed)
                await self._forbidden(credential, needed)(scope, receive, send)
                return
            send = _while(partial(self._lives, token), send)
        if scope["method"] not in _READING and needed is not Role.READ:
            send = _logging(send, self._call(scope, credential))
        await self._app(scope, receive, send)

    def stop(self) -> None:
        """Say what was left out of the log."""
        self._log_limit.stop()

    def _note_stranger(self, scope: Scope, *, presented: bool) -> None:
        """Log who has no token of ours, once a minute for each origin: somebody may be guessing."""
        host = (scope.get("client") or ("unknown",))[0]
        reason = "unknown token" if presented else "no token"
        self._log_limit.violation(
            "operator_unauthorized", origin_of(host), kind=reason, address=host, reason=reason
        )

    def _note_refused(self, scope: Scope, credential: Credential, needed: Role) -> None:
        """Log whose role does not suffice, once a minute for each token and role: it may ask on and on."""
        call = self._call(scope, credential)
        self._log_limit.violation(
            "operator_refused", credential.token_id, kind=needed.value, **call, needed=needed.value
        )

    def _lives(self, token: str | None) -> bool:
        return self._desk is not None and self._desk.authenticate(token or "") is not None

    def _call(self, scope: Scope, credential: Credential | None) -> dict[str, object]:
        """What is logged of a call: with auth off nobody is behind it."""
        name = None if self._desk is None or credential is None else self._desk.name_of(credential)
        trace_id = current_trace_id()
        traced = {} if trace_id is None else {"trace_id": trace_id}
        return {
            "method": scope["method"],
            "path": scope["path"][:_LONGEST_PATH],
            "token_id": None if credential is None else credential.token_id,
            "name": name,
            **traced,
        }

    def _unauthorized(self, *, presented: bool) -> App:
        problem = (
            "that is no operator's token here, or no longer: ask for a new one"
            if presented
            else "this needs an operator token: send it as `Authorization: Bearer TOKEN`; an admin makes one"
        )
        return self._refuse(401, "UNAUTHORIZED", f"{problem} (`gpu-agent registry token create`)")

    def _forbidden(self, credential: Credential, needed: Role) -> App:
        return self._refuse(
            403,
            "FORBIDDEN",
            f"this needs the role {needed}, and the token {credential.token_id} has {credential.role}: "
            "ask an admin to do it, or to make you another token",
        )


def needed_role(routes: Sequence[BaseRoute], scope: Scope) -> Role | None:
    """Say which role a request needs; None for what is public.

    Where no route takes the request, whoever may read is told so.
    """
    taking = matching_route(routes, scope)
    if taking is None or scope["path"] in _OF_THE_FRAMEWORK:
        return Role.READ
    stated = role_of(taking)
    if stated == _PUBLIC:
        return None
    return Role.ADMIN if stated is None else Role(stated)


def _values(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key.lower() == name]


def _challenging(send: Send) -> Send:
    """Add the challenge that a 401 must carry."""

    async def challenge(message: Scope) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (b"www-authenticate", b"Bearer")]
        await send(message)

    return challenge


def _while(lives: Callable[[], bool], send: Send) -> Send:
    """End an answer that goes on, such as a stream of events, once its token has ended."""
    ended = False

    async def watch(message: Scope) -> None:
        nonlocal ended
        if ended:
            return
        if message.get("more_body", False) and not lives():
            ended = True
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await send(message)

    return watch


def _logging(send: Send, call: dict[str, object]) -> Send:
    """Log a call with the status of its answer."""

    async def tell(message: Scope) -> None:
        if message["type"] == "http.response.start":
            _LOG.info("operator_request", **call, status=message["status"])
        await send(message)

    return tell


# How each route of the operator API is declared: its role, and how it may refuse.
#
# The role stands with the route, as `x-role` in what the API says of itself, so that whoever
# checks credentials and whoever reads the page go by the same word. Checks nothing.


ROLE = "x-role"
Needed = Literal["public", "read", "operate", "admin"]

_PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
_MEANINGS = {
    400: "The request cannot be read",
    401: "No credential, or one that is not known",
    403: "The credential's role does not suffice, or the request comes from a foreign page",
    404: "There is no such thing",
    409: "What is asked for cannot be done as things stand",
    413: "The request is too long",
    415: "The request is not said to be JSON",
    422: "The request breaks the rules of its own form",
    503: "The registry cannot do this now: ask again in a moment",
}


def api_router(tag: str) -> APIRouter:
    """Make the router of one subject."""
    return APIRouter(tags=[tag], generate_unique_id_function=_operation_id, redirect_slashes=False)


def needs(role: Needed) -> dict[str, Any]:
    """Say which role a route needs."""
    return {ROLE: role} if role == "public" else {ROLE: role, "security": [{"operatorToken": []}]}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Say with which statuses a route may refuse, besides those that any route may."""
    return {status: {"description": _MEANINGS[status], "content": _PROBLEM} for status in statuses}


def role_of(route: object) -> str | None:
    """Return the role that a route was declared with; None for one that was not declared here."""
    extra = route.openapi_extra if isinstance(route, APIRoute) else None
    return None if extra is None else extra.get(ROLE)


def matching_route(routes: Sequence[BaseRoute], scope: Scope) -> BaseRoute | None:
    """Find the route that takes a request; None when none does."""
    return next((route for route in routes if route.matches(scope)[0] is Match.FULL), None)


def _operation_id(route: APIRoute) -> str:
    return route.name


# The trace that an HTTP request belongs to, as its caller names it: `traceparent`, else `X-Request-Id`.
#
# A header that is malformed, or there twice, names none: it is no reason to refuse a request. Answers
# nothing.


_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})(?P<trace>[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"
)
"""W3C Trace Context: version, trace, parent, flags; what later versions append is not ours to read."""


class Tracing:
    """Stands before an ASGI application, which asks within the caller's trace."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on."""
        with caused_by(trace_id_of(scope["headers"]) if scope["type"] == "http" else None):
            await self._app(scope, receive, send)


def trace_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the trace that a request's headers name."""
    told = [(name.lower(), value.decode("latin-1").strip()) for name, value in headers]
    parents = [value for name, value in told if name == b"traceparent"]
    if len(parents) == 1 and (parent := _TRACEPARENT.fullmatch(parents[0])) is not None:
        return parent["trace"]
    requests = [value for name, value in told if name == b"x-request-id"]
    return requests[0] if len(requests) == 1 and is_trace_id(requests[0]) else None
