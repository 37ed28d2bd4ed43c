"""What a node declares, written into its record: at registration whole, by a beat in parts (§3.1, §3.4).

Derives what dispatch asks for (ready models, features, GPUs by UUID). Judges nothing and
changes no status.
"""

from collections.abc import Iterable, Mapping

from gpu_agent.registry import health
from gpu_agent.registry.gpus import Gpus, GpuState
from gpu_agent.registry.record import NodeRecord
from gpu_agent.registry.thresholds import Thresholds
from gpu_agent.wire.codes import BASE_FEATURES, PROVEN_BY_KIND
from gpu_agent.wire.messages import GpuDeclaration, InstalledModel, NodeHeartbeat, NodeRegister

MB_PER_GB = 1024

REPLACEABLE = frozenset(
    {
        "accept_public_jobs",
        "labels",
        "max_concurrent_jobs",
        "hardware",
        "installed_models",
        "capability_state",
    }
)
"""The parts of a declaration that a beat may bring anew (§3.4)."""


def declare(record: NodeRecord, message: NodeRegister, thresholds: Thresholds) -> None:
    """Write a whole declaration into a record."""
    record.registration = message
    record.endpoint = message.endpoint
    record.simulated = message.simulated
    record.accept_public_jobs = message.accept_public_jobs
    _set_labels(record)
    _set_capacity(record, thresholds)
    _set_hardware(record)
    _set_models(record, thresholds)


def replace(record: NodeRecord, beat: NodeHeartbeat, thresholds: Thresholds) -> bool:
    """Write the parts that a beat replaces, each in full; False when it brings none."""
    parts = _parts(beat)
    if not parts:
        return False
    record.registration = record.registration.model_copy(update=parts)
    record.accept_public_jobs = record.registration.accept_public_jobs
    _set_labels(record)
    if "max_concurrent_jobs" in parts:
        _set_capacity(record, thresholds)
    if "hardware" in parts:
        _set_hardware(record)
    if "capability_state" in parts:
        _set_models(record, thresholds)
    return True


def uuid_of(gpu: GpuDeclaration, position: int) -> str:
    """Return what a node's GPU goes by: its UUID, or its place where it has none (schema 1.0)."""
    return gpu.uuid or f"#{position}"


def _parts(beat: NodeHeartbeat) -> dict[str, object]:
    parts = {name: value for name in REPLACEABLE if (value := getattr(beat, name)) is not None}
    if "installed_models" in parts:
        # A state that was told of older models must not speak for new ones.
        parts["capability_state"] = beat.capability_state
    return parts


def _set_labels(record: NodeRecord) -> None:
    """What a join token granted goes before what the node says of itself."""
    record.labels = {**record.registration.labels, **record.granted_labels}


def _set_capacity(record: NodeRecord, thresholds: Thresholds) -> None:
    told = record.registration.max_concurrent_jobs
    record.max_concurrent_jobs = thresholds.default_max_concurrent_jobs if told is None else told


def _set_hardware(record: NodeRecord) -> None:
    record.hardware = record.registration.hardware
    parents = {gpu.parent_uuid for gpu in record.hardware.gpus if gpu.parent_uuid}
    record.gpus = Gpus(
        _gpu_state(gpu, position, parents) for position, gpu in enumerate(record.hardware.gpus)
    )


def _gpu_state(gpu: GpuDeclaration, position: int, parents: set[str]) -> GpuState:
    memory_mb = gpu.memory_mb
    if memory_mb is None and gpu.memory_gb is not None:
        memory_mb = gpu.memory_gb * MB_PER_GB
    return GpuState(
        uuid=uuid_of(gpu, position),
        name=gpu.name,
        memory_mb=memory_mb,
        parent_uuid=gpu.parent_uuid,
        is_parent=gpu.uuid in parents,
        health=gpu.health or "ok",
    )


def _set_models(record: NodeRecord, thresholds: Thresholds) -> None:
    message = record.registration
    record.models = message.installed_models
    record.capability_state = message.capability_state
    ready = tuple(_ready(message.installed_models, message.capability_state))
    record.ready_models = frozenset(model.model_id for model in ready)
    record.features = _features(message, ready)
    record.models_sufficient = health.models_suffice(record, thresholds)


def _ready(models: Iterable[InstalledModel], state: Mapping[str, str] | None) -> Iterable[InstalledModel]:
    """Models that can serve: enabled, and ready by `capability_state` where it speaks, else by their own."""
    for model in models:
        status = model.status if state is None else state.get(model.model_id, model.status)
        if model.enabled and status == "ready":
            yield model


def _features(message: NodeRegister, ready: Iterable[InstalledModel]) -> frozenset[str]:
    declared = message.features_supported
    proven = {PROVEN_BY_KIND[model.kind] for model in ready if model.kind and model.kind in PROVEN_BY_KIND}
    refused = {name for name, flag in declared.items() if flag is False}
    stated = {name for name, flag in declared.items() if flag}
    advanced = set(message.advanced_features).difference(BASE_FEATURES)
    return frozenset(stated | advanced | (proven - refused))
