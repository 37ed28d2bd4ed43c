"""Checks every request to the operators' API before its route runs: role, host, origin, body.

The checks run in the route class: FastAPI reads and parses the body before it solves dependencies, so that
a check as a dependency would let a stranger fill the registry's memory. Starlette's host check answers
plain text, this one a problem document. The checks fail closed: a route that declares no role needs an
admin. Each call that may change something is logged with the id and the name of its token, never with the
token; a caller without a valid token is logged once a minute. A token is looked up by the digest of its 256
random bits: how long that takes reveals nothing, so no comparison needs constant time.
"""

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import unquote_to_bytes

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.types import Message

from gpu_agent.registry.events import ANYBODY, Requester
from gpu_agent.registry.tokens import Credential, CredentialKind, Role, allows
from gpu_agent.runtime.logs import Logger
from gpu_agent.server.api.errors import LEADS_NO_MORE, ApiError, refuse_many_fields, registry_busy
from gpu_agent.server.http_headers import (
    FORWARDED,
    MAY_ANSWER,
    bearer_token,
    is_same_origin,
    names_this_host,
    trace_id_of,
)
from gpu_agent.server.log_limit import LogLimit, origin_of
from gpu_agent.server.metrics import RequestMetrics
from gpu_agent.server.service import caused_by, current_trace_id

ROLE = "x-role"
"""Where a route declares its role: in the OpenAPI document, so that checks and readers see the same word."""

PUBLIC = "public"

MAX_BODY_BYTES = 1024 * 1024
"""Far more than the largest job's demands; the rest of a longer body is not read."""
SMALL_BODY_BYTES = 16 * 1024
"""So much of each body is always read: no large requests keep a claim or a renewal out."""
MAX_BODIES_BYTES = 32 * 1024 * 1024
"""Of all bodies together beyond that, from their first byte until they are answered."""
MAX_BODIES_OF_ONE_BYTES = 8 * 1024 * 1024
"""The same, of one token."""

_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_MAX_LOGGED_PATH = 300
_BEHIND = (
    "this instance of the registry does not know that token, and its copy of what is stored may be behind: "
    "send the same request again in a moment, or to another instance"
)
_LOG = Logger("server.operator")

Handler = Callable[[Request], Awaitable[Response]]
Authenticate = Callable[[str], Credential | None]
"""Returns the credential of a presented token; None where it is not valid."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request; `credential` is None on a public route and with auth off."""

    credential: Credential | None
    is_valid: Callable[[], bool]
    """Whether the token is still valid: an endless answer ends with it."""


class ApiRoute(APIRoute):
    """A route whose requests the application's `RequestChecks` check first."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Put the checks before FastAPI's own handler."""
        handler, needed = super().get_route_handler(), needed_role(self)

        async def check_and_handle(request: Request) -> Response:
            checks = cast("RequestChecks", request.app.state.checks)
            return await checks.handle_traced(request, handler, route=self.path_format, needed=needed)

        return check_and_handle


def requester_of(request: Request) -> Requester:
    """Return who acts: the name of the token, or its id if it has none; nobody with auth off."""
    credential = cast("Caller", request.state.caller).credential
    if credential is None:
        return ANYBODY
    return Requester(credential.name or credential.token_id, is_admin=credential.role is Role.ADMIN)


def needed_role(route: APIRoute) -> Role | None:
    """Return the role that a route needs; None for a public one."""
    declared = (route.openapi_extra or {}).get(ROLE, Role.ADMIN)
    return None if declared == PUBLIC else Role(declared)


