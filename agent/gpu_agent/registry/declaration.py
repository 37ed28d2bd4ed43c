"""What a node declares: whether the registry accepts it, and how it is written into the record.

A registration brings a whole declaration, a heartbeat may replace parts of it (R-01, R-04, R-05, §3.1, §3.4).
Derives what dispatch reads: ready models, features, GPUs by UUID. Changes no status, and does not decide who
may have which node id.
"""

import json
from collections.abc import Iterable, Mapping
from sys import intern
from typing import Any

from pydantic_core import to_json

from gpu_agent.registry import health
from gpu_agent.registry.gpus import Gpus, GpuState
from gpu_agent.registry.model_list import ModelList
from gpu_agent.registry.node import Declared, NodeRecord
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.codes import SUPPORTED_SCHEMA_VERSIONS, ErrorCode
from gpu_agent.wire.heartbeat import Parts, models_of
from gpu_agent.wire.inventory import BASE_FEATURES, PROVEN_BY_KIND
from gpu_agent.wire.messages import (
    GpuDeclaration,
    Hardware,
    InstalledModel,
    NodeError,
    NodeRegister,
)

MB_PER_GB = 1024

LARGEST_DOCUMENT_BYTES = 512 * 1024
"""No document in the store is larger (§4)."""

LARGEST_DECLARATION_BYTES = LARGEST_DOCUMENT_BYTES - 32 * 1024
"""The rest of a node's document is the registry's own: status, desired state, tokens, granted labels."""

LONGEST_ESCAPE = 3
"""A character takes at most so many times its UTF-8 bytes as the ASCII text that a store writes."""

_ADDED_BYTES = 1024
"""More than what the defaults of one part, and its numbers in full, take beyond what the node wrote."""

_PLAIN_PARTS = ("accept_public_jobs", "labels", "max_concurrent_jobs", "hardware")
"""What a heartbeat may replace besides models and their states (§3.4)."""


def refusal_of(
    message: NodeRegister, *, allow_simulated: bool, frame_bytes: int | None = None
) -> NodeError | None:
    """Return why a declaration is refused; None when it is acceptable.

    `frame_bytes` is the length of the frame that it came in, where that is known.
    """
    if message.schema_version not in SUPPORTED_SCHEMA_VERSIONS:
        return schema_not_supported(message.schema_version, node_id=message.node_id)
    refusal = _ambiguous_gpus(message.hardware, node_id=message.node_id)
    if refusal is None and (frame_bytes is None or _may_be_too_large(message, frame_bytes)):
        refusal = _too_large(message, node_id=message.node_id)
    if refusal is not None:
        return refusal
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


def write_declaration(record: NodeRecord, message: NodeRegister, thresholds: Thresholds) -> None:
    """Write a whole declaration into a record."""
    record.declared = derive(message, record.granted_labels, thresholds)
    record.gpus = gpus_of(message.hardware, before=record.gpus)


def replace_parts(record: NodeRecord, brought: Parts, thresholds: Thresholds) -> NodeError | None:
    """Replace the parts that a heartbeat brings, each in full; or return why not, and replace none.

    Where they are as they were the declaration stays: older nodes repeat their models in each heartbeat.
    """
    declared, models, states = record.declared, brought.installed_models, brought.capability_state
    if declared.models.is_all_of(brought):
        return None
    parts: dict[str, Any] = {
        name: value
        for name in _PLAIN_PARTS
        if (value := getattr(brought, name)) is not None and value != getattr(declared.registration, name)
    }
    if models is not None:
        # A state that was reported for older models must not speak for new ones.
        if not declared.models.lists(models, states):
            parts |= {"installed_models": models_of(models), "capability_state": states}
    elif states is not None and not declared.models.has_states(states):
        parts["capability_state"] = states
    if not parts:
        return None
    registration = declared.whole().model_copy(update=parts)
    refusal = _too_large(registration, node_id=record.node_id)
    if "hardware" in parts:
        refusal = _ambiguous_gpus(registration.hardware, node_id=record.node_id) or refusal
    if refusal is not None:
        return refusal
    record.declared = derive(registration, record.granted_labels, thresholds)
    if "hardware" in parts:
        record.gpus = gpus_of(registration.hardware, before=record.gpus)
    return None


