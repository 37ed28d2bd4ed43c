"""The operators' API of one of several instances: which requests it answers itself, and when.

The leader answers every route from its registry, a standby forwards to the leader. Health, readiness and
metrics are each instance's own, whether it leads or not.

A leader's answer leaves only while its lease is valid: after a request was read (`RequestChecks`), and again
before each part of the answer is sent (`_Term`). An answer that was composed before the lease ended,
and is delivered later, is none that another leader could contradict; one whose composition may have seen the
end is refused. Event streams end with the term, and their readers go on where they were.
"""

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpu_agent.registry.tokens import Credential
from gpu_agent.server.api.auth import RequestChecks
from gpu_agent.server.api.connection import cut_answer
from gpu_agent.server.api.errors import LEADS_NO_MORE, ApiError, problem_response, registry_busy
from gpu_agent.server.event_log import RegistryEventLog
from gpu_agent.server.health import Size
from gpu_agent.server.http_headers import FORWARDED, FORWARDING_MARK, MAY_ANSWER, forwarded_client
from gpu_agent.server.metrics import RequestMetrics, exposition, request_exposition
from gpu_agent.server.service import RegistryService
from gpu_agent.server.web.app import STATIC
from gpu_agent.wire.api import CheckView, MemberView
from gpu_agent.wire.codes import ErrorCode

OWN_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})
"""Answered by each instance of itself."""
EVENTS_PATH = "/v1/events"
"""Answered by each instance of its own copy, which holds stored events only."""
MEMBERS_PATH = "/v1/members"
"""Answered by each instance of its own copy while it has no link to the leader."""

