"""The documents of the operators' HTTP API: what a request may hold, and what the registry answers.

Both ends use these models: the registry writes them, the command line and other clients read them, and the
OpenAPI document is generated from them. A request with an unknown field is refused: a job must not run
where its owner believed that it could not. A number in quotes is no number. A reader ignores unknown fields
of an answer, because a newer registry may send more; for the same reason words such as a status are plain
strings in answers, and the OpenAPI document lists those that this version sends. Words that a node chooses,
such as a GPU's health, are served as the node sent them: the document lists ours and allows others. Times
are Unix time in seconds unless a name says otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from gpu_agent.wire.claim_documents import (
    ClaimDetail,
    ClaimGpuUse,
    ClaimList,
    ClaimName,
    ClaimNode,
    ClaimNote,
    ClaimView,
    DryRunRequest,
    JobRequest,
    QueueView,
    ReleaseQuery,
    RenewalList,
    RenewalResult,
    RenewalsRequest,
    RenewRequest,
    Selection,
    WaitingJob,
)
from gpu_agent.wire.codes import (
    SUPPORTED_SCHEMA_VERSIONS,
    ExclusionReason,
    GpuStatus,
    NodeStatus,
    ReasonCode,
)
from gpu_agent.wire.documents import (
    DAY_SECONDS,
    MAX_NOTE,
    MAX_TTL_SECONDS,
    MAX_USES,
    PROBLEM_CODES,
    ApiAnswer,
    ApiRequest,
    Flag,
    Name,
    Names,
    NodeId,
    Note,
    Seconds,
    Sentence,
    open_words,
)
from gpu_agent.wire.fleet_documents import EligibleNode
from gpu_agent.wire.inventory import Health, ModelStatus
from gpu_agent.wire.token_documents import (
    JoinTokenRequest,
    NewToken,
    OperatorTokenRequest,
    ReclaimRequest,
    RotationRequest,
    SignInLink,
    TokenList,
    TokenView,
)

__all__ = [
    "DAY_SECONDS",
    "MAX_NOTE",
    "MAX_TTL_SECONDS",
    "MAX_USES",
    "ApiAnswer",
    "ApiRequest",
    "CheckView",
    "ClaimDetail",
    "ClaimGpuUse",
    "ClaimList",
    "ClaimName",
    "ClaimNode",
    "ClaimNote",
    "ClaimView",
    "CordonRequest",
    "DrainRequest",
    "DrainView",
    "DryRunRequest",
    "EligibleNode",
    "EmptyRequest",
    "EventList",
    "ExcludedNode",
    "ExclusionsList",
    "ExclusionsView",
    "ExplanationView",
    "FieldError",
    "Flag",
    "GpuView",
    "HealthAnswer",
    "JobRequest",
    "JoinTokenRequest",
    "MemberList",
    "MemberRole",
    "MemberView",
    "ModelState",
    "ModelVersion",
    "ModelView",
    "Name",
    "Names",
    "NewToken",
    "NodeCheckView",
    "NodeDetail",
    "NodeExclusionView",
    "NodeExplanation",
    "NodeId",
    "NodeList",
    "NodeSummary",
    "NodeTokenView",
    "Note",
    "OperatorTokenRequest",
    "Problem",
    "QueueView",
    "Readiness",
    "ReasonRequest",
    "ReclaimRequest",
    "RegistryEvent",
    "ReleaseQuery",
    "RenewRequest",
    "RenewalList",
    "RenewalResult",
    "RenewalsRequest",
    "RotationRequest",
    "Selection",
    "Sentence",
    "SignInLink",
    "ThresholdList",
    "ThresholdView",
    "TokenList",
    "TokenView",
    "WaitingJob",
]


_MODEL_STATES = ("ready", "disabled", "downloading", "not_installed", "error")


class EmptyRequest(ApiRequest):
    """An empty object: the path says everything."""


class DrainRequest(ApiRequest):
    """How to drain a node."""

    deadline_seconds: Seconds | None = Field(
        None, description="After so many seconds the node goes offline whatever runs; left out: the default"
    )
    reason: Sentence = Field("", description="Why, for people who look at the node; at most 500 characters.")


class CordonRequest(ApiRequest):
    """Why a node gets no new jobs."""

    reason: Sentence = Field("", description="Why, for people who look at the node; at most 500 characters.")


class ReasonRequest(ApiRequest):
    """Why an operator does something; the path says what."""

    reason: Sentence = Field("", description="Why, for people who read the events; at most 500 characters.")


class GpuView(ApiAnswer):
    """A GPU with the figures of the node's last heartbeat; null where a figure is unknown."""

    uuid: str = Field(description="A GPU declared without a UUID is named by its index: `#0`, `#1`, …")
    index: int | None = Field(
        None, description="The number by which its driver lists it; of a MIG device: that of its GPU."
    )
    name: str = Field(description="The GPU's name as its driver states it.")
    memory_mb: int | None = Field(description="Memory in all, in MiB.")
    memory_used_mb: int | None = Field(description="Memory in use, in MiB.")
    utilization_percent: float | None = Field(description="How busy it is, 0 to 100 %.")
    temperature_c: float | None = Field(description="Degrees Celsius.")
    power_w: float | None = Field(description="Watts.")
    health: Annotated[str, open_words(*Health)] = Field(
        description="What the node reports: a GPU that is `ok` or `degraded` works."
    )
    reasons: tuple[str, ...] = Field(
        description="Why its health is not `ok`; *GPU health* in the documentation explains each."
    )
    usable: bool = Field(description="Whether jobs may use it.")
    parent_uuid: str | None = Field(description="Of a MIG device: the UUID of its GPU.")
    cordoned: str | None = Field(None, description="Who cordoned this GPU, and why; null for none")
    claimed_by: str | None = Field(None, description="The job whose claim holds it exclusively")
    shared_by: tuple[str, ...] = Field((), description="Jobs whose claims share its memory.")
    held_for: str | None = Field(
        None,
        description="A job whose claim has ended, and which may still run on it: it is given to no other",
    )
    processes: int | None = Field(None, description="Compute processes on it; null where unknown")
    idle: bool = Field(
        default=False, description="Whether the claim that holds it has left all its GPUs idle: `claim_idle`."
    )
    idle_since: float | None = Field(
        None, description="Since when they are idle, in Unix seconds; null unless `idle`."
    )
    status: Annotated[str, open_words(*GpuStatus)] | None = Field(
        None,
        description="What it is for jobs now, the first that applies; null for the parent of MIG devices.",
    )
    since: float | None = Field(
        None,
        description="Unix time at which a heartbeat first reported its `health`, as far as this leader "
        "knows; null for `ok`.",
    )
    next_step: str | None = Field(
        None, description="What to do about the worst of its `reasons`; null where there is nothing to do."
    )


