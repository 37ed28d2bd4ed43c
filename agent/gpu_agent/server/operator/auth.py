"""Who may do what over the operators' HTTP API: each route's role, and whether the caller's token has it.

Goes by the role that a route was declared with, and by the very match by which the request is
routed. Fails closed: a route without a role is an admin's. Each call that may change something is
logged with the id and the name of its token, never the token; so is, once a minute, who has none.

A token is looked up by the digest of its 256 bits of chance: how long a look-up takes tells nothing
that helps to guess one, so nothing here needs to compare in constant time.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from starlette.routing import BaseRoute

from gpu_agent.registry.credentials import Credential, Role, allows
from gpu_agent.runtime.logs import EventLog
from gpu_agent.server.bearer import token_of
from gpu_agent.server.operator.guard import App, Receive, Refuse, Scope, Send
from gpu_agent.server.operator.routes import role_of, taker
from gpu_agent.server.quieting import Quieting, origin_of
from gpu_agent.server.tracing import current_trace_id

_PUBLIC = "public"
_OF_THE_FRAMEWORK = frozenset({"/openapi.json", "/docs", "/docs/oauth2-redirect"})
"""What the API says of itself: these routes are FastAPI's own and carry no role."""
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_LONGEST_PATH = 300
_LOG = EventLog("server.operator")


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
        self._quieting = Quieting(_LOG.warning)

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
            token = token_of([value.decode("latin-1") for value in _values(scope, b"authorization")])
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
            send = _telling(send, self._call(scope, credential))
        await self._app(scope, receive, send)

    def stop(self) -> None:
        """Say what was left out of the log."""
        self._quieting.stop()

    def _note_stranger(self, scope: Scope, *, presented: bool) -> None:
        """Log who has no token of ours, once a minute for each origin: somebody may be guessing."""
        host = (scope.get("client") or ("unknown",))[0]
        reason = "unknown token" if presented else "no token"
        self._quieting.offence(
            "operator_unauthorized", origin_of(host), kind=reason, address=host, reason=reason
        )

    def _note_refused(self, scope: Scope, credential: Credential, needed: Role) -> None:
        """Log whose role does not suffice, once a minute for each token and role: it may ask on and on."""
        call = self._call(scope, credential)
        self._quieting.offence(
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
    taking = taker(routes, scope)
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


def _telling(send: Send, call: dict[str, object]) -> Send:
    """Log a call with the status of its answer."""

    async def tell(message: Scope) -> None:
        if message["type"] == "http.response.start":
            _LOG.info("operator_request", **call, status=message["status"])
        await send(message)

    return tell
