"""A beat: what changed of a declaration, and the newest figures, made into one message (§3.4).

Unknown figures are absent, never 0. Decides nothing about when a beat is sent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from gpu_agent.wire.declaration import Declaration
from gpu_agent.wire.inventory import Gpu, Inventory
from gpu_agent.wire.messages import GpuFigures, Hardware, InstalledModel, NodeHeartbeat, ResourceUsage

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class BeatChanges:
    """The parts of a declaration that a beat replaces in full because they changed (§3.4)."""

    installed_models: tuple[InstalledModel, ...] | None = None
    capability_state: dict[str, str] | None = None
    accept_public_jobs: bool | None = None
    labels: dict[str, str] | None = None
    max_concurrent_jobs: int | None = None
    hardware: Hardware | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What only the shell knows at the moment of a beat."""

    timestamp_ms: int
    cpu_percent: float
    mem_percent: float
    running_jobs: int | None
    """None where no worker announces jobs and no GPU tells who uses it."""
    running_job_ids: tuple[str, ...] | None
    probe_age_seconds: float | None


def changes(told: Declaration, current: Declaration) -> BeatChanges:
    """What a beat must replace, given what the registry was last told."""
    owner, before = current.owner, told.owner
    models_changed = current.installed_models != told.installed_models
    state_changed = dict(current.capability_state) != dict(told.capability_state)
    return BeatChanges(
        installed_models=current.installed_models if models_changed else None,
        capability_state=dict(current.capability_state) if models_changed or state_changed else None,
        accept_public_jobs=_if_changed(before.accept_public_jobs, owner.accept_public_jobs),
        labels=_if_changed(dict(before.labels), dict(owner.labels)),
        max_concurrent_jobs=_if_changed(before.max_concurrent_jobs, owner.max_concurrent_jobs),
        hardware=_if_changed(told.hardware, current.hardware),
    )


def heartbeat(
    node_id: str,
    inventory: Inventory,
    *,
    moment: Moment,
    changed: BeatChanges,
    sequence: int,
    count_required: bool = False,
) -> NodeHeartbeat:
    """Compose a beat from the newest inventory and the moment's figures (§3.4).

    `count_required`: an older scheduler may drop a beat without a number of jobs, in silence (§9).
    There alone the unknown is told as 0.
    """
    unknown_jobs = 0 if count_required else None
    slices_of = {gpu.parent_uuid for gpu in inventory.gpu.gpus if gpu.parent_uuid}
    counted = [gpu for gpu in inventory.gpu.gpus if gpu.uuid not in slices_of]
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
        gpus=tuple(_figures(gpu) for gpu in inventory.gpu.gpus),
        probe_age_seconds=moment.probe_age_seconds,
        running_jobs=moment.running_job_ids,
        sequence=sequence,
        installed_models=changed.installed_models,
        capability_state=changed.capability_state,
        accept_public_jobs=changed.accept_public_jobs,
        labels=changed.labels,
        max_concurrent_jobs=changed.max_concurrent_jobs,
        hardware=changed.hardware,
    )


def _if_changed(before: _T, after: _T) -> _T | None:
    return None if before == after else after


def _figures(gpu: Gpu) -> GpuFigures:
    return GpuFigures(
        uuid=gpu.uuid,
        utilization_percent=gpu.utilization_percent,
        memory_used_mb=gpu.memory_used_mb,
        memory_total_mb=gpu.memory_mb,
        temperature_c=gpu.temperature_c,
        power_w=gpu.power_w,
        health=gpu.health.value,
        reasons=tuple(reason.code for reason in gpu.reasons),
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
