"""One node as dispatch sees it: its record, its free GPU memory, its score and load, its index entries.

A claim reserves memory that its job will use. What the node's own figures show already is not subtracted
again. Memory reserved on a GPU that the node no longer declares may be used on any of its GPUs, so it is
subtracted from each of them until the claim ends.

The score is one whole number, so that equal means equal: four shares, each with its weight from the settings,
for free slots, idle GPUs, free GPU memory and a short round trip. All but the first count in tenths, so that
small changes of a figure move no node. Heartbeats whose figures fall into the same tenths, and on the same
side of each limit, have the same load and change nothing in the index.
"""

from collections import Counter
from collections.abc import Hashable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from gpu_agent.registry.gpus import Gpus, GpuState
from gpu_agent.registry.node import Declared, NodeRecord
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.codes import ExclusionReason
from gpu_agent.wire.messages import ResourceUsage

GpuSet = tuple[tuple[str, int], ...]
"""How many usable GPUs of each name, names in lower case and sorted: few nodes differ in it."""


Load = tuple[bool, bool, bool, float | None, float | None]
"""CPU, memory and GPU over their limits; tenths of GPU use; tenths of GPU memory use."""

_TENTHS = 10
_ALL = 100
_FAR_SECONDS = 0.1
"""A node whose round trip takes this long is far; one that takes longer is no farther."""


@dataclass(slots=True)
class ReservedMemory:
    """What the claims on one GPU will use of its memory. MiB."""

    claims: int = 0
    needs_mb: int = 0
    expected_mb: int = 0
    """The use that the node will show once every claim has what it needs."""

    def add(self, need_mb: int, used_mb: int, *, shown: bool) -> None:
        """Add a claim; `shown` says that its job runs, so `used_mb` holds its memory already."""
        self.claims += 1
        self.needs_mb += need_mb
        self.expected_mb = max(self.expected_mb, used_mb) + (0 if shown else need_mb)

    def remove(self, need_mb: int) -> None:
        """Remove a claim."""
        self.claims -= 1
        self.needs_mb -= need_mb
        self.expected_mb -= need_mb

    def unshown_mb(self, used_mb: int) -> int:
        """Return what is reserved and not in the node's figures yet; never more than the sum of the needs."""
        return min(max(self.expected_mb - used_mb, 0), self.needs_mb)


Reservations = dict[str, ReservedMemory]
"""By the GPU's UUID; a GPU without claims has no entry."""


@dataclass(slots=True, eq=False)
class Candidate:
    """A node and its entries in the index. The record belongs to the fleet, the rest to dispatch."""

    record: NodeRecord
    position: int
    """Its number in the index's bitsets."""
    limits: Thresholds
    reserved: Reservations = field(default_factory=dict)
    unschedulable: ExclusionReason | None = None
    """The first reason that holds whatever the job; None when the node is open to jobs."""
    score: int = 0
    declared: Declared | None = None
    """The declaration that the index knows; the fleet replaces it as a whole."""
    keys: list[AbstractSet[Hashable]] = field(default_factory=list)
    """What the index holds of it, for each filter with keys, in the order of the filters."""
    gpu_states: Gpus | None = None
    """The GPUs that the index knows; heartbeats change them in place, a declaration replaces them."""
    healths: tuple[str, ...] = ()
    usable: list[int] = field(default_factory=list)
    """The places among the GPUs of those that can take a job."""
    gpus: GpuSet = ()
    free: list[int] = field(default_factory=list)
    """Free memory of the usable GPUs in steps of the index, the freest first."""
    room: tuple[int, ...] = ()
    """Those of `free` that the index holds, one per rank."""


def gpu_set(record: NodeRecord) -> GpuSet:
    """Count a node's usable GPUs by name; the parent of MIG devices takes no job."""
    return tuple(sorted(Counter(gpu.name.lower() for gpu in record.gpus.values() if gpu.usable).items()))


def usable_gpus(record: NodeRecord, gpu_name: str = "") -> list[GpuState]:
    """Return the GPUs that can take a job and whose name contains `gpu_name` (lower case)."""
    return [gpu for gpu in record.gpus.values() if gpu.usable and gpu_name in gpu.name.lower()]


