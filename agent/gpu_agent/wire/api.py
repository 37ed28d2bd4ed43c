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
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StringConstraints,
    model_validator,
)

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


GpuCount = Annotated[int, Field(strict=True, ge=1, le=256), WholeNumber]
MemoryMb = Annotated[int, Field(strict=True, ge=0, le=2**40), WholeNumber]
Capability = Annotated[str, StringConstraints(pattern=r"^\d{1,3}(\.\d{1,3})?$")]
LabelValues = (
    Annotated[str, StringConstraints(max_length=1024)]
    | Annotated[
        tuple[Annotated[str, StringConstraints(max_length=1024)], ...], Field(min_length=1, max_length=256)
    ]
)
ClaimTtl = Annotated[float, Field(strict=True, ge=10, le=DAY_SECONDS, allow_inf_nan=False)]
ClaimId = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class JobRequest(ApiRequest):
    """What a job needs (node protocol §5); a field that is left out is no demand."""

    job_id: Name = Field(description="The job's id: one name space for all owners.")
    required_models: Names = Field((), description="Models that must be ready on each node.")
    required_features: Names = Field((), description="Features that each node must have.")
    public: StrictBool = Field(
        default=False, description="A public job: only nodes with accept_public_jobs take it."
    )
    gpu_count: GpuCount | None = Field(
        None,
        description="GPUs on each node; left out: no GPU of its own, a worker on the node serves the job.",
    )
    gpu_sharing: Literal["exclusive", "memory"] | None = Field(
        None,
        description="`exclusive`: whole GPUs, held by no other claim. `memory`: shared while free memory "
        "suffices. Left out: `memory` where only min_gpu_memory_mb is stated, else `exclusive`.",
    )
    gpu_name: Name | None = Field(None, description="Part of the GPUs' name, in upper or lower case.")
    min_gpu_memory_mb: MemoryMb | None = Field(
        None, description="MiB of each GPU: in all, or with sharing by memory what must be free."
    )
    min_compute_capability: Capability | None = Field(
        None, description="The lowest CUDA compute capability, such as `8.0`."
    )
    labels: Annotated[dict[str, LabelValues], Field(max_length=MAX_LABELS)] = Field(
        default_factory=dict,
        description="Labels of each node: a value, or a list of values of which one will do.",
    )
    allowed_nodes: Names | None = Field(None, description="Only these node ids; left out: any.")
    excluded_nodes: Names = Field((), description="None of these node ids.")
    nodes: Annotated[int, Field(strict=True, ge=1, le=256), WholeNumber] = Field(
        1, description="So many different nodes, all or none."
    )
    affinity_key: Name | None = Field(
        None, description="Jobs with the same key are preferably placed on the same node."
    )
    priority: Annotated[int, Field(strict=True, ge=-100, le=100), WholeNumber] = Field(
        0, description="A higher priority is served first while jobs wait."
    )
    ttl_seconds: ClaimTtl | None = Field(
        None,
        description="Seconds until the claim expires unless it is renewed; left out: the registry's default.",
    )
    wait_seconds: Annotated[float, Field(strict=True, ge=0, le=300, allow_inf_nan=False)] = Field(
        0, description="Seconds that this request may wait in the queue until a node is free."
    )

    @model_validator(mode="after")
    def _check_gpus(self) -> Self:
        if self.gpu_sharing == "memory" and not self.min_gpu_memory_mb:
            raise ValueError(
                "gpu_sharing `memory` needs min_gpu_memory_mb: state how much memory must be free on each GPU"
            )
        if self.gpu_sharing == "exclusive" and self.gpu_count is None:
            raise ValueError(
                "gpu_sharing `exclusive` needs gpu_count: state how many GPUs of each node the job needs"
            )
        return self


class DryRunRequest(JobRequest):
    """A job to select a node for or to explain; nothing is reserved, so it needs no id of its own."""

    job_id: Name = Field("dry-run", description="The job's id.")


class RenewRequest(ApiRequest):
    """Which claim of a job to renew, and for how long."""

    claim_id: ClaimId | None = Field(None, description="Left out: your own current claim of the job.")
    ttl_seconds: ClaimTtl | None = Field(
        None, description="Seconds until the claim expires, from now on; left out: as before."
    )


class ReleaseQuery(ApiRequest):
    """Which claim of a job to release."""

    claim_id: ClaimId | None = Field(None, description="Left out: your own current claim of the job.")


class ClaimName(ApiRequest):
    """One claim of one job."""

    job_id: Name = Field(description="The job's id.")
    claim_id: ClaimId | None = Field(None, description="Left out: your own current claim of the job.")


class RenewalsRequest(ApiRequest):
    """Claims to renew together; each has a result of its own."""

    claims: Annotated[tuple[ClaimName, ...], Field(max_length=1000)] = Field(
        description="At most 1,000 claims."
    )


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
    cordoned: str | None = Field(None, description="Who cordoned this GPU, and why; null for none")
    claimed_by: str | None = Field(None, description="The job whose claim holds it exclusively")
    held_for: str | None = Field(
        None,
        description="A job whose claim has ended, and which may still run on it: it is given to no other",
    )
    processes: int | None = Field(None, description="Compute processes on it; null where unknown")


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
    hostname: str | None = None
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


class ClaimNode(ApiAnswer):
    """What a claim reserves on one node."""

    node_id: str = Field(description="The node's id.")
    hostname: str | None = Field(description="The node's hostname, for people; null where it is unknown.")
    gpu_uuids: tuple[str, ...] = Field(
        description="UUIDs of the GPUs; those of a node of schema 1.0 have none, see gpu_indices."
    )
    gpu_indices: tuple[int, ...] = Field(
        description="The driver's indices of the GPUs; at schema 1.0 their positions in the node's list."
    )
    endpoint: str | None = Field(description="Where the node's worker is reached; null where it states none.")