class ModelView(ApiAnswer):
    """An installed model; `status` is what the node reported last."""

    model_id: str = Field(description="The model's id.")
    version: str = Field(description="The installed version.")
    kind: str | None = Field(description="What it is for, such as `llm`; null where it is not stated.")
    enabled: bool = Field(description="Whether the node offers it.")
    status: Annotated[str, open_words(*ModelStatus)] = Field(description="Only a `ready` one can serve.")


class CheckView(ApiAnswer):
    """One health check of a node, or one readiness check of the registry."""

    name: str = Field(description="What was checked.")
    ok: bool = Field(description="Whether it holds.")
    detail: str = Field(description="What was found, for a person.")


class NodeCheckView(ApiAnswer):
    """One admission check, as the node reports it."""

    name: str = Field(description="What was checked.")
    scope: str = Field(description="`node`, or the UUID of the GPU that was checked.")
    ok: bool = Field(description="Whether it passed.")
    detail: str = Field(description="What was found, for a person.")
    at: float = Field(description="When it ended, by the node's clock, as Unix time.")
    required: bool = Field(description="Whether `[admission]` names it: other checks are only shown.")


class NodeSummary(ApiAnswer):
    """A node in a list."""

    node_id: str = Field(description="The node's id.")
    hostname: str | None = Field(
        None, description="The machine's name, for people; null where it is unknown."
    )
    status: str = Field(description="`ready` nodes take jobs.", json_schema_extra={"enum": [*NodeStatus]})
    reason_code: str = Field(
        description="Why it has this status, for programs.", json_schema_extra={"enum": [*ReasonCode]}
    )
    reason: str = Field(description="Why it has this status, for a person.")
    since: float = Field(description="Unix time in seconds at which it got this status.")
    clears_when: str | None = Field(description="What would change the status; null for a ready node")
    connected: bool = Field(description="Whether its connection is live.")
    gpus: tuple[GpuView, ...] = Field(description="Its GPUs.")
    installed_models: tuple[ModelView, ...] = Field(description="Its models.")
    in_flight_jobs: int = Field(description="Slots that jobs occupy.")
    max_concurrent_jobs: int = Field(description="How many slots it has.")
    accept_public_jobs: bool = Field(description="Whether it takes jobs of the public pool.")
    last_heartbeat_age_seconds: float | None = Field(
        description="Seconds since its last heartbeat; null before the first one."
    )
    simulated: bool = Field(description="Whether its hardware is simulated.")
    cordoned: str | None = Field(description="The reason of the cordon; null for a node without one")
    endpoint: str | None = Field(description="Where its worker is reached; null where it states none.")
    address: str | None = Field(description="From where it connected; null where that is unknown.")
    agent_version: str = Field(description="The version of the node's software.")
    labels: dict[str, str] = Field(description="Its labels, those of its join token included.")
    cpu_percent: float | None = Field(
        None, description="How busy its CPU is, 0 to 100 %; null where it is unknown."
    )
    mem_percent: float | None = Field(
        None, description="Main memory in use, 0 to 100 %; null where it is unknown."
    )
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
    nodes: tuple[NodeSummary, ...] = Field(description="The nodes.")
    count: int = Field(description="How many nodes this page holds")
    next: str | None = Field(
        description="Send this id as `after` to get the next page; null on the last page"
    )


