"""What each GPU of a node did in the last 15 minutes: use, memory, temperature and power.

At most one point per 15 s, of all the node's GPUs together, in one ring of half-precision floats: 8 bytes a
GPU and point. Half precision is exact to a tenth of a percent, and to a watt below 2 048 W. Of memory it
holds the free steps, as dispatch does. An unknown figure is a NaN in the ring.
"""

from array import array
from collections.abc import Iterator
from functools import cache
from math import isnan
from struct import Struct, error
from typing import NamedTuple

from gpu_agent.registry.gpus import STEP_MB, Gpus, GpuState

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

    __slots__ = ("_gpus", "_newest", "_ring", "_times", "due_at")

    def __init__(self) -> None:
        self.due_at = 0.0
        """From when on a reading is a point, in monotonic seconds."""
        self._gpus: tuple[str, ...] | None = None
        self._ring = bytearray()
        self._times = array("I")
        """When each place of the ring was written, in whole seconds; 0 for an empty place."""
        self._newest = -1

    def add(self, gpus: Gpus, now: float) -> None:
        """Add a point with the newest figures of a node's GPUs; for another list it starts again."""
        self.due_at = now + SHORTEST_SECONDS
        keys = tuple(gpus)
        if keys != self._gpus:
            self._gpus, self._newest = keys, -1
            self._ring = bytearray(POINTS * _layout(len(keys)).size)
            self._times = array("I", bytes(POINTS * array("I").itemsize))
        self._newest = (self._newest + 1) % POINTS
        self._times[self._newest] = max(1, int(now))
        layout, figures = _layout(len(keys)), gpus.figures
        offset = self._newest * layout.size
        try:
            layout.pack_into(self._ring, offset, *figures)
        except (error, OverflowError):  # a figure is larger than any GPU's
            layout.pack_into(self._ring, offset, *map(_packable, figures))

    def points(self, gpu: GpuState, *, since: float) -> list[GpuPoint]:
        """Return the points of one GPU from a moment on, the oldest first; none for one that is not known."""
        return list(self._points(gpu, since)) if gpu.uuid in (self._gpus or ()) else []

    @property
    def size_bytes(self) -> int:
        """What the points take."""
        return len(self._ring) + len(self._times) * self._times.itemsize

    def _points(self, gpu: GpuState, since: float) -> Iterator[GpuPoint]:
        gpus = self._gpus or ()
        count, own = len(gpus), gpus.index(gpu.uuid)
        for place in (*range(self._newest + 1, POINTS), *range(self._newest + 1)):
            at = self._times[place]
            if not at or at < int(since):
                continue
            figures = _layout(count).unpack_from(self._ring, place * _layout(count).size)
            utilization, steps, temperature, power = map(_known, figures[own::count])
            used = None
            if steps is not None and gpu.memory_mb is not None:
                used = max(0, gpu.memory_mb - (int(steps) + 1) * STEP_MB)
            yield GpuPoint(float(at), utilization, used, temperature, power)


@cache
def _layout(gpus: int) -> Struct:
    """Return the layout of one point: a column for each figure, with a place for each GPU."""
    return Struct(f"{_FIGURES * gpus}e")


def _packable(figure: float) -> float:
    return figure if isnan(figure) else max(-_LARGEST, min(_LARGEST, figure))


def _known(figure: float) -> float | None:
    return None if isnan(figure) else round(figure, 1)