CLAIM_STATES = ("active", "held", "released", "expired", "lost")


class ClaimView(ApiAnswer):
    """A claim. While it is active renew or release it before `expires_at`."""

    claim_id: str = Field(description="Names this claim: send it with each renewal and with the release.")
    job_id: str = Field(description="The job that it is for.")
    state: str = Field(
        description="`active`; `held`: it has ended, and its job may still run; else how it ended.",
        json_schema_extra={"enum": [*CLAIM_STATES]},
    )
    owner: str | None = Field(description="Name of the operator token that made it; null with auth off.")
    nodes: tuple[ClaimNode, ...] = Field(description="Its nodes, each with its GPUs.")
    node_id: str | None = Field(None, description="Of a claim on one node: the node's id.")
    gpu_uuids: tuple[str, ...] | None = Field(None, description="Of a claim on one node: UUIDs of its GPUs.")
    endpoint: str | None = Field(None, description="Of a claim on one node: where its worker is reached.")
    granted_at: float = Field(description="Unix time in seconds.")
    expires_at: float = Field(description="Unix time in seconds at which it expires, or would have expired.")
    expires_in_seconds: float = Field(
        description="Seconds left; count them from the moment you sent the request."
    )
    ttl_seconds: float = Field(description="Seconds that a renewal gives it.")
    ended_at: float | None = Field(None, description="Unix time in seconds; null while it is active.")
    gpu_sharing: str | None = Field(
        None, description="`exclusive` or `memory`; null for a slot without GPUs of its own."
    )
    min_gpu_memory_mb: int | None = Field(None, description="As the job stated it, in MiB.")
    affinity_key: str | None = Field(None, description="As the job stated it.")
    priority: int = Field(0, description="As the job stated it.")


class ClaimNote(ApiAnswer):
    """One thing that happened to a claim."""

    at: float = Field(description="Unix time in seconds.")
    text: str = Field(description="What happened, for a person.")


class ClaimGpuUse(ApiAnswer):
    """How busy one GPU of a claim was while the claim held it."""

    node_id: str = Field(description="The node's id.")
    gpu_uuid: str = Field(description="The GPU's UUID.")
    mean_utilization_percent: float | None = Field(description="Null where the node reported none.")
    highest_utilization_percent: float | None = Field(description="Null where the node reported none.")


class ClaimDetail(ClaimView):
    """A claim and its history, also for an hour after its end."""

    history: tuple[ClaimNote, ...] = Field(description="What happened to it, the oldest first.")
    gpu_use: tuple[ClaimGpuUse, ...] = Field(description="How busy its GPUs were.")


class ClaimList(ApiAnswer):
    """One page of claims, by job."""

    claims: tuple[ClaimView, ...] = Field(description="The claims.")
    count: int = Field(description="How many claims this page holds.")
    next: str | None = Field(
        description="Send this job id as `after` to get the next page; null on the last page"
    )


class RenewalResult(ApiAnswer):
    """What became of one renewal of several."""

    job_id: str = Field(description="The job's id.")
    ok: bool = Field(description="Whether the claim was renewed.")
    claim: ClaimView | None = Field(None, description="The renewed claim; null where it was refused.")
    code: str | None = Field(None, description="Why it was refused, for programs.")
    detail: str | None = Field(None, description="Why it was refused, with the next step.")


class RenewalList(ApiAnswer):
    """The result of each renewal, in the order of the request."""

    results: tuple[RenewalResult, ...] = Field(description="The results.")


class WaitingJob(ApiAnswer):
    """A job that waits for capacity."""

    job_id: str = Field(description="The job's id.")
    owner: str | None = Field(description="Name of the operator token; null with auth off.")
    position: int = Field(description="Its place in the queue, from 1.")
    priority: int = Field(description="A higher one is served first.")
    since: float = Field(description="Unix time in seconds at which it began to wait.")
    waited_seconds: float = Field(description="Seconds since then.")
    open_requests: int = Field(
        description="Requests that wait for its answer; without any nothing is granted."
    )
    reserved_nodes: tuple[str, ...] = Field(description="Node ids on which others leave it what it needs.")
    reason: str = Field(description="Why it found no node when it was tried last, for a person.")
    counts: dict[str, int] = Field(description="How many nodes each reason excluded then.")


class QueueView(ApiAnswer):
    """The jobs that wait, in the order in which they get capacity."""

    jobs: tuple[WaitingJob, ...] = Field(description="The jobs.")
    count: int = Field(description="How many wait.")


class Selection(ApiAnswer):
    """The slots that a claim would get now; nothing is reserved."""

    job_id: str = Field(description="The job's id.")
    nodes: tuple[ClaimNode, ...] = Field(description="The nodes, each with its GPUs.")
    node_id: str | None = Field(None, description="Of one node: its id.")
    gpu_uuids: tuple[str, ...] | None = Field(None, description="Of one node: UUIDs of the GPUs.")
    endpoint: str | None = Field(None, description="Of one node: where its worker is reached.")
    score: int | None = Field(
        description="The first node's score, affinity included; null for a job that has claimed this already"
    )

    @property
    def held(self) -> bool:
        """True when the job has claimed this slot already."""
        return self.score is None


class ExcludedNode(ApiAnswer):
    """Why one node cannot take a job: what the job needs, and what the node has."""

    node_id: str
    hostname: str | None = Field(None, description="The node's hostname; null where it is unknown.")
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
    hostname: str | None = Field(None, description="The node's hostname; null where it is unknown.")
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