_NOT_FORWARDED_AGAIN = (
    "the instance to which this request was forwarded does not lead any more: send the same request again in "
    "a moment"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceAnswers:
    """What an instance answers itself, and who answers the rest while it does not lead."""

    elsewhere: ASGIApp
    """Answers what the leader must answer."""
    size: Callable[[], Size]
    """How many nodes its copy knows, and how many connections it has."""
    readiness: Callable[[], tuple[CheckView, ...]]
    """Whether nodes may connect to it."""
    metrics: Callable[[], bytes]
    """Its own metrics in Prometheus' text format: all of a standby's, and beside those of the registry."""
    is_linked: Callable[[], bool]
    """Whether it has a link to the leader."""
    members: Callable[[], tuple[MemberView, ...]]
    """The instances, as far as its copy knows them."""
    authenticate: Callable[[str], Credential | None] | None
    """Judges the token of a request that a standby answers itself, from its copy; None with auth off."""
    event_log: RegistryEventLog
    """The stored events that its copy has."""
    copy_is_current: Callable[[], bool]
    """Whether its copy has all that the leader has named."""
    secret: Callable[[], str | None]
    """What instances prove themselves with when they forward; None while it is not known."""


class Here:
    """What this process answers of itself, whether it leads or not."""

    def __init__(self, instance: InstanceAnswers | None, requests: RequestMetrics) -> None:
        self._instance = instance
        self._requests = requests
        self.service: RegistryService | None = None
        """The registry that it leads."""

    @property
    def size(self) -> Size:
        """How many nodes are known and how many connections are open."""
        if self.service is not None:
            return self.service.size
        return Size(nodes=0, connections=0) if self._instance is None else self._instance.size()

    def readiness(self) -> tuple[CheckView, ...]:
        """Check whether this process is one for nodes; a registry on its own also whether it does its work.

        An instance that leads stays ready while it cannot store: a load balancer would end the connections
        of nodes that no other instance can serve better.
        """
        if self._instance is not None:
            return self._instance.readiness()
        return () if self.service is None else self.service.health.readiness()

    def members(self) -> tuple[MemberView, ...]:
        """Return the processes that are this registry, the leader first."""
        if self.service is not None:
            return self.service.members()
        if self._instance is None:
            raise registry_busy(LEADS_NO_MORE)
        return self._instance.members()

    async def exposition(self) -> bytes:
        """Write the metrics of the registry and of this process."""
        of_instance = b"" if self._instance is None else self._instance.metrics()
        of_registry = b"" if self.service is None else await exposition(self.service.health)
        return of_registry + of_instance + request_exposition(self._requests)


class _TermEndedError(Exception):
    """An answer must not leave; ends what composes it."""


class _Term:
    """The time for which this instance leads: an ASGI application that answers while the lease is valid."""

    def __init__(self, registry: ASGIApp, lease_valid: Callable[[], bool]) -> None:
        self._registry = registry
        self._lease_valid = lease_valid
        self._ended = False

    def end(self) -> None:
        """Let no further part of an answer leave."""
        self._ended = True

    def may_answer(self) -> bool:
        return not self._ended and self._lease_valid()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the registry answer; no part of its answer leaves once the lease may have ended."""
        started = False
        scope[MAY_ANSWER] = may_answer = self.may_answer

        async def send_valid(message: Message) -> None:
            nonlocal started
            begins = message["type"] == "http.response.start"
            # A part without bytes says nothing; it lets a stream of events end in order.
            if (begins or message.get("body")) and not may_answer():
                raise _TermEndedError
            started |= begins
            await send(message)

        try:
            await self._registry(scope, receive, send_valid)
        except _TermEndedError:
            if started:
                cut_answer(scope)
            else:
                await _refuse(LEADS_NO_MORE)(scope, receive, send)


class InstanceApi:
    """The ASGI application of an instance, before that of the registry."""

    def __init__(self, registry: ASGIApp, instance: InstanceAnswers, checks: RequestChecks) -> None:
        self._registry = registry
        self._instance = instance
        self._checks = checks
        self._term: _Term | None = None

    def begin_term(self, may_answer: Callable[[], bool]) -> None:
        """Answer from the registry from now on, while `may_answer` says so."""
        self._term = _Term(self._registry, may_answer)

    def end_term(self) -> None:
        """Answer from elsewhere from now on; of the answers under way, no further part leaves."""
        if self._term is not None:
            self._term.end()
        self._term = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        term = self._term
        if scope["path"] in OWN_PATHS:
            await self._registry(scope, receive, send)
            return
        mark = _header(scope, FORWARDING_MARK)
        if term is not None:
            if mark is not None:
                self._believe(mark, scope)
            await term(scope, receive, send)
        elif mark is not None:  # whatever secret it shows: a loop must end also between strangers
            await _refuse(_NOT_FORWARDED_AGAIN)(scope, receive, send)
        elif self._answers_by_copy(scope["path"]):
            await self._registry(scope, receive, send)
        else:
            await self._forward(scope, receive, send)

    def _answers_by_copy(self, path: str) -> bool:
        return (
            path == EVENTS_PATH
            or path.startswith(STATIC)
            or (path == MEMBERS_PATH and not self._instance.is_linked())
        )

    def _believe(self, mark: bytes, scope: Scope) -> None:
        """Take the client's address from a mark, and its `Host` for checked, where an instance wrote it."""
        secret = self._instance.secret()
        client = None if secret is None else forwarded_client(mark, secret)
        if client is not None:
            scope["client"] = client, 0
            scope[FORWARDED] = True

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._checks.check_host((_header(scope, b"host") or b"").decode("latin-1"))
        except ApiError as refused:
            response = problem_response(refused.status_code, refused.code, refused.detail)
            await response(scope, receive, send)
        else:
            await self._instance.elsewhere(scope, receive, send)


def _refuse(detail: str) -> ASGIApp:
    return problem_response(HTTPStatus.SERVICE_UNAVAILABLE, ErrorCode.REGISTRY_BUSY.value, detail)


def _header(scope: Scope, wanted: bytes) -> bytes | None:
    return next((value for name, value in scope["headers"] if name == wanted), None)