class RequestChecks:
    """The checks of one API server."""

    def __init__(self, *, hosts: frozenset[str] | None, metrics: RequestMetrics) -> None:
        self._metrics = metrics
        self._hosts = hosts
        """Names under which this registry may be called; None where they cannot be known."""
        self.authenticate: Authenticate | None = None
        """None, as with auth off: every caller may do everything."""
        self.may_lack_tokens: Callable[[], bool] = lambda: False
        """Whether there may be tokens that `authenticate` does not know yet, as in an instance's copy."""
        self._bodies_bytes: Counter[str | None] = Counter()
        """By token id: what its large bodies take."""
        self._log_limit = LogLimit(_LOG.warning)

    async def handle_traced(
        self, request: Request, handler: Handler, *, route: str, needed: Role | None
    ) -> Response:
        """Do as `handle` does, within the trace that the request names."""
        with caused_by(trace_id_of(request.headers.getlist)):
            return await self.handle(request, handler, route=route, needed=needed)

    async def handle(
        self, request: Request, handler: Handler, *, route: str, needed: Role | None
    ) -> Response:
        """Check a request, then let its route answer; raises `ApiError`. Logs changes and measures all."""
        began = time.monotonic()
        caller: Caller | None = None
        status = HTTPStatus.INTERNAL_SERVER_ERROR.value
        try:
            _check_path(request)
            caller = request.state.caller = self.authorize(request, needed)
            response = await self._read_and_handle(request, handler)
            status = response.status_code
        except HTTPException as refused:
            status = refused.status_code
            raise
        except RequestValidationError:
            status = HTTPStatus.UNPROCESSABLE_ENTITY.value
            raise
        finally:
            if caller is not None and request.method not in _READING and needed is not Role.READ:
                _LOG.info("operator_request", **_call(request, caller.credential), status=status)
            took = time.monotonic() - began
            self._metrics.observe(took, method=request.method, route=route, status=status)
        return response

    def authorize(self, request: Request, needed: Role | None) -> Caller:
        """Return who sends a request; raises `ApiError` where it has no token, or not the role."""
        authenticate = self.authenticate
        if needed is None or authenticate is None:
            return Caller(None, lambda: True)
        token = bearer_token(request.headers.getlist("authorization"))
        credential = None if token is None else authenticate(token)
        if token is not None and credential is None and self.may_lack_tokens():
            raise registry_busy(_BEHIND)
        if token is None or credential is None or credential.kind is not CredentialKind.OPERATOR:
            self._log_unauthorized(request, presented=token is not None)
            raise _unauthorized(presented=token is not None)
        if credential.role is None or not allows(credential.role, needed):
            self._log_forbidden(request, credential, needed)
            raise ApiError(
                "FORBIDDEN",
                f"this needs the role {needed}, and the token {credential.token_id} has {credential.role}: "
                "ask an admin to do it, or to make you another token",
            )
        return Caller(credential, lambda: authenticate(token) is not None)

    def stop(self) -> None:
        """Log how many violations were not logged one by one."""
        self._log_limit.stop()

    async def _read_and_handle(self, request: Request, handler: Handler) -> Response:
        """Read a body to its end, within the limits, and let the route answer."""
        self._check_headers(request)
        if _has_small_body(request):
            try:
                await request.body()
                if MAY_ANSWER in request.scope:
                    _check_leads(request)
                return await handler(request)
            except ClientDisconnect:
                return Response(status_code=HTTPStatus.BAD_REQUEST)  # nobody receives it
        credential = cast("Caller", request.state.caller).credential
        token_id = None if credential is None else credential.token_id
        read_bytes = large_bytes = 0

        async def receive() -> Message:
            nonlocal read_bytes, large_bytes
            message = await request.receive()
            read_bytes += len(message.get("body", b""))
            more = max(0, read_bytes - SMALL_BODY_BYTES) - large_bytes
            large_bytes += more
            self._bodies_bytes[token_id] += more
            if more:
                self._check_size(read_bytes, token_id)
            return message

        try:
            bounded = Request(request.scope, receive)
            refuse_many_fields(request, await bounded.body())  # FastAPI finds it read
            if MAY_ANSWER in request.scope:
                _check_leads(request)
            return await handler(bounded)
        except ClientDisconnect:
            return Response(status_code=HTTPStatus.BAD_REQUEST)  # nobody receives it
        finally:
            self._bodies_bytes[token_id] -= large_bytes
            if not self._bodies_bytes[token_id]:
                del self._bodies_bytes[token_id]

    def _check_size(self, body_bytes: int, token_id: str | None) -> None:
        if body_bytes > MAX_BODY_BYTES:
            raise ApiError("BODY_TOO_LARGE", f"a request is at most {MAX_BODY_BYTES} bytes long")
        if token_id is not None and self._bodies_bytes[token_id] > MAX_BODIES_OF_ONE_BYTES:
            raise ApiError(
                "TOO_MANY_BODIES",
                "too many large requests of this token arrive at the same time: send fewer at a time",
            )
        if self._bodies_bytes.total() > MAX_BODIES_BYTES:
            raise ApiError(
                "TOO_MANY_BODIES_OF_ALL",
                "too many large requests arrive at the same time: try again in a moment",
            )

    def check_host(self, host: str) -> None:
        """Refuse a request for another host: a web page whose name resolves to this address sends such."""
        if not names_this_host(host, self._hosts):
            raise ApiError(
                "HOST_NOT_ALLOWED", f"this registry is not called {host!r}: use the address it listens on"
            )

    def _check_headers(self, request: Request) -> None:
        """Refuse a web page that uses this API through a person's browser, and a body that is not JSON."""
        headers = request.headers
        host, origin = headers.get("host", ""), headers.get("origin")
        if not names_this_host(host, self._hosts) and FORWARDED not in request.scope:
            self.check_host(host)
        if origin is not None and not is_same_origin(origin, host):
            raise ApiError(
                "ORIGIN_NOT_ALLOWED", f"pages of {origin!r} may not use this API: use it from a program"
            )
        has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        if request.method in _READING or not (has_body or request.method == "POST"):
            return
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(
                "JSON_REQUIRED", "send the request with the header `Content-Type: application/json`"
            )

    def _log_unauthorized(self, request: Request, *, presented: bool) -> None:
        """Log a caller without a valid token, once a minute for each origin: somebody may be guessing."""
        host = "unknown" if request.client is None else request.client.host
        reason = "unknown token" if presented else "no token"
        self._log_limit.violation(
            "operator_unauthorized", origin_of(host), kind=reason, address=host, reason=reason
        )

    def _log_forbidden(self, request: Request, credential: Credential, needed: Role) -> None:
        """Log a token whose role does not suffice, once a minute for each token and role."""
        call = _call(request, credential)
        self._log_limit.violation(
            "operator_refused", credential.token_id, kind=needed.value, **call, needed=needed.value
        )


