"""The documents of the operators' HTTP API: what a request may hold, and what the registry answers.

Both ends use these models: the registry writes them, the command line and other clients read them, and the
OpenAPI document is generated from them. A request with an unknown field is refused: a job must not run
where its owner believed that it could not. A number in quotes is no number. A reader ignores unknown fields
of an answer, because a newer registry may send more; for the same reason words such as a status are plain
strings in answers, and the OpenAPI document lists those that this version sends. Times are Unix time in
seconds unless a name says otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StringConstraints

from gpu_agent.wire.codes import MAX_LABELS, NODE_ID_PATTERN, ExclusionReason

DAY_SECONDS = 86_400.0
MAX_TTL_SECONDS = 3_650 * DAY_SECONDS
MAX_NOTE = 200
MAX_USES = 1_000_000

TOKEN_KINDS = ("join", "node", "operator")
TOKEN_STATES = ("live", "used_up", "expired", "revoked")
TOKEN_ROLES = ("read", "operate", "admin")


def _whole(value: object) -> object:
    """Read `3.0` as `3`, as JSON Schema does."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WholeNumber = BeforeValidator(_whole)
Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Names = Annotated[tuple[Name, ...], Field(max_length=10_000)]
Labels = Annotated[
    dict[str, Annotated[str, StringConstraints(max_length=1024)]], Field(max_length=MAX_LABELS)
]
Sentence = Annotated[str, StringConstraints(max_length=500)]
Note = Annotated[str, StringConstraints(max_length=MAX_NOTE)]
NodeId = Annotated[str, StringConstraints(pattern=f"^{NODE_ID_PATTERN}$")]
Seconds = Annotated[float, Field(strict=True, ge=0, le=MAX_TTL_SECONDS, allow_inf_nan=False)]
Ttl = Annotated[float, Field(strict=True, gt=0, le=MAX_TTL_SECONDS, allow_inf_nan=False)]


class ApiRequest(BaseModel):
    """Base of what a client sends."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ApiAnswer(BaseModel):
    """Base of what the registry answers."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True, protected_namespaces=())


class EmptyRequest(ApiRequest):
    """An empty object: the path says everything."""


class JobRequest(ApiRequest):
    """What a job needs (node protocol §5); a field that is left out is no demand."""

    job_id: Name
    required_models: Names = ()
    required_features: Names = ()
    public: StrictBool = False
    gpu_count: Annotated[int, Field(strict=True, ge=1, le=1024), WholeNumber] = 1
    gpu_name: Name | None = None
    min_gpu_memory_mb: Annotated[int, Field(strict=True, ge=0, le=2**40), WholeNumber] | None = None
    labels: Labels = Field(default_factory=dict)
    allowed_nodes: Names | None = None
    affinity_key: Name | None = None
    priority: Annotated[int, Field(strict=True, ge=-(2**31), lt=2**31), WholeNumber] = 0


class DryRunRequest(JobRequest):
    """A job to select a node for or to explain; nothing is reserved, so it needs no id of its own."""

    job_id: Name = "dry-run"


class DrainRequest(ApiRequest):
    """How to drain a node."""

    deadline_seconds: Seconds | None = Field(
        None, description="After it the node goes offline whatever runs; left out: the registry's default"
    )
    reason: Sentence = ""


class CordonRequest(ApiRequest):
    """Why a node gets no new jobs."""

    reason: Sentence = ""


class JoinTokenRequest(ApiRequest):
    """A token with which nodes join."""

    kind: Literal["join"]
    ttl_seconds: Ttl | None = Field(DAY_SECONDS, description="null: it never expires")
    uses: Annotated[int, Field(strict=True, ge=1, le=MAX_USES), WholeNumber] | None = Field(
        1, description="How many nodes may join with it; null: any number"
    )
    labels: Labels = Field(default_factory=dict, description="Granted to every node that joins with it")
    note: Note = ""
    node_id: NodeId | None = Field(
        None, description="The only node that may join with it, known or not; null: any"
    )


class OperatorTokenRequest(ApiRequest):
    """A token for a person or a program that uses this API."""

    kind: Literal["operator"]
    role: Literal["read", "operate", "admin"]
    name: Note = Field("", description="Whose token it is")
    ttl_seconds: Ttl | None = Field(None, description="null: it never expires")


class ReclaimRequest(ApiRequest):
    """How long a node that lost its state has to reclaim its id."""

    ttl_seconds: Ttl | None = DAY_SECONDS


class RotationRequest(ApiRequest):
    """How to replace a node's token."""

    at_once: StrictBool = Field(
        default=False, description="Revoke the old token before the node has the new one"
    )


class GpuView(ApiAnswer):
    """A GPU with the figures of the node's last heartbeat; null where a figure is unknown."""

    uuid: str = Field(description="A GPU declared without a UUID is named by its index: `#0`, `#1`, …")
    name: str
    memory_mb: int | None
    memory_used_mb: int | None
    utilization_percent: float | None
    temperature_c: float | None
    power_w: float | None
    health: str
    reasons: tuple[str, ...]
    usable: bool
    parent_uuid: str | None


