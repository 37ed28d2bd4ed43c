"""What a node sends about itself, made from an inventory: all in a registration, changes in a heartbeat.

The wire's rules for rounding and for leaving out (§3.1, §3.4) stand here once, so that probe, registration
and heartbeat cannot disagree. Unknown figures are absent, never 0. When anything is sent, `session` decides.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from gpu_agent.records import dataclass, field, field_names, replace
from gpu_agent.version import __version__
from gpu_agent.wire.inventory import Gpu, Inventory, Model
from gpu_agent.wire.messages import (
    MAX_GPUS,
    MAX_MODELS,
    GpuDeclaration,
    GpuFigures,
    Hardware,
    InstalledModel,
    NodeCheck,
    NodeHeartbeat,
    NodeRegister,
    ResourceUsage,
)

MB_PER_GB = 1024
NEWEST_SCHEMA = "1.1"
JOB_IDS_ROOM_BYTES = 128 * 1024
"""What the ids of jobs in flight may take of a frame: registrations and heartbeats list them too."""
CHECKS_ROOM_BYTES = 32 * 1024
"""What the admission checks may take of a heartbeat."""
FRAME_ROOM_BYTES = 1024 * 1024 - JOB_IDS_ROOM_BYTES - CHECKS_ROOM_BYTES - 4096
"""A registration stays under the protocol's 1 MiB, with some room to spare."""
_LONGEST_ID = "x" * 128
_LONGEST_HOSTNAME = 253
_STATE_ROOM_BYTES = 32
"""What a model's line in `capability_state` takes, besides its id."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """What the machine's owner states beside what the probe finds."""

    accept_public_jobs: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    max_concurrent_jobs: int | None = None
    endpoint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """A node's whole capability at the newest schema; older schemas are cut from it."""

    platform: str
    hardware: Hardware
    installed_models: tuple[InstalledModel, ...] = ()
    capability_state: Mapping[str, str] = field(default_factory=dict)
    features_supported: Mapping[str, bool] = field(default_factory=dict)
    advanced_features: tuple[str, ...] = ()
    hostname: str | None = None
    simulated: bool = False
    owner: Owner = field(default_factory=Owner)
    checks: tuple[NodeCheck, ...] | None = None
    """The admission checks that have a result; None where this node runs none. No registration has them."""
    left_out: tuple[str, ...] = ()
    """Ids of models left out to stay under the frame limit; said in the log and `status`."""

    @property
    def has_gpu(self) -> bool:
        """True when a registry would not answer `GPU_REQUIRED` (R-01)."""
        return any(gpu.memory_gb for gpu in self.hardware.gpus)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclarationChanges:
    """The parts of a declaration that a heartbeat replaces in full because they changed (§3.4)."""

    installed_models: tuple[InstalledModel, ...] | None = None
    capability_state: dict[str, str] | None = None
    accept_public_jobs: bool | None = None
    labels: dict[str, str] | None = None
    max_concurrent_jobs: int | None = None
    hardware: Hardware | None = None
    checks: tuple[NodeCheck, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatFigures:
    """What only the shell knows at the time of a heartbeat."""

    timestamp_ms: int
    cpu_percent: float
    mem_percent: float
    running_jobs: int | None
    """None where no worker announces jobs and no GPU reports who uses it."""
    running_job_ids: tuple[str, ...] | None
    probe_age_seconds: float | None


def declare(
    inventory: Inventory, owner: Owner, *, checks: tuple[NodeCheck, ...] | None = None
) -> Declaration:
    """Make a declaration from an inventory, at the newest schema."""
    bare = Declaration(
        platform=inventory.host.platform,
        hostname=inventory.host.hostname and inventory.host.hostname[:_LONGEST_HOSTNAME],
        hardware=Hardware(
            cpu_cores=inventory.host.cpu_logical_cores,
            memory_gb=whole_gb(inventory.host.memory_total_mb)
            or 0,  # the wire has no null here: 0 is unknown
            gpus=tuple(_gpu_declaration(gpu) for gpu in inventory.gpu.offered[:MAX_GPUS]),
            driver_version=inventory.gpu.driver_version,
            cuda_version=inventory.gpu.cuda_version,
        ),
        features_supported=dict(inventory.features_supported),
        advanced_features=inventory.advanced_features,
        simulated=inventory.simulated,
        owner=owner,
        checks=checks,
    )
    if not inventory.models:
        return bare
    taken = len(registration(bare, node_id=_LONGEST_ID).model_dump_json().encode())
    models, left_out = _fitting(inventory.models, room_bytes=FRAME_ROOM_BYTES - taken)
    return replace(
        bare, installed_models=models, capability_state=_capability_state(models), left_out=left_out
    )


def registration(
    declaration: Declaration,
    *,
    node_id: str | None,
    schema_version: str = NEWEST_SCHEMA,
    running_jobs: tuple[str, ...] | None = None,
) -> NodeRegister:
    """Compose the `node_register` of one schema version (§3.1)."""
    whole = NodeRegister(
        version=__version__,
        capability_schema_version=schema_version,
        node_id=node_id,
        platform=declaration.platform,
        hardware=declaration.hardware,
        installed_models=declaration.installed_models,
        features_supported=dict(declaration.features_supported),
        advanced_features=declaration.advanced_features,
        accept_public_jobs=declaration.owner.accept_public_jobs,
        capability_state=dict(declaration.capability_state),
        labels=dict(declaration.owner.labels),
        hostname=declaration.hostname,
        max_concurrent_jobs=declaration.owner.max_concurrent_jobs,
        endpoint=declaration.owner.endpoint,
        simulated=declaration.simulated,
        running_jobs=running_jobs,
    )
    return whole if schema_version == NEWEST_SCHEMA else _cut_to_1_0(whole)


def changes(sent: Declaration, current: Declaration) -> DeclarationChanges:
    """Compare with the declaration that was sent last: what a heartbeat must replace."""
    owner, before = current.owner, sent.owner
    models_changed = current.installed_models != sent.installed_models
    state_changed = dict(current.capability_state) != dict(sent.capability_state)
    return DeclarationChanges(
        installed_models=current.installed_models if models_changed else None,
        capability_state=dict(current.capability_state) if models_changed or state_changed else None,
        accept_public_jobs=_if_changed(before.accept_public_jobs, owner.accept_public_jobs),
        labels=_if_changed(dict(before.labels), dict(owner.labels)),
        max_concurrent_jobs=_if_changed(before.max_concurrent_jobs, owner.max_concurrent_jobs),
        hardware=_if_changed(sent.hardware, current.hardware),
        checks=_if_changed(sent.checks, current.checks),
    )


def heartbeat(
    node_id: str,
    inventory: Inventory,
    *,
    moment: HeartbeatFigures,
    changed: DeclarationChanges,
    sequence: int,
    job_count_required: bool = False,
) -> NodeHeartbeat:
    """Compose a heartbeat from the newest inventory and the moment's figures (§3.4).

    `job_count_required`: an older scheduler may drop a heartbeat without a number of jobs (§9).
    Only there an unknown number is sent as 0.
    """
    unknown_jobs = 0 if job_count_required else None
    offered = inventory.gpu.offered
    parents = {gpu.parent_uuid for gpu in offered if gpu.parent_uuid}
    counted = [gpu for gpu in offered if gpu.uuid not in parents]
    return NodeHeartbeat(
        node_id=node_id,
        timestamp=moment.timestamp_ms,
        resource_usage=ResourceUsage(
            cpu_percent=moment.cpu_percent,
            mem_percent=moment.mem_percent,
            gpu_percent=_mean([gpu.utilization_percent for gpu in counted]),
            gpu_mem_percent=_memory_percent(counted),
            running_jobs=unknown_jobs if moment.running_jobs is None else moment.running_jobs,
        ),
        gpus=tuple(_figures(gpu) for gpu in offered[:MAX_GPUS]),
        probe_age_seconds=moment.probe_age_seconds,
        running_jobs=moment.running_job_ids,
        sequence=sequence,
        installed_models=changed.installed_models,
        capability_state=changed.capability_state,
        accept_public_jobs=changed.accept_public_jobs,
        labels=changed.labels,
        max_concurrent_jobs=changed.max_concurrent_jobs,
        hardware=changed.hardware,
        checks=changed.checks,
    )


def whole_gb(memory_mb: int | None) -> int | None:
    """Round MiB to whole GiB; a known memory is at least 1, an unknown one stays unknown."""
    return None if memory_mb is None else max(1, round(memory_mb / MB_PER_GB))


def _gpu_declaration(gpu: Gpu) -> GpuDeclaration:
    return GpuDeclaration(
        name=gpu.name,
        memory_gb=whole_gb(gpu.memory_mb),
        uuid=gpu.uuid,
        vendor=gpu.vendor,
        index=gpu.index,
        memory_mb=gpu.memory_mb,
        memory_kind=gpu.memory_kind.value,
        compute_capability=gpu.compute_capability,
        pci_bus_id=gpu.pci_bus_id,
        health=gpu.health.value,
        parent_uuid=gpu.parent_uuid,
    )


def _fitting(
    models: Sequence[Model], *, room_bytes: int
) -> tuple[tuple[InstalledModel, ...], tuple[str, ...]]:
    """Keep the models that fit a frame and the limit on their number (§3.1).

    Disabled ones go first, then those not ready.
    """
    written = [(model.model_id, _installed(model)) for model in models]
    sendable = [model for _, model in written if model is not None]
    by_worth = sorted(sendable, key=lambda model: (model.enabled, model.status == "ready"), reverse=True)
    included: set[int] = set()
    for model in by_worth[:MAX_MODELS]:
        room_bytes -= len(model.model_dump_json().encode()) + len(model.model_id.encode()) + _STATE_ROOM_BYTES
        if room_bytes < 0:
            break
        included.add(id(model))
    return (
        tuple(model for model in sendable if id(model) in included),
        tuple(model_id for model_id, model in written if model is None or id(model) not in included),
    )


def _installed(model: Model) -> InstalledModel | None:
    """Write one model; None for one that no reader would accept, such as a nameless one."""
    try:
        return InstalledModel(
            model_id=model.model_id,
            version=model.version,
            kind=model.kind,
            src_lang=model.src_lang,
            tgt_lang=model.tgt_lang,
            dialect=model.dialect,
            enabled=model.enabled,
            status=model.status.value,
            source=model.source,
            revision=model.revision,
            size_bytes=model.size_bytes,
            format=model.format,
        )
    except ValidationError:
        return None


def _capability_state(models: Sequence[InstalledModel]) -> dict[str, str]:
    """State by model id; versions of one model share a key, ready if any is."""
    state: dict[str, str] = {}
    for model in models:
        if state.get(model.model_id) != "ready":
            state[model.model_id] = model.status
    return state


def _cut_to_1_0(whole: NodeRegister) -> NodeRegister:
    """Leave out what schema 1.0 does not know, MIG parents, and GPUs of unknown memory."""
    parents = {gpu.parent_uuid for gpu in whole.hardware.gpus if gpu.parent_uuid is not None}
    hardware = Hardware(
        cpu_cores=whole.hardware.cpu_cores,
        memory_gb=whole.hardware.memory_gb,
        gpus=tuple(
            GpuDeclaration(name=gpu.name, memory_gb=gpu.memory_gb)
            for gpu in whole.hardware.gpus
            if gpu.memory_gb is not None and gpu.uuid not in parents
        ),
    )
    cut = {"source": None, "revision": None, "size_bytes": None, "format": None}
    return whole.model_copy(
        update={
            "capability_schema_version": "1.0",
            "hardware": hardware,
            "installed_models": tuple(model.model_copy(update=cut) for model in whole.installed_models),
            "labels": {},
            "hostname": None,
            "max_concurrent_jobs": None,
            "endpoint": None,
            "running_jobs": None,
        }
    )


def _if_changed(before: _T, after: _T) -> _T | None:
    return None if before == after else after


_COPIED = frozenset(GpuFigures.model_fields).intersection(field_names(Gpu)) - {
    "processes",
    "health",
    "reasons",
}
"""Fields that the heartbeat has under the inventory's name, with the same value."""


def _figures(gpu: Gpu) -> GpuFigures:
    copied: dict[str, Any] = {name: getattr(gpu, name) for name in _COPIED}
    return GpuFigures(
        memory_total_mb=gpu.memory_mb,
        processes=None if gpu.processes is None else len(gpu.processes),
        health=gpu.health.value,
        reasons=tuple(reason.code for reason in gpu.reasons),
        **copied,
    )


def _mean(figures: Sequence[float | None]) -> float | None:
    known = [figure for figure in figures if figure is not None]
    return round(sum(known) / len(known), 1) if known else None


def _memory_percent(gpus: Sequence[Gpu]) -> float | None:
    known = [
        (gpu.memory_used_mb, gpu.memory_mb)
        for gpu in gpus
        if gpu.memory_used_mb is not None and gpu.memory_mb
    ]
    total = sum(size for _, size in known)
    return round(100 * sum(used for used, _ in known) / total, 1) if total else None
