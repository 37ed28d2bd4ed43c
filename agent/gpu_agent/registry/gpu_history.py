"""What each GPU of a node did in the last 15 minutes: use, memory, temperature and power.

At most one point per 15 s, of all the node's GPUs together, in one ring of half-precision floats: 8 bytes a
GPU and point. Half precision is exact to a tenth of a percent, and to a watt below 2 048 W. Of memory it
holds the free steps, as dispatch does. An unknown figure is a NaN in the ring.
"""

from array import array
from collections.abc import Iterator, Sequence
from functools import cache
from math import isnan
from struct import Struct, error
from typing import NamedTuple

from gpu_agent.registry.gpus import STEP_MB, Gpus, GpuState
from gpu_agent.wire.heartbeat import GpuColumns

POINTS = 60
POINT_SECONDS = 15.0
SHORTEST_SECONDS = POINT_SECONDS - 0.5
"""A heartbeat every 15 s that comes a little early is a point as well."""

_FIGURES = 4
_LARGEST = 65504.0
"""The largest half-precision float."""


class GpuPoint(NamedTuple):
    """One GPU at one moment; None where a figure is unknown."""

    at: float
    """Monotonic seconds, to the second."""
    utilization_percent: float | None
    memory_used_mb: int | None
    """At most 256 MiB too low."""
    temperature_c: float | None
    power_w: float | None


class GpuHistory:
    """The points of one node's GPUs, in the order of their declaration."""

    __slots__ = ("_layout", "_listed", "_newest", "_ring", "_times", "_uuids", "due_at")

    def __init__(self) -> None:
        self.due_at = 0.0
        """From when on a reading is a point, in monotonic seconds."""
        self._listed: Gpus | None = None
        """The list that the last point is of."""
        self._uuids: tuple[str, ...] = ()
        self._layout = _layout_of(0)
        self._ring = bytearray()
        self._times = array("I")
        """When each place of the ring was written, in whole seconds; 0 for an empty place."""
        self._newest = -1

    def add(self, gpus: Gpus, reported: GpuColumns | None, now: float) -> None:
        """Add a point with what a heartbeat has just reported; for other GPUs it starts again."""
        self.due_at = now + SHORTEST_SECONDS
        if gpus is not self._listed:
            self._begin(gpus)
        self._newest = place = (self._newest + 1) % POINTS
        self._times[place] = int(now) or 1
        layout = self._layout
        try:
            if reported is not None and gpus.all_ok:  # in the order of the list, and most often all known
                _, utilization, _, _, temperature, power, *_ = reported
                steps = gpus.free_steps or gpus.unknown
                layout.pack_into(self._ring, place * layout.size, *utilization, *steps, *temperature, *power)
            else:
                layout.pack_into(self._ring, place * layout.size, *gpus.figures)
        except (error, OverflowError):  # one is unknown, or larger than any GPU's
            layout.pack_into(self._ring, place * layout.size, *map(_packable, gpus.figures))

    @property
    def newest_at(self) -> int | None:
        """When the newest point was written, in whole monotonic seconds; None without any."""
        return self._times[self._newest] if self._newest >= 0 else None

    def points(self, gpus: Gpus, *, since: float) -> dict[str, list[GpuPoint]]:
        """Return the points of these GPUs from a moment on, by UUID and the oldest first."""
        found: dict[str, list[GpuPoint]] = {uuid: [] for uuid in gpus}
        count = len(self._uuids)
        known = [(own, found[uuid], gpus[uuid]) for own, uuid in enumerate(self._uuids) if uuid in found]
        for at, figures in self._written(since):
            for own, points, gpu in known:
                points.append(_point(at, gpu, figures[own::count]))
        return found

    @property
    def size_bytes(self) -> int:
        """What the points take."""
        return len(self._ring) + len(self._times) * self._times.itemsize

    def _begin(self, gpus: Gpus) -> None:
        """Take another list; a node that declares the same GPUs again keeps its points."""
        self._listed, uuids = gpus, tuple(gpus)
        if uuids != self._uuids or not self._times:
            self._uuids, self._layout, self._newest = uuids, _layout_of(len(uuids)), -1
            self._ring = bytearray(POINTS * self._layout.size)
            self._times = array("I", bytes(POINTS * array("I").itemsize))

    def _written(self, since: float) -> Iterator[tuple[int, tuple[float, ...]]]:
        """Yield when each place was written, and its columns, the oldest first."""
        for place in (*range(self._newest + 1, POINTS), *range(self._newest + 1)):
            at = self._times[place] if self._times else 0
            if at and at >= int(since):
                yield at, self._layout.unpack_from(self._ring, place * self._layout.size)


def _point(at: int, gpu: GpuState, figures: Sequence[float]) -> GpuPoint:
    utilization, steps, temperature, power = map(_known, figures)
    used = None
    if steps is not None and gpu.memory_mb is not None:
        used = max(0, gpu.memory_mb - (int(steps) + 1) * STEP_MB)
    return GpuPoint(float(at), utilization, used, temperature, power)


@cache
def _layout_of(gpus: int) -> Struct:
    """Return the layout of one point: a column for each figure, with a place for each GPU."""
    return Struct(f"{_FIGURES * gpus}e")


def _packable(figure: float) -> float:
    return figure if isnan(figure) else max(-_LARGEST, min(_LARGEST, figure))


def _known(figure: float) -> float | None:
    return None if isnan(figure) else round(figure, 1)