class ModelView(ApiAnswer):
    """An installed model; `status` is what the node reported last."""

    model_id: str
    version: str
    kind: str | None
    enabled: bool
    status: str


class CheckView(ApiAnswer):
    """One health check of a node, or one readiness check of the registry."""

    name: str
    ok: bool
    detail: str


class NodeSummary(ApiAnswer):
    """A node in a list."""

    node_id: str
    status: str
    reason_code: str
    reason: str
    since: float
    clears_when: str | None = Field(description="What would change the status; null for a ready node")
    connected: bool
    gpus: tuple[GpuView, ...]
    installed_models: tuple[ModelView, ...]
    in_flight_jobs: int
    max_concurrent_jobs: int
    accept_public_jobs: bool
    last_heartbeat_age_seconds: float | None
    simulated: bool
    cordoned: str | None = Field(description="The reason of the cordon; null for a node without one")
    endpoint: str | None
    address: str | None
    agent_version: str
    labels: dict[str, str]
    stored: bool = Field(
        default=True,
        description="False while a change of this node waits for the store: a crash would undo that change",
    )


class NodeList(ApiAnswer):
    """One page of nodes, by id."""

    auth: Literal["on", "off"] = Field(description="Whether this registry checks credentials")
    plaintext: bool = Field(
        description="Whether other machines reach a port of this registry that is not encrypted"
    )
    nodes: tuple[NodeSummary, ...]
    count: int = Field(description="How many nodes this page holds")
    next: str | None = Field(
        description="Send this id as `after` to get the next page; null on the last page"
    )


class DrainView(ApiAnswer):
    """A drain in progress; at `deadline` the node goes offline whatever runs."""

    by_operator: bool
    deadline: float
    reason: str


class NodeTokenView(ApiAnswer):
    """The token with which a node authenticates: its id, never its secret."""

    token_id: str
    rotating: bool = Field(description="A new token was issued, and the node has not used it yet")
    joined_by: str | None = Field(description="The join token with which the node joined")


@dataclass(frozen=True, slots=True)
class RegistryEvent:
    """One thing that happened; docs/logs.md explains every `event`.

    `id` grows with every event; None for an event that is not stored.
    """

    at: float
    event: str
    node_id: str | None = None
    fields: Mapping[str, object] = field(default_factory=dict)
    id: int | None = None


class NodeDetail(NodeSummary):
    """A node in full: what its status rests on, and what happened to it lately."""

    previous_status: str | None
    checks: tuple[CheckView, ...]
    healthy_heartbeats: int
    heartbeats_needed: int
    drain: DrainView | None
    granted_labels: dict[str, str] = Field(
        description="Those of `labels` that its join token granted, whatever the node declares"
    )
    token: NodeTokenView | None = Field(
        description="null for a node without a token: auth was off when it joined, or its token was revoked"
    )
    features: tuple[str, ...]
    cpu_percent: float | None
    mem_percent: float | None
    probe_age_seconds: float | None
    platform: str | None
    cpu_cores: int
    memory_gb: int
    driver_version: str | None
    cuda_version: str | None
    capability_schema_version: str
    heartbeat_interval_seconds: float
    heartbeat_timeout_seconds: float
    session_epoch: int
    round_trip_ms: float | None = Field(
        description="Of the network to the node and back; null where it is unknown"
    )
    claimed_jobs: tuple[str, ...]
    running_jobs: tuple[str, ...] | None
    events: tuple[RegistryEvent, ...]


class EventList(ApiAnswer):
    """A node's latest events, oldest first."""

    node_id: str
    events: tuple[RegistryEvent, ...]


class Placement(ApiAnswer):
    """A slot that a job has claimed. Renew or release the claim before `expires_at`."""

    job_id: str
    node_id: str
    gpu_uuids: tuple[str, ...] = Field(
        description="Only GPUs that have a UUID; a node of schema 1.0 declares none"
    )
    endpoint: str | None
    expires_at: float


class ClaimView(Placement):
    """A claim in a list."""

    granted_at: float
    memory_mb: int = Field(description="GPU memory that the job needs on each of its GPUs")
    affinity_key: str | None


class ClaimList(ApiAnswer):
    """One page of claims, by job."""

    claims: tuple[ClaimView, ...]
    count: int
    next: str | None = Field(
        description="Send this job id as `after` to get the next page; null on the last page"
    )


class Selection(ApiAnswer):
    """The slot that a claim would get now; nothing is reserved."""

    job_id: str
    node_id: str
    gpu_uuids: tuple[str, ...]
    endpoint: str | None
    score: int | None = Field(
        description="The node's score, affinity included; null for a job that has claimed this slot already"
    )

    @property
    def held(self) -> bool:
        """True when the job has claimed this slot already."""
        return self.score is None


class ExcludedNode(ApiAnswer):
    """Why one node cannot take a job: what the job needs, and what the node has."""

    node_id: str
    reason: str
    need: str
    have: str


