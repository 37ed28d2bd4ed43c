"""What requests to the operators' API hold: bodies and path parameters.

An unknown field is refused, not ignored: a job must not run where its owner believed that it could not. A value of
another type is refused too: a number in quotes is no number.
"""

from collections.abc import Mapping
from typing import Annotated, Literal
from urllib.parse import quote, unquote, unquote_to_bytes

from fastapi import Path
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StringConstraints

from gpu_agent.registry.dispatch.refusals import Excluded, NoAvailableNode
from gpu_agent.registry.job import Job
from gpu_agent.server.api.auth import App, Receive, Refuse, Scope, Send
from gpu_agent.server.views import CheckView, ClaimView, NodeSummary
from gpu_agent.store.base import RegistryEvent
from gpu_agent.wire.messages import MAX_LABELS

# The operator API's JSON: what may be asked, and how a refusal looks. Answers are `views`.
#
# A demand that nobody knows is refused, not ignored: a job must not run where its owner
# believed it could not. Nor is a value taken for another: a number in quotes is no number.


def _whole(value: object) -> object:
    """Read `3.0` as `3`, as JSON Schema does; a number in quotes is still no number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Names = Annotated[tuple[Name, ...], Field(max_length=10_000)]
Label = Annotated[str, StringConstraints(max_length=1024)]
Labels = Annotated[dict[str, Label], Field(max_length=MAX_LABELS)]
Sentence = Annotated[str, StringConstraints(max_length=500)]
Seconds = Annotated[float, Field(strict=True, ge=0, le=10 * 365 * 86400, allow_inf_nan=False)]


class ApiModel(BaseModel):
    """Base of what the API reads and writes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class JobRequest(ApiModel):
    """A job's demands (§5); each one that is left out is no demand."""

    job_id: Name
    required_models: Names = ()
    required_features: Names = ()
    public: StrictBool = False
    gpu_count: Annotated[int, Field(strict=True, ge=1, le=1024), WHOLE] = 1
    gpu_name: Name | None = None
    min_gpu_memory_mb: Annotated[int, Field(strict=True, ge=0, le=2**40), WHOLE] | None = None
    labels: Labels = Field(default_factory=dict)
    allowed_nodes: Names | None = None
    affinity_key: Name | None = None
    priority: Annotated[int, Field(strict=True, ge=-(2**31), lt=2**31), WHOLE] = 0

    def job(self) -> Job:
        """The demands as the fleet reads them."""
        return Job(**{name: getattr(self, name) for name in type(self).model_fields})


class DryRunRequest(JobRequest):
    """A job to try or to explain; nothing is reserved, so it needs no id of its own."""

    job_id: Name = "dry-run"


class DrainRequest(ApiModel):
    """How a node is to be emptied."""

    deadline_seconds: Seconds | None = None
    """After it the node goes offline whatever runs; left out: the registry's default."""
    reason: Sentence = ""


class CordonRequest(ApiModel):
    """Why a node is to get no new jobs."""

    reason: Sentence = ""


class EmptyRequest(ApiModel):
    """An empty object: the path says all."""


class NodeList(ApiModel):
    """Nodes by id, those of one page."""

    auth: Literal["on", "off"]
    """Whether this registry checks credentials."""
    plaintext: bool
    """Whether other machines reach a port of this registry that is not encrypted."""
    nodes: tuple[NodeSummary, ...]
    count: int
    """How many nodes this answer holds."""
    next: str | None
    """Ask for `after` this id to get the next page; null on the last one."""


class EventList(ApiModel):
    """What happened to a node lately, oldest first."""

    node_id: str
    events: tuple[RegistryEvent, ...]


class ClaimList(ApiModel):
    """Claims by job, those of one page."""

    claims: tuple[ClaimView, ...]
    count: int
    next: str | None
    """Ask for `after` this job to get the next page; null on the last one."""


class Reason(ApiModel):
    """Why one node cannot take a job: what the job needs, and what the node has."""

    node_id: str
    reason: str
    need: str
    have: str


class ExplanationAnswer(ApiModel):
    """Every node's answer to one job."""

    job_id: str
    able: tuple[str, ...]
    """Best first."""
    excluded: tuple[Reason, ...]
    counts: dict[str, int]


