"""The documents of jobs and claims: what a job demands, what a claim reserves, who waits (§5)."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StrictBool, StringConstraints, model_validator
from pydantic.config import JsonValue

from gpu_agent.wire.codes import MAX_LABELS
from gpu_agent.wire.documents import (
    DAY_SECONDS,
    PROBLEM_CODES,
    ApiAnswer,
    ApiRequest,
    Name,
    Names,
    Sentence,
    WholeNumber,
)

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


def _if_sharing(sharing: str, then: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Say in JSON Schema what a kind of sharing needs; `if`, since code generators pass over it."""
    return {
        "if": {"required": ["gpu_sharing"], "properties": {"gpu_sharing": {"const": sharing}}},
        "then": {"required": [*then], "properties": then},
    }


_NEEDS_OF_SHARING: dict[str, JsonValue] = {
    **_if_sharing("memory", {"min_gpu_memory_mb": {"type": "integer", "minimum": 1}}),
    "else": _if_sharing("exclusive", {"gpu_count": {"type": "integer"}}),
}


class JobRequest(ApiRequest):
    """What a job needs (node protocol §5); a field that is left out is no demand."""

    model_config = ConfigDict(json_schema_extra=_NEEDS_OF_SHARING)

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
    reason: Sentence = Field("", description="Why, for people who read the events; at most 500 characters.")


class ClaimName(ApiRequest):
    """One claim of one job."""

    job_id: Name = Field(description="The job's id.")
    claim_id: ClaimId | None = Field(None, description="Left out: your own current claim of the job.")


class RenewalsRequest(ApiRequest):
    """Claims to renew together; each has a result of its own."""

    claims: Annotated[tuple[ClaimName, ...], Field(max_length=1000)] = Field(
        description="At most 1,000 claims."
    )


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


GPU_SHARINGS = ("exclusive", "memory")
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
    gpu_sharing: Annotated[str, Field(json_schema_extra={"enum": [*GPU_SHARINGS]})] | None = Field(
        None, description="How it uses its GPUs; null for a slot without GPUs of its own."
    )
    min_gpu_memory_mb: int | None = Field(None, description="As the job stated it, in MiB.")
    affinity_key: str | None = Field(None, description="As the job stated it.")
    priority: int = Field(0, description="As the job stated it.")
    idle_since: float | None = Field(
        None, description="Unix time since when all its GPUs are idle, once `claim_idle` reported that."
    )
    unusable_gpus: tuple[str, ...] = Field(
        (), description="UUIDs of its GPUs that became unusable while it had them."
    )


class ClaimNote(ApiAnswer):
    """One thing that happened to a claim."""

    at: float = Field(description="Unix time in seconds.")
    text: str = Field(description="What happened, for a person.")


class ClaimGpuUse(ApiAnswer):
    """How busy one GPU of a claim was while the claim held it."""

    node_id: str = Field(description="The node's id.")
    gpu_uuid: str = Field(description="The GPU's UUID.")
    mean_utilization_percent: float | None = Field(
        description="0 to 100 %, on average; null where the node reported none."
    )
    highest_utilization_percent: float | None = Field(
        description="0 to 100 %, at most; null where the node reported none."
    )


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
    code: Annotated[str, Field(json_schema_extra={"enum": [*PROBLEM_CODES]})] | None = Field(
        None, description="Why it was refused, for programs."
    )
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
    reason: str = Field(
        description="Why no node takes it now, for a person; empty where one does and no request is open."
    )
    counts: dict[str, int] = Field(description="How many nodes each reason excludes.")


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