class ExplanationView(ApiAnswer):
    """Every node's answer to one job."""

    job_id: str
    eligible: tuple[str, ...] = Field(description="Nodes that could take the job, the best first")
    excluded: tuple[ExcludedNode, ...]
    counts: dict[str, int] = Field(description="How many nodes each reason excludes")


class NodeExclusionView(ApiAnswer):
    """One reason why a node is excluded for some jobs; the agent's own socket answers it too."""

    reason: str = Field(
        description="the registry's code for it; docs/operating.md explains each",
        json_schema_extra={"enum": [reason.value for reason in ExclusionReason]},
    )
    refuses: str = Field(description="which jobs, for a person; `every job` is all of them")
    need: str = Field(description="what such a job needs")
    have: str = Field(description="what this node has instead")
    clears_when: str = Field(description="what would end it; empty where that is not known")


class ModelVersion(ApiAnswer):
    """One installed version of a model; `status` is what the node reports."""

    version: str
    enabled: bool
    status: str


class ModelState(ApiAnswer):
    """The state of one model on a node."""

    model_id: str
    ready: bool
    state: str = Field(
        description="`ready`, `disabled`, `not installed`, or the status of the first enabled version"
    )
    versions: tuple[ModelVersion, ...]
    reported: str | None = Field(
        description="What the node's `capability_state` says; it overrides the versions' own status"
    )


class NodeExplanation(ApiAnswer):
    """Which jobs a node would refuse now, and why."""

    node_id: str
    refuses_every_job: bool
    exclusions: tuple[NodeExclusionView, ...] = Field(
        description="What can change, in the order of the dispatch filters"
    )
    limits: tuple[NodeExclusionView, ...] = Field(description="What the node is: a job beyond it never fits")
    model: ModelState | None


class ExclusionsView(ApiAnswer):
    """One minute in which dispatches failed."""

    window_start: float
    window_end: float
    failed: int = Field(description="Dispatches that found no node")
    counts: dict[str, int] = Field(
        description="How many nodes each reason excluded, over all these dispatches"
    )
    examples: dict[str, tuple[ExcludedNode, ...]]
    last_jobs: tuple[str, ...]


class ExclusionsList(ApiAnswer):
    """Why dispatches failed in the last hour, by minute, the oldest first."""

    windows: tuple[ExclusionsView, ...]


class NewToken(ApiAnswer):
    """A token that was just created; no other answer holds its text."""

    token_id: str
    token: str = Field(repr=False)
    expires_at: float | None = Field(description="null when it never expires")


class TokenView(ApiAnswer):
    """A join or operator token, without its secret."""

    token_id: str
    kind: str = Field(json_schema_extra={"enum": [*TOKEN_KINDS]})
    state: str = Field(json_schema_extra={"enum": [*TOKEN_STATES]})
    created_at: float
    expires_at: float | None
    revoked_at: float | None
    note: str
    uses: int | None = Field(description="How many nodes may join with it; null for any number")
    spent: int = Field(description="How many nodes have joined: a node counts from its first heartbeat")
    reserved: int = Field(
        description="How many nodes have registered without a heartbeat yet; a later one may replace them"
    )
    labels: dict[str, str]
    node_id: str | None = Field(
        description="The only id that a node can get with it; null for every other token"
    )
    role: Annotated[str, Field(json_schema_extra={"enum": [*TOKEN_ROLES]})] | None
    name: str


class TokenList(ApiAnswer):
    """Every join and operator token, the oldest first; no secrets."""

    tokens: tuple[TokenView, ...]
    count: int


class HealthAnswer(ApiAnswer):
    """The registry answers; how much it holds."""

    status: str = "ok"
    version: str
    nodes: int
    connections: int


class Readiness(ApiAnswer):
    """The registry can work."""

    ready: Literal[True] = True
    checks: tuple[CheckView, ...]


class ThresholdView(ApiAnswer):
    """One threshold that is in force."""

    name: str
    value: float | int | tuple[str, ...]
    unit: str
    default: float | int | tuple[str, ...]
    meaning: str


class ThresholdList(ApiAnswer):
    """The thresholds by which the registry judges nodes and jobs."""

    thresholds: tuple[ThresholdView, ...]


class FieldError(ApiAnswer):
    """What is wrong with one field of a request."""

    path: str
    problem: str


class Problem(ApiAnswer):
    """A refusal (RFC 9457): `code` for programs, `detail` with the next step for people."""

    model_config = ConfigDict(extra="allow")

    status: int
    title: str
    code: str
    detail: str
    errors: tuple[FieldError, ...] | None = Field(
        None, description="With `INVALID_REQUEST`: what is wrong, field by field"
    )
    job_id: str | None = None
    counts: dict[str, int] | None = Field(
        None, description="With `NO_AVAILABLE_NODE`: how many nodes each reason excludes"
    )
    examples: dict[str, tuple[ExcludedNode, ...]] | None = Field(
        None, description="With `NO_AVAILABLE_NODE`: a few nodes for each reason"
    )
    checks: tuple[CheckView, ...] | None = Field(
        None, description="With `NOT_READY`: the checks that hold and those that fail"
    )