class Health(ApiModel):
    """That the registry answers, and how much it holds."""

    status: str = "ok"
    version: str
    nodes: int
    connections: int


class Readiness(ApiModel):
    """Whether the registry can do its work, check by check."""

    ready: Literal[True] = True
    checks: tuple[CheckView, ...]


class ThresholdView(ApiModel):
    """One setting that the registry judges by, as it is in force."""

    name: str
    value: float | int | tuple[str, ...]
    unit: str
    default: float | int | tuple[str, ...]
    meaning: str


class ThresholdList(ApiModel):
    """What the registry judges by."""

    thresholds: tuple[ThresholdView, ...]


class FieldError(BaseModel):
    """One thing that is wrong with a request, and where."""

    path: str
    problem: str


class Problem(BaseModel):
    """A refusal, as RFC 9457 has it: `code` for programs, `detail` with the next step for people."""

    model_config = ConfigDict(frozen=True, extra="allow")

    status: int
    title: str
    code: str
    detail: str
    errors: tuple[FieldError, ...] | None = None
    """With `INVALID_REQUEST`: what is wrong, place by place."""
    job_id: str | None = None
    counts: Mapping[str, int] | None = None
    """With `NO_AVAILABLE_NODE`: how many nodes fell to each reason."""
    examples: Mapping[str, tuple[Reason, ...]] | None = None
    """With `NO_AVAILABLE_NODE`: a few nodes of each reason."""
    checks: tuple[CheckView, ...] | None = None
    """With `NOT_READY`: what holds, and what does not."""


def exclusion_reason(one: Excluded) -> Reason:
    """Write one node's reason."""
    return Reason(node_id=one.node_id, reason=one.reason.value, need=one.need, have=one.have)


def no_available_node_fields(verdict: NoAvailableNode) -> dict[str, object]:
    """Write what a failed placement adds to its problem: counts, and examples by reason (A-8)."""
    return {
        "job_id": verdict.job_id,
        "counts": {exclusion.value: count for exclusion, count in verdict.counts.items()},
        "examples": {
            exclusion.value: [exclusion_reason(one).model_dump() for one in shown]
            for exclusion, shown in verdict.examples.items()
        },
    }


# Paths read exactly: what is one part of a path for the caller is one part for us, whatever it holds.
#
# A job's id may hold slashes, percent signs or line ends, which are percent-encoded in a path. A
# server that decodes before it routes cannot tell them from its own. So a path is brought to
# one spelling, routed as it stands, and each part is decoded when it is handed over. Knows no route.


_PLAIN = "!$&'()*+,;=:@"
"""What may stand in a part of a path as it is (RFC 3986), besides letters, digits and `-._~`."""


def _decoded(part: object) -> object:
    return unquote(part) if isinstance(part, str) else part


NodeId = Annotated[
    str, BeforeValidator(_decoded), Path(min_length=1, max_length=128, description="A node's id.")
]
JobId = Annotated[
    str,
    BeforeValidator(_decoded),
    Path(min_length=1, max_length=256, description="A job's id, percent-encoded: a slash in it is `%2F`."),
]
TokenId = Annotated[
    str,
    BeforeValidator(_decoded),
    Path(min_length=1, max_length=64, description="The id in a token's text, between its underscores."),
]


class ExactPaths:
    """Stands before an ASGI application and gives it paths in one spelling."""

    def __init__(self, app: App, *, refuse: Refuse) -> None:
        self._app = app
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on, or refuse a path that is no text."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            path = spelled(scope["raw_path"])
        except UnicodeDecodeError:
            refusal = self._refuse(400, "INVALID_PATH", "the path is not percent-encoded UTF-8: encode it so")
            await refusal(scope, receive, send)
        else:
            await self._app({**scope, "path": path}, receive, send)


def spelled(raw_path: bytes) -> str:
    """Spell a path in the one way in which routes are; raises `UnicodeDecodeError` for what is no text.

    Each part stays one part: `%6E` becomes `n`, while `%2F` and `%25` stay.
    """
    return "/".join(
        quote(unquote_to_bytes(part).decode("utf-8"), safe=_PLAIN) for part in raw_path.split(b"/")
    )
