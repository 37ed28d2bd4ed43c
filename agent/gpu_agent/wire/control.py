"""The documents of the control socket: the requests, and what the agent answers (`docs/reference/local.md`).

Both ends use these models: the agent writes the answers, `gpu-agent status`, `explain`, `drain` and `job`
read them, and their JSON Schemas are generated from them. A reader ignores unknown fields, because a newer
agent may send more; for the same reason words such as a state are plain strings in answers, and the schemas
list those that this version sends. Times are Unix time in seconds, unknown is null.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gpu_agent.wire.codes import MAX_TEXT, NodeStatus
from gpu_agent.wire.probe_document import Document, MachineDocument, json_schema

MAX_DRAIN_SECONDS = 10 * 365 * 86_400.0

Pid = Annotated[int, Field(ge=1, le=2**31 - 1)]

SESSION_STATES = (
    "idle",
    "waiting_gpu",
    "backing_off",
    "connecting",
    "awaiting_ack",
    "registered",
    "leaving",
    "yielded",
    "drained",
    "stopped",
)
"""The states of a session (`session/types.py`) that this version of the agent sends."""
PUBLIC_JOBS_LIMITS = ("schedule", "max_temperature_c", "min_free_memory_mb", "pause_while_in_use")
"""The settings in `[public_jobs]` that keep jobs away."""


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False, defer_build=True)


class StatusRequest(_Request):
    """The state of everything: a `StatusDocument`."""

    ask: Literal["status"]


class ExplainRequest(_Request):
    """Which jobs this node is excluded for now, as far as the node knows: an `ExplainDocument`."""

    ask: Literal["explain"]


class RefreshRequest(_Request):
    """Probe again and send the registry all of it; the answer is a `StatusDocument` after that probe."""

    ask: Literal["refresh"]


class DrainRequest(_Request):
    """Finish the jobs of this machine and take no new ones, until `resume`."""

    ask: Literal["drain"]
    reason: Annotated[str, Field(min_length=1, max_length=MAX_TEXT)] | None = None
    deadline_seconds: Annotated[float, Field(ge=0, le=MAX_DRAIN_SECONDS)] | None = None


class ResumeRequest(_Request):
    """End the owner's drain, and register."""

    ask: Literal["resume"]


class JobStartRequest(_Request):
    """A job is in flight until this connection ends, or with `pid` until that process does."""

    ask: Literal["job_start"]
    job_id: str
    pid: Pid | None = None
    own_pid: Pid | None = None
    """The caller's own process id: it shows whether caller and agent share a process namespace."""


class JobFinishRequest(_Request):
    """A job has ended."""

    ask: Literal["job_finish"]
    job_id: str


class JobListRequest(_Request):
    """Which jobs are in flight: a `JobsDocument`."""

    ask: Literal["job_list"]


Request = (
    StatusRequest
    | ExplainRequest
    | RefreshRequest
    | DrainRequest
    | ResumeRequest
    | JobStartRequest
    | JobFinishRequest
    | JobListRequest
)


class AgentInfo(Document):
    """The agent's process."""

    version: str = Field(description="of the software")
    pid: int = Field(description="the agent's process id, in its own namespace")
    hostname: str = Field(description="of its machine")
    started_at: float
    state_problem: str | None = Field(
        description="why its state directory lacks the identity or takes no other one, with the next step",
    )
    settings_problem: str | None = Field(
        description="what the last reload did not take over: a faulty file, or what waits for a restart"
    )


class SessionInfo(Document):
    """The agent's session with its registry."""

    registry: str = Field(description="its URL; of several the one in use, or tried next")
    other_addresses: tuple[str, ...] = Field(description="its other URLs, where it has several")
    state: str = Field(
        description="*The local socket* in the documentation explains each",
        json_schema_extra={"enum": [*SESSION_STATES]},
    )
    since: float | None = Field(description="when it entered this state")
    link_since: float | None = Field(
        description="since when the registry receives this node's heartbeats, or does not"
    )
    why: str | None = Field(
        description="why the last attempt failed, or there is no next one; null once registered"
    )
    token_problem: str | None = Field(
        description="why the last attempt could send no join token, with the next step; else null",
    )
    last_heartbeat_at: float | None = Field(description="null before the first")
    last_heartbeat_age_seconds: float | None = Field(description="null before the first")
    heartbeats: int = Field(description="sequence number of the last one in this session")
    interval_seconds: float | None = Field(description="between heartbeats, while registered")
    next_attempt_at: float | None = Field(description="null where no attempt is scheduled")
    next_attempt_in_seconds: float | None = Field(description="null where no attempt is scheduled")


