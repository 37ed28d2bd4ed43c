"""What NVML children told before they answered: events for the reading that comes next, and silent GPUs.

A child tells of an event as soon as it has taken it from the driver, since no other child will hear
of it again; its answer may never come. What was told stays here until a reading lists its GPU, and
is told once. Which GPUs must not be asked is kept as it was told, for every later child, until this
agent ends. It outlives every child, and judges nothing.

    {"heard": {"GPU-1…": {"xid_119": 1}}, "silent": {"GPU-1…": {"index": 1, "why": "xid_119", ...}}}
"""

import json
from collections.abc import Mapping
from dataclasses import replace

from gpu_agent.probe.reasons import REASONS, Clears
from gpu_agent.probe.stand_in import UNIDENTIFIED
from gpu_agent.wire.inventory import Gpu, GpuReport, Outcome

Counts = dict[str, int]
"""Event code → how often it came."""


class Heard:
    """The events that no reading has told of yet, by the GPU's UUID."""

    def __init__(self) -> None:
        self.silent: dict[str, object] = {}
        """The GPUs that must not be asked, each as its child told of it."""
        self._events: dict[str, Counts] = {}
        self._places: dict[str, int | None] = {}

    def take(self, line: bytes) -> None:
        """Take in a line from a child; what tells of no events is passed over."""
        said = _said_in(line)
        self.silent.update(_mapping(said.get("silent")))
        for uuid, counts in _counts_in(said).items():
            known = self._events.setdefault(uuid, {})
            for code, count in counts.items():
                known[code] = known.get(code, 0) + count

    def lay_into(self, report: GpuReport) -> GpuReport:
        """Tell with a reading what was heard of the GPUs that it lists."""
        if report.outcome is not Outcome.OK:
            return report
        listed = {gpu.uuid for gpu in report.gpus}
        gpus = tuple(self._told(gpu, listed) for gpu in report.gpus)
        whole = (gpu for gpu in gpus if gpu.parent_uuid is None)  # slices have their GPU's index
        self._places = {gpu.uuid: gpu.index for gpu in whole}
        self._events = {uuid: kept for uuid, counts in self._events.items() if (kept := _outlasting(counts))}
        return replace(report, gpus=gpus)

    def _told(self, gpu: Gpu, listed: set[str]) -> Gpu:
        counts = self._events.pop(gpu.uuid, None)
        if counts is None and gpu.uuid.startswith(UNIDENTIFIED):
            counts = self._events.pop(self._last_in_place(gpu.index, listed), None)
        return gpu if counts is None else replace(gpu, events=counts)

    def _last_in_place(self, index: int | None, listed: set[str]) -> str:
        """Name the GPU that was last seen where one now cannot say who it is."""
        seen = (uuid for uuid, place in self._places.items() if place == index and uuid not in listed)
        return next(seen, "")


def _outlasting(counts: Counts) -> Counts:
    """Keep, of a GPU that is not listed, what its return does not end."""
    return {
        code: count
        for code, count in counts.items()
        if code not in REASONS or REASONS[code].clears is not Clears.RETURN
    }


def _said_in(line: bytes) -> Mapping[str, object]:
    try:
        return _mapping(json.loads(line))
    except ValueError:
        return {}


def _counts_in(said: Mapping[str, object]) -> dict[str, Counts]:
    return {
        uuid: {code: count for code, count in _mapping(counts).items() if isinstance(count, int)}
        for uuid, counts in _mapping(said.get("heard")).items()
    }


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}
