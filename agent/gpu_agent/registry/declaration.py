"""What a node declares: whether the registry accepts it, and how it is written into the record (R-01, R-04, R-05, §3.1, §3.4).

A registration brings a whole declaration, a heartbeat may replace parts of it. Derives what dispatch reads: ready
models, features, GPUs by UUID. Changes no status and does not decide who may have which node id.
"""

import json
from collections.abc import Iterable, Mapping

from pydantic_core import to_json

from gpu_agent.registry import health
from gpu_agent.registry.gpus import Gpus, GpuState
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.codes import BASE_FEATURES, PROVEN_BY_KIND, SUPPORTED_SCHEMA_VERSIONS, ErrorCode
from gpu_agent.wire.messages import (
    GpuDeclaration,
    Hardware,
    InstalledModel,
    NodeError,
    NodeHeartbeat,
    NodeRegister,
)

# What a node declares, written into its record: at registration whole, by a beat in parts (§3.1, §3.4).
#
# Derives what dispatch asks for (ready models, features, GPUs by UUID). Judges nothing and
# changes no status.


MB_PER_GB = 1024

LARGEST_DOCUMENT_BYTES = 512 * 1024
"""No document in the store is larger (§4)."""

LARGEST_DECLARATION_BYTES = LARGEST_DOCUMENT_BYTES - 32 * 1024
"""The rest of a node's document is the registry's own: status, desired state, tokens, granted labels."""

LONGEST_ESCAPE = 3
"""A character takes at most so many times its UTF-8 bytes as the ASCII text that a store writes."""

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


def write_declaration(record: NodeRecord, message: NodeRegister, thresholds: Thresholds) -> None:
    """Write a whole declaration into a record."""
    record.registration = message
    record.endpoint = message.endpoint
    record.simulated = message.simulated
    record.accept_public_jobs = message.accept_public_jobs
    _set_labels(record)
    _set_capacity(record, thresholds)
    _set_hardware(record)
    _set_models(record, thresholds)


def replace_parts(record: NodeRecord, beat: NodeHeartbeat, thresholds: Thresholds) -> NodeError | None:
    """Write the parts that a heartbeat replaces, each in full; or say why the whole is too large, and write none."""
    parts = _parts(beat)
    if not parts:
        return None
    registration = record.registration.model_copy(update=parts)
    too_large = size_refusal(registration, node_id=beat.node_id)
    if too_large is not None:
        return too_large
    record.registration = registration
    record.accept_public_jobs = record.registration.accept_public_jobs
    _set_labels(record)
    if "max_concurrent_jobs" in parts:
        _set_capacity(record, thresholds)
    if "hardware" in parts:
        _set_hardware(record)
    if "capability_state" in parts:
        _set_models(record, thresholds)
    return None


def gpu_key(gpu: GpuDeclaration, position: int) -> str:
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
        uuid=gpu_key(gpu, position),
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


# Whether a declaration may be registered at all, whoever sends it.
#
# Judges the message alone: who may carry which id is decided where sessions are known.


OLDEST_SCHEMA = "1.0"
"""What a declaration is read as when it names no schema (R-04)."""


def schema_of(message: NodeRegister) -> str:
    """Return the schema version that a declaration claims to follow."""
    return message.capability_schema_version or OLDEST_SCHEMA


def refusal_of(message: NodeRegister, *, allow_simulated: bool) -> NodeError | None:
    """Return why a declaration is refused; None when nothing in it stands against it."""
    if schema_of(message) not in SUPPORTED_SCHEMA_VERSIONS:
        return schema_not_supported(schema_of(message), node_id=message.node_id)
    ambiguous = ambiguity_of(message.hardware, node_id=message.node_id)
    if ambiguous is not None:
        return ambiguous
    too_large = size_refusal(message, node_id=message.node_id)
    if too_large is not None:
        return too_large
    if message.simulated and not allow_simulated:
        return NodeError(
            node_id=message.node_id,
            code=ErrorCode.SIMULATED_NODE_REFUSED,
            message="this registry takes no simulated nodes: run the agent without --simulate, "
            "or start the registry with --allow-simulated",
        )
    if not any(gpu.memory_gb for gpu in message.hardware.gpus):
        return _gpu_required(message)
    return None


def ambiguity_of(hardware: Hardware, *, node_id: str | None) -> NodeError | None:
    """Refuse hardware of which two GPUs go by one UUID: no figure could be told to be of one of them."""
    places: dict[str, int] = {}
    for place, gpu in enumerate(hardware.gpus):
        first = places.setdefault(gpu_key(gpu, place), place)
        if first != place:
            return _same_uuid(first, place, node_id=node_id)
    return None


def schema_not_supported(version: str, *, node_id: str | None) -> NodeError:
    """Refuse a schema version, and say which to take instead (R-05)."""
    supported = ", ".join(SUPPORTED_SCHEMA_VERSIONS)
    return NodeError(
        node_id=node_id,
        code=ErrorCode.INVALID_CAPABILITY_SCHEMA,
        message=f"capability schema {version[:40]!r} is not supported: "
        f"register again with one of {supported}",
        details={"supported": list(SUPPORTED_SCHEMA_VERSIONS)},
    )


def size_refusal(registration: NodeRegister, *, node_id: str | None) -> NodeError | None:
    """Refuse a declaration whose document the store would not take (§4)."""
    size = len(to_json(registration))
    if size * LONGEST_ESCAPE > LARGEST_DECLARATION_BYTES:
        size = len(json.dumps(registration.model_dump(mode="json"), separators=(",", ":")))
    if size <= LARGEST_DECLARATION_BYTES:
        return None
    problem = (
        f"it takes {size} bytes in the registry's store, {LARGEST_DECLARATION_BYTES} at most are allowed"
    )
    return NodeError(
        node_id=node_id,
        code=ErrorCode.INVALID_MESSAGE,
        message=f"$: {problem}; declare fewer models, labels and features",
        details={"errors": [{"path": "$", "problem": problem}]},
    )


def _same_uuid(first: int, second: int, *, node_id: str | None) -> NodeError:
    path, problem = f"$.hardware.gpus[{second}].uuid", f"the same as that of gpus[{first}]"
    return NodeError(
        node_id=node_id,
        code=ErrorCode.INVALID_MESSAGE,
        message=f"{path}: {problem}; declare each GPU once, under a uuid of its own",
        details={"errors": [{"path": path, "problem": problem}]},
    )


def _gpu_required(message: NodeRegister) -> NodeError:
    declared = len(message.hardware.gpus)
    found = f"{declared} declared, none with memory_gb above 0" if declared else "none declared"
    return NodeError(
        node_id=message.node_id,
        code=ErrorCode.GPU_REQUIRED,
        message=f"a node needs at least one GPU with memory above zero ({found}): "
        "register again when `gpu-agent probe` shows one",
    )
