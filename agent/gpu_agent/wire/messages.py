"""Every message of the node protocol (§3) as a model, one union per direction.

Models read tolerantly and write exactly; see `fields` for the rules. Which codes
and reasons exist is told by `codes`; how bytes become messages, by `codec`.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from gpu_agent.wire.fields import (
    MAX_FEATURES,
    MAX_GPUS,
    MAX_JOBS,
    MAX_LABELS,
    MAX_MODELS,
    MAX_REASONS,
    FeatureNames,
    Finite,
    Flag,
    Listed,
    Mapped,
    Name,
    NodeId,
    SchemaVersion,
    Seconds,
    SuggestedNodeId,
    Text,
    WireInt,
    WireModel,
    entries_at_most,
)

ModelStates = Annotated[dict[str, Name], Field(max_length=MAX_MODELS), entries_at_most(MAX_MODELS)]
"""State by model id; versions of one model share a key."""

Features = Annotated[Mapped[bool | None], Field(max_length=MAX_FEATURES), entries_at_most(MAX_FEATURES)]
"""Whether a feature is there, by its name; null is unknown."""

JobIds = Annotated[tuple[Name, ...], Field(max_length=MAX_JOBS, fail_fast=True)]
"""Ids of jobs in flight."""


class GpuDeclaration(WireModel):
    """A GPU as registered. `memory_gb` is whole GiB, null when unknown (schema 1.1)."""

    name: Name
    memory_gb: WireInt | None = None
    uuid: Name | None = None
    vendor: Name | None = None
    index: WireInt | None = None
    memory_mb: WireInt | None = None
    memory_kind: Name | None = None
    compute_capability: Name | None = None
    pci_bus_id: Name | None = None
    health: Name | None = None
    parent_uuid: Name | None = None


class Hardware(WireModel):
    """The machine as registered: whole GiB, whole cores. No GPU is told apart in the fleet (R-01)."""

    cpu_cores: WireInt
    memory_gb: WireInt
    gpus: Annotated[Listed[GpuDeclaration], Field(max_length=MAX_GPUS)] = ()
    driver_version: Name | None = None
    cuda_version: Name | None = None


class InstalledModel(WireModel):
    """A model in one of the node's caches."""

    model_id: Annotated[Name, Field(min_length=1)]
    version: Name
    kind: Name | None = None
    src_lang: Name | None = None
    tgt_lang: Name | None = None
    dialect: Name | None = None
    enabled: bool = True
    status: Name = "ready"
    source: Name | None = None
    revision: Name | None = None
    size_bytes: WireInt | None = None
    format: Name | None = None


class NodeRegister(WireModel):
    """Node → registry (§3.1): declares capability, sets no status."""

    type: Literal["node_register"] = "node_register"
    version: Name
    capability_schema_version: SchemaVersion = None
    node_id: SuggestedNodeId = None
    platform: Name | None = None
    hardware: Hardware
    installed_models: Annotated[Listed[InstalledModel], Field(max_length=MAX_MODELS)] = ()
    features_supported: Features = Field(default_factory=dict)
    advanced_features: FeatureNames = ()
    accept_public_jobs: Flag = False
    capability_state: ModelStates | None = None
    labels: Annotated[Mapped[Name], Field(max_length=MAX_LABELS), entries_at_most(MAX_LABELS)] = Field(
        default_factory=dict
    )
    max_concurrent_jobs: WireInt | None = None
    endpoint: Text | None = None
    simulated: Flag = False
    running_jobs: JobIds | None = None


class ResourceUsage(WireModel):
    """The machine's load at a beat. Unknown figures are absent, never 0."""

    cpu_percent: Finite
    mem_percent: Finite
    gpu_percent: Finite | None = None
    gpu_mem_percent: Finite | None = None
    running_jobs: WireInt | None = None


class GpuFigures(WireModel):
    """One GPU's figures at a beat (schema 1.1)."""

    uuid: Name
    utilization_percent: Finite | None = None
    memory_used_mb: WireInt | None = None
    memory_total_mb: WireInt | None = None
    temperature_c: Finite | None = None
    power_w: Finite | None = None
    health: Name = "ok"
    reasons: Annotated[tuple[Name, ...], Field(max_length=MAX_REASONS, fail_fast=True)] = ()


