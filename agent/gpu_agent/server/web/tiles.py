"""A tile for each GPU: what it is for jobs now, how busy it is, how full, and whether it is degraded.

Use and memory are shown in tenths, so that a row changes only when something visible does. The tiles say
nothing to a screen reader; the sentence beside them says the same.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from gpu_agent.server.web.findings import gpu_number, jobs_of, shown_reasons
from gpu_agent.wire.api import GpuView
from gpu_agent.wire.codes import GpuStatus

_CLASSES: Mapping[GpuStatus, str] = {
    GpuStatus.LOST: "x l",
    GpuStatus.UNKNOWN: "x q",
    GpuStatus.CLAIMED: "c",
    GpuStatus.IDLE: "z",
    GpuStatus.USED_WITHOUT_CLAIM: "n",
    GpuStatus.NOT_SCHEDULABLE: "x",
    GpuStatus.FREE: "f",
}
_WORDS: Mapping[GpuStatus, str] = {
    GpuStatus.FREE: "free",
    GpuStatus.CLAIMED: "claimed",
    GpuStatus.IDLE: "claimed but idle",
    GpuStatus.USED_WITHOUT_CLAIM: "used without a claim",
    GpuStatus.NOT_SCHEDULABLE: "not schedulable",
    GpuStatus.LOST: "lost",
    GpuStatus.UNKNOWN: "unknown",
}
_HAS_BARS = frozenset({GpuStatus.CLAIMED, GpuStatus.IDLE, GpuStatus.USED_WITHOUT_CLAIM})


@dataclass(frozen=True, slots=True)
class Tile:
    """One GPU or MIG device as a tile."""

    classes: str
    title: str
    device: str | None
    """The UUID of the GPU whose MIG device it is: devices of one GPU stand in a frame."""


TileGroup = tuple[str | None, tuple[Tile, ...]]
"""Tiles side by side, and the UUID of the GPU whose MIG devices they are; None for whole GPUs."""


def tiles_of(gpus: Sequence[GpuView], *, offline: bool) -> tuple[TileGroup, ...]:
    """Return the tiles of a node's GPUs, without the parents of MIG devices."""
    tiles = [
        Tile(tile_classes(gpu, offline=offline), _title(gpu, place), gpu.parent_uuid)
        for place, gpu in enumerate(gpus)
    ]
    return tuple((device, tuple(some)) for device, some in groupby(tiles, lambda tile: tile.device))


def tile_classes(gpu: GpuView, *, offline: bool) -> str:
    """Return the classes of a GPU's tile; nobody knows how busy one of an offline node is."""
    return " ".join(_tile_classes(gpu, status_of(gpu), has_bars=not offline))


def status_of(gpu: GpuView) -> GpuStatus:
    """Return what a GPU is for jobs now; it is no parent of MIG devices."""
    return GpuStatus(gpu.status or GpuStatus.UNKNOWN)


def tiles_sentence(gpus: Sequence[GpuView]) -> str:
    """Say what the tiles show: how many GPUs there are, and what they are for jobs now."""
    counts = Counter(map(status_of, gpus))
    parts = [f"{counts[status]} {word}" for status, word in _WORDS.items() if counts[status]]
    number = f"{len(gpus)} GPU{'' if len(gpus) == 1 else 's'}"
    return f"{number}: {', '.join(parts)}" if parts else number


def _tile_classes(gpu: GpuView, status: GpuStatus, *, has_bars: bool) -> Iterator[str]:
    yield "g"
    yield _CLASSES[status]
    if gpu.cordoned is not None and status is GpuStatus.NOT_SCHEDULABLE:
        yield "k"
    if gpu.health == "degraded" and status not in {GpuStatus.LOST, GpuStatus.UNKNOWN}:
        yield "d"
    if has_bars and status in _HAS_BARS:
        yield from _tenths("u", gpu.utilization_percent, 100)
        yield from _tenths("m", gpu.memory_used_mb, gpu.memory_mb)


def _tenths(letter: str, part: float | None, whole: float | None) -> Iterator[str]:
    if part and whole:
        yield f"{letter}{max(1, min(10, round(10 * part / whole)))}"


def _title(gpu: GpuView, place: int) -> str:
    """Say what a tile shows; figures that change with each heartbeat are on the node's page."""
    said = [f"GPU {gpu_number(gpu, place)}", _WORDS[status_of(gpu)]]
    jobs = jobs_of(gpu)
    if jobs:
        said[1] += f" by {', '.join(jobs)}"
    if gpu.cordoned is not None:
        said.append(gpu.cordoned)
    if gpu.reasons:
        said.append(", ".join(shown_reasons(gpu.reasons)))
    return " · ".join(said)