class DrainView(ApiAnswer):
    """A drain in progress; at `deadline` the node goes offline whatever runs."""

    by_operator: bool = Field(description="Whether an operator asked for it; else the node did.")
    deadline: float = Field(description="Unix time in seconds.")
    reason: str = Field(description="Why, for a person.")


class NodeTokenView(ApiAnswer):
    """The token with which a node authenticates: its id, never its secret."""

    token_id: str = Field(description="Names the token in lists and logs; no secret.")
    rotating: bool = Field(description="A new token was issued, and the node has not used it yet")
    joined_by: str | None = Field(description="The join token with which the node joined")


@dataclass(frozen=True, slots=True)
class RegistryEvent:
    """One thing that happened; *Log events* in the documentation explains every `event`.

    `id` grows with every event; None for an event that is not stored.
    """

    at: Annotated[float, Field(description="Unix time in seconds.")]
    event: Annotated[str, Field(description="What happened; see *Log events* in the documentation.")]
    node_id: Annotated[str | None, Field(description="The node; null where it concerns none.")] = None
    fields: Annotated[Mapping[str, object], Field(description="What the event says, by name.")] = field(
        default_factory=dict
    )
    id: Annotated[int | None, Field(description="Its number; null for one that is not stored.")] = None


class NodeDetail(NodeSummary):
    """A node in full: what its status rests on, and what happened to it lately."""

    previous_status: Annotated[str, Field(json_schema_extra={"enum": [*NodeStatus]})] | None = Field(
        description="The status before this one; null for the first."
    )
    checks: tuple[CheckView, ...] = Field(description="The health checks of its last heartbeat.")
    node_checks: tuple[NodeCheckView, ...] | None = Field(
        None,
        description="The admission checks that it reports; null for a node that runs none, and before its "
        "first heartbeat.",
    )
    healthy_heartbeats: int = Field(description="Healthy heartbeats in a row.")
    heartbeats_needed: int = Field(description="How many more of them it needs to become ready.")
    drain: DrainView | None = Field(description="The drain in force; null for none.")
    granted_labels: dict[str, str] = Field(
        description="Those of `labels` that its join token granted, whatever the node declares"
    )
    token: NodeTokenView | None = Field(
        description="null for a node without a token: auth was off when it joined, or its token was revoked"
    )
    features: tuple[str, ...] = Field(description="What it supports besides models.")
    probe_age_seconds: float | None = Field(
        description="Age of its last GPU reading in seconds; null where it is unknown."
    )
    platform: Annotated[str, open_words("linux", "windows", "macos")] | None = Field(
        description="Its operating system; null where it is not stated."
    )
    cpu_cores: int = Field(description="How many CPU cores it has.")
    memory_gb: int = Field(description="Main memory in GiB.")
    driver_version: str | None = Field(description="The GPU driver's version; null where it is unknown.")
    cuda_version: str | None = Field(description="The CUDA version of the driver; null where it is unknown.")
    capability_schema_version: str = Field(
        description="The version of the declaration that it sends.",
        json_schema_extra={"enum": [*SUPPORTED_SCHEMA_VERSIONS]},
    )
    heartbeat_interval_seconds: float = Field(description="Seconds between its heartbeats.")
    heartbeat_timeout_seconds: float = Field(
        description="After so many seconds without a heartbeat it is offline."
    )
    session_epoch: int = Field(description="Grows with each of its sessions.")
    round_trip_ms: float | None = Field(
        description="Of the network to the node and back; null where it is unknown"
    )
    claimed_jobs: tuple[str, ...] = Field(description="Jobs that hold a claim on it.")
    running_jobs: tuple[str, ...] | None = Field(
        description="Jobs that it reports; null where it reports none by id."
    )
    events: tuple[RegistryEvent, ...] = Field(description="What happened to it lately, the oldest first.")


