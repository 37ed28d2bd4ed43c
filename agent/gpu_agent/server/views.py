"""What the registry shows of nodes, claims and verdicts outside: wall times, and names that stay.

These shapes are the operator API's JSON and what an embedding scheduler reads. `viewing` fills them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from gpu_agent.server.chronicle import RegistryEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuView:
    """A GPU with the figures of the node's last beat; None where they are unknown."""

    uuid: str
    """A GPU declared without one is named by its place: `#0`, `#1`, …"""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    """An installed model; `status` as the node's newest word has it."""

    model_id: str
    version: str
    kind: str | None
    enabled: bool
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSummary:
    """A node as a list shows it. `since` is Unix time."""

    node_id: str
    status: str
    reason_code: str
    reason: str
    since: float
    clears_when: str | None
    """What would change the status; None for a ready node."""
    connected: bool
    gpus: tuple[GpuView, ...]
    installed_models: tuple[ModelView, ...]
    in_flight_jobs: int
    max_concurrent_jobs: int
    accept_public_jobs: bool
    last_beat_age_seconds: float | None
    simulated: bool
    cordoned: str | None
    endpoint: str | None
    address: str | None
    agent_version: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckView:
    """One health check behind a status."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainView:
    """A wish to empty a node; `deadline` is the Unix time at which it goes offline whatever runs."""

    by_operator: bool
    deadline: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTokenView:
    """By which token a node proves who it is: its id, never its secret."""

    token_id: str
    rotating: bool
    """It is to have another one, and has not used it yet."""
    joined_by: str | None
    """The join token that let it in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDetail(NodeSummary):
    """A node in full: what stands behind its status, and what happened to it lately."""

    previous_status: str | None
    checks: tuple[CheckView, ...]
    healthy_beats: int
    beats_needed: int
    drain: DrainView | None
    granted_labels: Mapping[str, str]
    """Those among `labels` that its join token gave it, whatever the node says."""
    token: NodeTokenView | None
    """None for a node that has none: auth was off when it came, or its token was ended at once."""
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
    round_trip_ms: float | None
    """What the network takes to the node and back; None where that is not known."""
    claimed_jobs: tuple[str, ...]
    running_jobs: tuple[str, ...] | None
    events: tuple[RegistryEvent, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A place reserved for a job. `expires_at` is Unix time; renew or release before it.

    `gpu_uuids` names the GPUs that have one; a node of schema 1.0 declares none.
    """

    job_id: str
    node_id: str
    gpu_uuids: tuple[str, ...]
    """As the node's view names them."""
    endpoint: str | None
    expires_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimView:
    """A place that a job holds. Times are Unix time."""

    job_id: str
    node_id: str
    gpu_uuids: tuple[str, ...]
    endpoint: str | None
    granted_at: float
    expires_at: float
    memory_mb: int
    """GPU memory that the job states it needs on each of its GPUs."""
    affinity_key: str | None