class NodeHeartbeat(WireModel):
    """Node → registry (§3.4). What changed is sent whole: each part is a full replacement."""

    type: Literal["node_heartbeat"] = "node_heartbeat"
    node_id: NodeId
    timestamp: WireInt
    """Milliseconds since the epoch; information, never evidence."""
    resource_usage: ResourceUsage
    installed_models: (
        Annotated[tuple[InstalledModel, ...], Field(max_length=MAX_MODELS, fail_fast=True)] | None
    ) = None
    capability_state: ModelStates | None = None
    gpus: Annotated[tuple[GpuFigures, ...], Field(max_length=MAX_GPUS, fail_fast=True)] | None = None
    probe_age_seconds: Seconds | None = None
    """Age of the last good GPU reading."""
    running_jobs: JobIds | None = None
    sequence: WireInt | None = None
    accept_public_jobs: bool | None = None
    labels: Annotated[dict[str, Name], Field(max_length=MAX_LABELS), entries_at_most(MAX_LABELS)] | None = (
        None
    )
    max_concurrent_jobs: WireInt | None = None
    hardware: Hardware | None = None


class NodeUnregister(WireModel):
    """Node → registry (§3.6): planned shutdown."""

    type: Literal["node_unregister"] = "node_unregister"
    node_id: NodeId
    reason: Text = ""
    drain: Flag = False
    deadline_seconds: Seconds | None = None


class NodeError(WireModel):
    """A refusal (registry → node), or an internal fault that belongs to no job (node → registry) (§3.3)."""

    type: Literal["node_error", "error"] = "node_error"
    node_id: SuggestedNodeId = None
    code: Name
    message: Text = ""
    details: dict[str, Any] | None = None
    retry_after_seconds: Seconds | None = None


class NodeRegisterAck(WireModel):
    """Registry → node (§3.2): the id is the registry's verdict; the status is always `registering` (A-2)."""

    type: Literal["node_register_ack"] = "node_register_ack"
    node_id: NodeId
    message: str = "registered"
    status: str = "registering"
    node_token: str | None = Field(default=None, repr=False)
    capability_schema_version: SchemaVersion = None
    heartbeat_interval_seconds: Seconds | None = None
    warmup_heartbeat_interval_seconds: Seconds | None = None
    heartbeat_timeout_seconds: Seconds | None = None
    session_epoch: WireInt | None = None


class Check(WireModel):
    """One health check behind a status."""

    name: str
    ok: bool
    detail: str = ""


class StatusDetails(WireModel):
    """What stands behind a status, and what would change it."""

    checks: Listed[Check] = ()
    healthy_beats: WireInt | None = None
    beats_needed: WireInt | None = None
    in_flight_jobs: WireInt | None = None
    drain_deadline: Finite | None = None
    """Unix time at which a drain ends whatever runs."""
    clears_when: str | None = None


class NodeStatusMessage(WireModel):
    """Registry → node (§3.5): the status it has given the node, on every change and once a minute."""

    type: Literal["node_status"] = "node_status"
    node_id: NodeId
    status: str
    reason: str = ""
    """A sentence for a person."""
    timestamp: Finite | None = None
    """Seconds since the epoch."""
    previous_status: str | None = None
    reason_code: str | None = None
    since: Finite | None = None
    periodic: bool = False
    heartbeat_interval_seconds: Seconds | None = None
    details: StatusDetails | None = None


class NodeControl(WireModel):
    """Registry → node (§3.6): `reregister` or `refresh`; the node logs any other command, obeys none."""

    type: Literal["node_control"] = "node_control"
    command: str
    reason: str | None = None


FromNode = Annotated[
    NodeRegister | NodeHeartbeat | NodeUnregister | NodeError,
    Field(discriminator="type"),
]
"""What a node may say."""

FromRegistry = Annotated[
    NodeRegisterAck | NodeError | NodeStatusMessage | NodeControl,
    Field(discriminator="type"),
]
"""What a registry may say."""