class EventList(ApiAnswer):
    """A node's latest events, oldest first."""

    node_id: str = Field(description="The node's id.")
    events: tuple[RegistryEvent, ...] = Field(description="The events, the oldest first.")


class ExcludedNode(ApiAnswer):
    """Why one node cannot take a job: what the job needs, and what the node has."""

    node_id: str = Field(description="The node's id.")
    hostname: str | None = Field(None, description="The node's hostname; null where it is unknown.")
    reason: str = Field(
        description="The first filter that the node fails.", json_schema_extra={"enum": [*ExclusionReason]}
    )
    need: str = Field(description="What the job needs, for a person.")
    have: str = Field(description="What the node has, for a person.")
    missing_gpus: int = Field(
        0, description="In an explanation: how many usable or free GPUs it lacks, where these exclude it."
    )
    clears_when: str | None = Field(None, description="In an explanation with `limit`: what would end it.")


class ExplanationView(ApiAnswer):
    """Every node's answer to one job."""

    job_id: str = Field(description="The job's id.")
    eligible: tuple[str, ...] = Field(description="Nodes that could take the job, the best first")
    eligible_nodes: tuple[EligibleNode, ...] = Field((), description="The same, with their hostnames.")
    excluded: tuple[ExcludedNode, ...] = Field(
        description="Nodes that could not take it, each with its reason; those that lack least come first."
    )
    nodes_needed: int = Field(1, description="How many eligible nodes the job needs.")
    counts: dict[str, int] = Field(description="How many nodes each reason excludes")


class NodeExclusionView(ApiAnswer):
    """One reason why a node is excluded for some jobs; the agent's own socket answers it too."""

    reason: str = Field(
        description="the registry's code for it; *Statuses and reasons* in the documentation explains each",
        json_schema_extra={"enum": [reason.value for reason in ExclusionReason]},
    )
    refuses: str = Field(description="which jobs, for a person; `every job` is all of them")
    need: str = Field(description="what such a job needs")
    have: str = Field(description="what this node has instead")
    clears_when: str = Field(description="what would end it; empty where that is not known")


class ModelVersion(ApiAnswer):
    """One installed version of a model; `status` is what the node reports."""

    version: str = Field(description="The version.")
    enabled: bool = Field(description="Whether the node offers it.")
    status: Annotated[str, open_words(*ModelStatus)] = Field(description="What the node reports of it.")


class ModelState(ApiAnswer):
    """The state of one model on a node."""

    model_id: str = Field(description="The model's id.")
    ready: bool = Field(description="Whether jobs may use it.")
    state: Annotated[str, open_words(*_MODEL_STATES)] = Field(
        description="`ready`, or why jobs may not use it; of several versions the first enabled one counts."
    )
    versions: tuple[ModelVersion, ...] = Field(description="Its installed versions.")
    reported: Annotated[str, open_words(*ModelStatus)] | None = Field(
        description="What the node's `capability_state` says; it overrides the versions' own status"
    )


class NodeExplanation(ApiAnswer):
    """Which jobs a node would refuse now, and why."""

    node_id: str = Field(description="The node's id.")
    hostname: str | None = Field(None, description="The node's hostname; null where it is unknown.")
    refuses_every_job: bool = Field(description="Whether it takes no job at all now.")
    exclusions: tuple[NodeExclusionView, ...] = Field(
        description="What can change, in the order of the dispatch filters"
    )
    limits: tuple[NodeExclusionView, ...] = Field(description="What a job may not need here")
    model: ModelState | None = Field(description="The model that was asked about; null for none.")


class ExclusionsView(ApiAnswer):
    """One minute in which dispatches failed."""

    window_start: float = Field(description="Unix time in seconds.")
    window_end: float = Field(description="Unix time in seconds.")
    failed: int = Field(description="Dispatches that found no node")
    counts: dict[str, int] = Field(
        description="How many nodes each reason excluded, over all these dispatches"
    )
    examples: dict[str, tuple[ExcludedNode, ...]] = Field(description="A few nodes for each reason.")
    last_jobs: tuple[str, ...] = Field(description="The jobs that failed last in it.")


