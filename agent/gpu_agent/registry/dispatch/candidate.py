"""One node as dispatch sees it: its record, the GPU memory that claims reserve, and what the index knows of it.

A claim reserves memory that its job will use. What the node's own figures show already is not subtracted again. Memory
that is reserved on a GPU which the node no longer declares may be used on any of its GPUs, so it is subtracted from each
of them until the claim ends.
"""

from collections import Counter
from dataclasses import dataclass, field

from gpu_agent.registry.dispatch.refusals import ExclusionReason
from gpu_agent.registry.dispatch.scoring import known_percent
from gpu_agent.registry.gpus import Gpus, GpuState
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.settings import Thresholds

# How much GPU memory is free, once what claims need and the node does not show yet is taken off (§5).
#
# A claim promises that its GPU's use will grow by what the job needs. What has grown since is shown by the
# node's own figures; only the rest is taken off again. A promise on a GPU that the node no longer declares
# may
# be kept by any of those that it does: it is taken off each of them, whole, until its claim ends.


@dataclass(slots=True)
class ReservedMemory:
    """What the claims on one GPU will make of its memory. MiB."""

    claims: int = 0
    needs_mb: int = 0
    expected_mb: int = 0
    """The use that the node will show once every claim has what it needs."""

    def make(self, need_mb: int, used_mb: int, *, shown: bool) -> None:
        """Add a claim; `shown` says that its job runs, so that `used_mb` holds its memory already."""
        self.claims += 1
        self.needs_mb += need_mb
        self.expected_mb = max(self.expected_mb, used_mb) + (0 if shown else need_mb)

    def end(self, need_mb: int) -> None:
        """Take a claim back."""
        self.claims -= 1
        self.needs_mb -= need_mb
        self.expected_mb -= need_mb

    def unshown_mb(self, used_mb: int) -> int:
        """Return what is promised and not in the node's figures yet; never more than all needs."""
        return min(max(self.expected_mb - used_mb, 0), self.needs_mb)


Reservations = dict[str, ReservedMemory]
"""By the GPU's UUID; a GPU without claims has no entry."""


def used_mb(record: NodeRecord, gpu: GpuState) -> int:
    """Return what the node says is in use; its mean over all GPUs where it tells nothing of this one.

    Never less than nothing or more than the GPU has: no figure of a node puts it into debt.
    """
    used, memory = gpu.memory_used_mb, gpu.memory_mb
    if used is not None:
        return max(used, 0) if memory is None else min(max(used, 0), memory)
    share = None if record.usage is None else known_percent(record.usage.gpu_mem_percent)
    return 0 if share is None or memory is None else int(memory * share / 100)


def free_mb(record: NodeRecord, gpu: GpuState, promises: Reservations) -> int | None:
    """Return what a new job may count on; None where the GPU's memory is unknown."""
    if gpu.memory_mb is None:
        return None
    used = used_mb(record, gpu)
    if not promises:
        return gpu.memory_mb - used
    promise = promises.get(gpu.uuid)
    promised = 0 if promise is None else promise.unshown_mb(used)
    return gpu.memory_mb - used - promised - _stray_mb(record, promises)


def _stray_mb(record: NodeRecord, promises: Reservations) -> int:
    """Return what is promised on GPUs that the node declares no more, as after a change of schema."""
    declared = record.gpus.keys()
    if promises.keys() <= declared:
        return 0
    return sum(promise.needs_mb for uuid, promise in promises.items() if uuid not in declared)


# One node as dispatch sees it: the fleet's record, what claims promised, and how it is filed.


GpuSet = tuple[tuple[str, int], ...]
"""How many usable GPUs of each name, names in lower case and in order: few nodes differ in it."""


@dataclass(slots=True, eq=False)
class Candidate:
    """A node and how it is filed. The record is the fleet's; the rest belongs to dispatch."""

    record: NodeRecord
    slot: int
    limits: Thresholds
    promises: Reservations = field(default_factory=dict)
    barred: ExclusionReason | None = None
    """The first reason that holds whatever the job; None when the node is open to jobs."""
    score: int = 0
    public: bool = False
    models: frozenset[str] = frozenset()
    features: frozenset[str] = frozenset()
    labels: dict[str, str] = field(default_factory=dict)
    states: Gpus | None = None
    """The record's GPUs; the fleet changes them in place, and puts a new dictionary when others are there."""
    healths: tuple[str, ...] = ()
    usable: list[int] = field(default_factory=list)
    """The places among the GPUs of those a job may be placed on."""
    gpus: GpuSet = ()
    free: list[int] = field(default_factory=list)
    """Free memory of the usable GPUs in steps of the index, the freest first."""
    room: tuple[int, ...] = ()
    """Those of `free` that the index files, one per rank."""


def gpu_set(record: NodeRecord) -> GpuSet:
    """Count a node's usable GPUs by name; the parent of MIG slices takes no job."""
    return tuple(sorted(Counter(gpu.name.lower() for gpu in record.gpus.values() if gpu.usable).items()))


def usable_gpus(record: NodeRecord, gpu_name: str) -> list[GpuState]:
    """Return the GPUs that a job may be placed on whose name contains `gpu_name` (lower case)."""
    return [gpu for gpu in record.gpus.values() if gpu.usable and gpu_name in gpu.name.lower()]
