"""One node as dispatch sees it: its record, the GPU memory that claims reserve, its index entries.

A claim reserves memory that its job will use. What the node's own figures show already is not subtracted
again. Memory reserved on a GPU that the node no longer declares may be used on any of its GPUs, so it is
subtracted from each of them until the claim ends.
"""

from collections import Counter
from collections.abc import Hashable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from gpu_agent.registry.dispatch.refusals import ExclusionReason
from gpu_agent.registry.dispatch.scoring import known_percent
from gpu_agent.registry.gpus import Gpus, GpuState
from gpu_agent.registry.node import Declared, NodeRecord
from gpu_agent.registry.settings import Thresholds

GpuSet = tuple[tuple[str, int], ...]
"""How many usable GPUs of each name, names in lower case and sorted: few nodes differ in it."""


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
    keys: dict[ExclusionReason, AbstractSet[Hashable]] = field(default_factory=dict)
    """What the index holds of it, for each filter with keys."""
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


def _undeclared_mb(record: NodeRecord, reserved: Reservations) -> int:
    """Return what is reserved on GPUs that the node no longer declares, as after a change of schema."""
    declared = record.gpus.keys()
    if reserved.keys() <= declared:
        return 0
    return sum(one.needs_mb for uuid, one in reserved.items() if uuid not in declared)