def used_mb(record: NodeRecord, gpu: GpuState) -> int:
    """Return the memory in use on a GPU; the node's mean where it reports none for this one.

    Never less than 0 or more than the GPU has, whatever the node reports.
    """
    used, memory = gpu.memory_used_mb, gpu.memory_mb
    if used is not None:
        return max(used, 0) if memory is None else min(max(used, 0), memory)
    usage = record.liveness.usage
    share = None if usage is None else known_percent(usage.gpu_mem_percent)
    return 0 if share is None or memory is None else int(memory * share / 100)


def free_mb(record: NodeRecord, gpu: GpuState, reserved: Reservations) -> int | None:
    """Return the memory that a new job can use; None where the GPU's memory is unknown."""
    if gpu.memory_mb is None:
        return None
    used = used_mb(record, gpu)
    if not reserved:
        return gpu.memory_mb - used
    here = reserved.get(gpu.uuid)
    unshown = 0 if here is None else here.unshown_mb(used)
    return gpu.memory_mb - used - unshown - _undeclared_mb(record, reserved)


def best_score(weights: Thresholds) -> int:
    """Return the score of an idle node; only the affinity bonus goes above it."""
    measured = weights.weight_gpu_use + weights.weight_free_memory + weights.weight_round_trip
    return weights.weight_load + measured


def score(record: NodeRecord, in_flight: int, weights: Thresholds) -> int:
    """Rate a node from 0 to the best score; an unknown figure counts as half."""
    usage = record.liveness.usage
    slots = record.declared.max_concurrent_jobs
    free = slots - in_flight
    return (
        (weights.weight_load * free // slots if free > 0 else 0)
        + _idle(None if usage is None else usage.gpu_percent, weights.weight_gpu_use)
        + _idle(None if usage is None else usage.gpu_mem_percent, weights.weight_free_memory)
        + _near(record.liveness.round_trip_seconds, weights.weight_round_trip)
    )


def load_of(usage: ResourceUsage, limits: Thresholds) -> Load:
    """Return all that dispatch reads from a node's usage."""
    # For each heartbeat: `known_percent` without a call, and figures from the model's own dictionary.
    figures = usage.__dict__
    gpu, gpu_memory = figures["gpu_percent"], figures["gpu_mem_percent"]
    return (
        figures["cpu_percent"] > limits.max_cpu_percent,
        figures["mem_percent"] > limits.max_memory_percent,
        gpu is not None and gpu > limits.max_gpu_percent,
        gpu // _TENTHS if gpu is not None and 0 <= gpu <= _ALL else None,
        gpu_memory // _TENTHS if gpu_memory is not None and 0 <= gpu_memory <= _ALL else None,
    )


def known_percent(figure: float | None) -> float | None:
    """Return a percentage; one outside 0 to 100 says nothing and is unknown."""
    return figure if figure is not None and 0 <= figure <= _ALL else None


def nearness(round_trip_seconds: float | None) -> int | None:
    """Return how near a node is, in tenths: 10 is here, 0 is far."""
    if round_trip_seconds is None:
        return None
    return _TENTHS - min(int(_TENTHS * round_trip_seconds / _FAR_SECONDS), _TENTHS)


def _undeclared_mb(record: NodeRecord, reserved: Reservations) -> int:
    """Return what is reserved on GPUs that the node no longer declares, as after a change of schema."""
    declared = record.gpus.keys()
    if reserved.keys() <= declared:
        return 0
    return sum(one.needs_mb for uuid, one in reserved.items() if uuid not in declared)


def _idle(percent: float | None, weight: int) -> int:
    """Rate what is left of 100 %, in tenths; a tenth counts as used once it is entered."""
    known = known_percent(percent)
    if known is None:
        return weight >> 1
    return weight * (_TENTHS - int(known) // _TENTHS) // _TENTHS


def _near(round_trip_seconds: float | None, weight: int) -> int:
    near = nearness(round_trip_seconds)
    return weight >> 1 if near is None else weight * near // _TENTHS
