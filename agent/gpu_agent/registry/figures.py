"""The figures of a beat, written into the record's GPUs: on the hottest path, once per beat.

Touches only what the beat says. Judges nothing; a GPU that was never declared is not invented.
"""

from gpu_agent.registry.load import same_step
from gpu_agent.registry.record import NodeRecord
from gpu_agent.wire.messages import GpuFigures

NOT_REPORTED = "not_reported"
"""The reason of a GPU that was declared and is missing from a beat which lists the others."""

_USABLE = frozenset({"ok", "degraded"})


def write(record: NodeRecord, figures: tuple[GpuFigures, ...] | None) -> bool:
    """Write one beat's per-GPU figures; says whether dispatch could tell the difference.

    None (a node that reports no figures) makes every GPU usable (§4).
    """
    if figures is None:
        _assume_usable(record)
        return True
    gpus = record.gpus
    usable = matched = 0
    differs = False
    for one in figures:
        gpu = gpus.get(one.uuid)
        if gpu is None:
            continue
        matched += 1
        health, used = one.health, one.memory_used_mb
        if health != gpu.health:
            gpu.health = health
            differs = True
        if used != gpu.memory_used_mb or used is None:
            differs = differs or bool(record.claims) or not same_step(gpu, used)
            gpu.memory_used_mb = used
        gpu.figures, gpu.reasons = one, one.reasons
        if health in _USABLE and not gpu.is_parent:
            usable += 1
    record.usable_gpus = usable
    if matched != len(gpus):
        _settle_unmatched(record, figures)
        return True
    return differs


def _assume_usable(record: NodeRecord) -> None:
    for gpu in record.gpus.values():
        gpu.health, gpu.reasons = "ok", ()
        gpu.figures = gpu.memory_used_mb = None
    record.usable_gpus = sum(gpu.usable for gpu in record.gpus.values())


def _settle_unmatched(record: NodeRecord, figures: tuple[GpuFigures, ...]) -> None:
    """Match GPUs declared without a UUID by their place; what then is missing is not there to be used."""
    nameless = [gpu for gpu in record.gpus.values() if gpu.uuid.startswith("#")]
    if len(nameless) == len(record.gpus) == len(figures):
        for gpu, one in zip(nameless, figures, strict=True):
            gpu.health, gpu.reasons = one.health, one.reasons
            gpu.memory_used_mb, gpu.figures = one.memory_used_mb, one
    else:
        reported = {one.uuid for one in figures}
        for gpu in record.gpus.values():
            if gpu.uuid not in reported:
                gpu.health, gpu.reasons = "unknown", (NOT_REPORTED,)
                gpu.figures = gpu.memory_used_mb = None
    record.usable_gpus = sum(gpu.usable for gpu in record.gpus.values())
