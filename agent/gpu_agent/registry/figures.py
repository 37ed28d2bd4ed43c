"""The figures of a beat, written into the record's GPUs: on the hottest path, once per beat.

Touches only what the beat says. Judges nothing; a GPU that was never declared is not invented.
"""

from gpu_agent.registry.record import GpuState, NodeRecord
from gpu_agent.wire.messages import GpuFigures

USABLE = frozenset({"ok", "degraded"})
NOT_REPORTED = "not_reported"
"""The reason of a GPU that was declared and is missing from a beat which lists the others."""


def write(record: NodeRecord, figures: tuple[GpuFigures, ...] | None) -> None:
    """Write one beat's per-GPU figures; None (a node that reports none) makes every GPU usable (§4)."""
    gpus = record.gpus
    if figures is None:
        _assume_usable(record)
        return
    usable = matched = 0
    for one in figures:
        gpu = gpus.get(one.uuid)
        if gpu is None:
            continue
        matched += 1
        gpu.health = health = one.health
        gpu.reasons = one.reasons
        gpu.utilization_percent = one.utilization_percent
        gpu.memory_used_mb = one.memory_used_mb
        gpu.temperature_c = one.temperature_c
        gpu.power_w = one.power_w
        if health in USABLE and not gpu.is_parent:
            usable += 1
    record.usable_gpus = usable
    if matched != len(gpus):
        _settle_unmatched(record, figures)


def _assume_usable(record: NodeRecord) -> None:
    for gpu in record.gpus.values():
        gpu.health, gpu.reasons = "ok", ()
    record.usable_gpus = sum(gpu.usable for gpu in record.gpus.values())


def _settle_unmatched(record: NodeRecord, figures: tuple[GpuFigures, ...]) -> None:
    """Match GPUs declared without a UUID by their place; what then is missing is not there to be used."""
    nameless = [gpu for gpu in record.gpus.values() if gpu.uuid.startswith("#")]
    if len(nameless) == len(record.gpus) == len(figures):
        for gpu, one in zip(nameless, figures, strict=True):
            _copy(gpu, one)
    else:
        reported = {one.uuid for one in figures}
        for gpu in record.gpus.values():
            if gpu.uuid not in reported:
                gpu.health, gpu.reasons = "unknown", (NOT_REPORTED,)
    record.usable_gpus = sum(gpu.usable for gpu in record.gpus.values())


def _copy(gpu: GpuState, one: GpuFigures) -> None:
    gpu.health, gpu.reasons = one.health, one.reasons
    gpu.utilization_percent = one.utilization_percent
    gpu.memory_used_mb = one.memory_used_mb
    gpu.temperature_c, gpu.power_w = one.temperature_c, one.power_w