class CheckInfo(Document):
    """One of the registry's checks of this node."""

    name: str
    ok: bool
    detail: str


class AdmissionCheckInfo(Document):
    """One of the agent's own checks of this machine."""

    name: str
    scope: str = Field(description="node, or the UUID of the GPU that was checked")
    ok: bool | None = Field(description="null where it could not be run: `detail` says why")
    detail: str
    at: float = Field(description="when it ended")
    not_repeated: str | None = Field(
        description="why it was due again and has not run since; null where it has, or was not due"
    )


class StatusInfo(Document):
    """The status that the registry sent last."""

    status: str = Field(description=f"one of {', '.join(NodeStatus)}")
    reason: str | None = Field(description="for a person")
    reason_code: str | None = Field(description="for programs; an older registry sends none")
    since: float | None = Field(description="by the registry's clock")
    received_at: float | None = Field(description="by this machine's clock")
    received_age_seconds: float | None
    current: bool = Field(description="false: the connection was lost since")
    checks: tuple[CheckInfo, ...]
    in_flight_jobs: int | None = Field(description="as the registry counts them")
    drain_deadline: float | None = Field(description="of a drain that the registry knows of")
    clears_when: str | None = Field(description="what would change the status, for a person")


class DrainInfo(Document):
    """The owner's own drain."""

    reason: str
    over: bool = Field(description="true: no job runs any more, and none comes before `resume`")
    deadline_at: float | None = Field(description="when the drain ends, whatever still runs")
    deadline_in_seconds: float | None = Field(description="0 once that has passed")


class PauseInfo(Document):
    """A limit of the owner that keeps jobs of the public pool away now."""

    limit: str = Field(
        description="the setting in [public_jobs]", json_schema_extra={"enum": [*PUBLIC_JOBS_LIMITS]}
    )
    detail: str = Field(description="for a person")


class PublicJobsInfo(Document):
    """Whether this node takes jobs of the public pool."""

    wanted: bool = Field(description="the setting accept_public_jobs")
    pauses: tuple[PauseInfo, ...] = Field(description="why it takes none though `wanted`")


class JobInfo(Document):
    """One job in flight."""

    job_id: str
    uid: int = Field(description="the user who announced it")
    since: float = Field(description="when it was first announced")
    pid: int | None = Field(
        description="the process that holds it, or the one behind the connection that does"
    )
    held_by: Literal["connection", "process"] = Field(description="the job ends when that one ends")


class JobsInfo(Document):
    """The jobs that programs on this machine have announced."""

    announced: bool = Field(
        description="false: no program ever announced one, and processes on GPUs count instead"
    )
    in_flight: tuple[JobInfo, ...] = Field(description="the longest first")


class StatusDocument(Document):
    """What `gpu-agent status --json` prints."""

    schema_id: Literal["gpu-agent.status/1"] = Field(alias="schema")
    agent: AgentInfo
    node_id: str | None = Field(description="null until a registry has issued one")
    connected: bool = Field(description="whether the registry receives this node's heartbeats")
    ready: bool = Field(description="whether it does and has last said that the node is ready")
    session: SessionInfo
    status: StatusInfo | None = Field(description="null before the registry has sent one")
    drain: DrainInfo | None = Field(description="null where the owner asked for none")
    accept_public_jobs: bool = Field(
        description="what the registry receives: wanted, and nothing pauses them"
    )
    public_jobs: PublicJobsInfo
    max_concurrent_jobs: int | None = Field(description="the owner's slots; null leaves them to the registry")
    labels: Mapping[str, str]
    jobs: JobsInfo
    checks: tuple[AdmissionCheckInfo, ...] = Field(
        description="the admission checks of this machine; *Return to service* in the documentation"
    )
    machine: MachineDocument | None = Field(description="what the last probe found; null before the first")


class JobsDocument(Document):
    """The answer to `job_start`, `job_finish` and `job_list`."""

    in_flight: tuple[JobInfo, ...] = Field(description="the longest first")


def status_schema() -> dict[str, Any]:
    """Return the JSON Schema of `gpu-agent status --json`; `drain`, `resume` and `refresh` answer it too."""
    description = (
        "What `gpu-agent status --json` prints (gpu-agent.status/1). Times are Unix seconds, durations "
        "seconds; unknown is null."
    )
    return json_schema("status", description, StatusDocument)