def derive(registration: NodeRegister, granted_labels: Mapping[str, str], thresholds: Thresholds) -> Declared:
    """Derive from a declaration what dispatch and health read."""
    ready = tuple(_ready(registration.installed_models, registration.capability_state))
    ready_models = frozenset(intern(model.model_id) for model in ready)
    enabled = frozenset(intern(model.model_id) for model in registration.installed_models if model.enabled)
    models = ModelList(registration.installed_models, registration.capability_state)
    bare = registration.model_copy(update={"installed_models": (), "capability_state": None})
    return Declared(
        registration=bare,
        models=models,
        labels={**registration.labels, **granted_labels},
        max_concurrent_jobs=registration.max_concurrent_jobs,
        default_slots=thresholds.default_max_concurrent_jobs,
        ready_models=ready_models,
        enabled_models=ready_models if enabled == ready_models else enabled,
        models_sufficient=health.models_suffice(registration.installed_models, ready_models, thresholds),
        features=_features(registration, ready),
    )


def gpu_key(gpu: GpuDeclaration, position: int) -> str:
    """Return the key of a node's GPU: its UUID, or its position where it has none (schema 1.0)."""
    return gpu.uuid or f"#{position}"


def gpus_of(hardware: Hardware, *, before: Gpus | None = None) -> Gpus:
    """Build the GPUs that a node declares in place of others; the first heartbeat brings their figures."""
    parents = {gpu.parent_uuid for gpu in hardware.gpus if gpu.parent_uuid}
    states = (_gpu_state(gpu, position, parents) for position, gpu in enumerate(hardware.gpus))
    return Gpus(states, before=before)


def _ready(models: Iterable[InstalledModel], state: Mapping[str, str] | None) -> Iterable[InstalledModel]:
    """List models that can serve: enabled, and ready by `capability_state` or else by their own status."""
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


def _gpu_state(gpu: GpuDeclaration, position: int, parents: set[str]) -> GpuState:
    memory_mb = gpu.memory_mb
    if memory_mb is None and gpu.memory_gb is not None:
        memory_mb = gpu.memory_gb * MB_PER_GB
    return GpuState(
        uuid=gpu_key(gpu, position),
        name=gpu.name,
        memory_mb=memory_mb,
        index=position if gpu.index is None else gpu.index,
        compute_capability=gpu.compute_capability,
        parent_uuid=gpu.parent_uuid,
        is_parent=gpu.uuid is not None and gpu.uuid in parents,
        health=gpu.health or "ok",
    )


def _ambiguous_gpus(hardware: Hardware, *, node_id: str | None) -> NodeError | None:
    """Refuse hardware of which two GPUs have one UUID: no figure could be assigned to one of them."""
    positions: dict[str, int] = {}
    for position, gpu in enumerate(hardware.gpus):
        first = positions.setdefault(gpu_key(gpu, position), position)
        if first != position:
            path, problem = f"$.hardware.gpus[{position}].uuid", f"the same as that of gpus[{first}]"
            return _invalid(path, problem, "declare each GPU once, under a uuid of its own", node_id=node_id)
    return None


def _may_be_too_large(message: NodeRegister, frame_bytes: int) -> bool:
    """Whether what came in a frame of this length may take more room than is allowed, once it is stored."""
    parts = 1 + len(message.hardware.gpus) + len(message.installed_models)
    return LONGEST_ESCAPE * frame_bytes + parts * _ADDED_BYTES > LARGEST_DECLARATION_BYTES


def _too_large(registration: NodeRegister, *, node_id: str | None) -> NodeError | None:
    """Refuse a declaration whose document the store would not take (§4)."""
    document = registration.as_json()
    size = len(to_json(document))
    if size * LONGEST_ESCAPE > LARGEST_DECLARATION_BYTES:
        size = len(json.dumps(document, separators=(",", ":")))
    if size <= LARGEST_DECLARATION_BYTES:
        return None
    problem = (
        f"it takes {size} bytes in the registry's store, {LARGEST_DECLARATION_BYTES} at most are allowed"
    )
    return _invalid("$", problem, "declare fewer models, labels and features", node_id=node_id)


def _invalid(path: str, problem: str, next_step: str, *, node_id: str | None) -> NodeError:
    return NodeError(
        node_id=node_id,
        code=ErrorCode.INVALID_MESSAGE,
        message=f"{path}: {problem}; {next_step}",
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