def _call(request: Request, credential: Credential | None) -> dict[str, object]:
    """What the log says of a call; with auth off the caller is unknown."""
    trace_id = current_trace_id()
    return {
        "method": request.method,
        "path": request.scope["path"][:_MAX_LOGGED_PATH],
        "token_id": None if credential is None else credential.token_id,
        "name": None if credential is None else credential.name,
        **({} if trace_id is None else {"trace_id": trace_id}),
    }


def _has_small_body(request: Request) -> bool:
    """Whether a request says that its body is one that is always read: then it takes nothing of a limit."""
    headers = request.headers
    length = headers.get("content-length", "0")
    return "transfer-encoding" not in headers and length.isdecimal() and int(length) <= SMALL_BODY_BYTES


def _check_leads(request: Request) -> None:
    """Refuse a request, after it was read, where this instance's lease has ended: it decides nothing then."""
    if not request.scope[MAY_ANSWER]():
        raise registry_busy(LEADS_NO_MORE)


def _check_path(request: Request) -> None:
    """Refuse a path that is no UTF-8: with replaced characters it would name another job."""
    try:
        unquote_to_bytes(request.scope["raw_path"]).decode("utf-8")
    except UnicodeDecodeError:
        raise ApiError("INVALID_PATH", "the path is not percent-encoded UTF-8: encode it so") from None


def _unauthorized(*, presented: bool) -> ApiError:
    problem = (
        "that is no operator token of this registry, or it has ended: ask for a new one"
        if presented
        else "this needs an operator token: send it as `Authorization: Bearer TOKEN`; an admin makes one"
    )
    return ApiError("UNAUTHORIZED", f"{problem} (`gpu-agent registry token create --operator ROLE`)")