class ExclusionsList(ApiAnswer):
    """Why dispatches failed in the last hour, by minute, the oldest first."""

    windows: tuple[ExclusionsView, ...] = Field(description="The minutes, the oldest first.")


class HealthAnswer(ApiAnswer):
    """The registry answers; how much it holds."""

    status: str = Field("ok", description="Always `ok`.", json_schema_extra={"enum": ["ok"]})
    version: str = Field(description="The registry's version.")
    nodes: int = Field(description="How many nodes are known.")
    connections: int = Field(description="How many connections of nodes are open.")


class Readiness(ApiAnswer):
    """The registry can work."""

    ready: Literal[True] = Field(default=True, description="Always true.")
    checks: tuple[CheckView, ...] = Field(description="What was checked.")


class ThresholdView(ApiAnswer):
    """One threshold that is in force."""

    name: str = Field(description="The name of the setting.")
    value: float | int | tuple[str, ...] = Field(description="What is in force.")
    unit: str = Field(description="The unit of the value.")
    default: float | int | tuple[str, ...] = Field(description="What holds unless it is set.")
    meaning: str = Field(description="What it decides.")


class ThresholdList(ApiAnswer):
    """The thresholds by which the registry judges nodes and jobs."""

    thresholds: tuple[ThresholdView, ...] = Field(description="The thresholds.")


class MemberRole(StrEnum):
    """What an instance of the registry does."""

    LEADER = "leader"
    """It decides."""
    STANDBY = "standby"
    """It follows, and may lead one day."""
    GATEWAY = "gateway"
    """It holds node connections."""


class MemberView(ApiAnswer):
    """One process of the registry."""

    name: str = Field(description="Its name: the machine's, or the gateway's with its number.")
    role: Annotated[str, open_words(*MemberRole)] = Field(
        description="`leader` decides, `standby` follows and may lead, `gateway` holds node connections."
    )
    url: str | None = Field(
        None, description="Where its API answers; null for a gateway, and where that is not known."
    )
    term: int | None = Field(
        None, description="The leader's term; null without etcd, where there is one leader."
    )
    since: float = Field(description="Since when it does that, in Unix seconds.")
    nodes: int | None = Field(
        description="How many node connections it holds; null where an instance without a link to the leader "
        "answers, for all others."
    )
    lag_seconds: float | None = Field(
        None,
        description="How many seconds its copy of etcd is behind the leader's commits; null for the "
        "leader, and where it is not known.",
    )


class MemberList(ApiAnswer):
    """The processes that are this registry, the leader first."""

    members: tuple[MemberView, ...] = Field(description="The processes.")


class FieldError(ApiAnswer):
    """What is wrong with one field of a request."""

    path: str = Field(description="The field, such as `$.gpu_count`.")
    problem: str = Field(description="What is wrong with it.")


class Problem(ApiAnswer):
    """A refusal (RFC 9457): `code` for programs, `detail` with the next step for people."""

    model_config = ConfigDict(extra="allow")

    status: int = Field(description="The status of HTTP.")
    title: str = Field(description="The code, for a person.")
    code: str = Field(
        description="Why it was refused, for programs.", json_schema_extra={"enum": [*PROBLEM_CODES]}
    )
    detail: str = Field(description="What is wrong, with the next step.")
    errors: tuple[FieldError, ...] | None = Field(
        None, description="With `INVALID_REQUEST`: what is wrong, field by field"
    )
    job_id: str | None = Field(None, description="The job that was refused.")
    nodes_needed: int | None = Field(
        None, description="With `NO_AVAILABLE_NODE`: how many nodes the job needs"
    )
    nodes_eligible: int | None = Field(
        None, description="With `NO_AVAILABLE_NODE`: how many nodes could take it"
    )
    counts: dict[str, int] | None = Field(
        None, description="With `NO_AVAILABLE_NODE`: how many nodes each reason excludes"
    )
    examples: dict[str, tuple[ExcludedNode, ...]] | None = Field(
        None, description="With `NO_AVAILABLE_NODE`: a few nodes for each reason"
    )
    checks: tuple[CheckView, ...] | None = Field(
        None, description="With `NOT_READY`: the checks that hold and those that fail"
    )
