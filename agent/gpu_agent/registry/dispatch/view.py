"""One node as dispatch sees it: the fleet's record, what claims promised, and how it is filed."""

from collections import Counter
from dataclasses import dataclass, field

from gpu_agent.registry.dispatch.memory import Promises
from gpu_agent.registry.dispatch.verdict import Exclusion
from gpu_agent.registry.gpus import Gpus, GpuState
from gpu_agent.registry.record import NodeRecord
from gpu_agent.registry.thresholds import Thresholds

GpuSet = tuple[tuple[str, int], ...]
"""How many usable GPUs of each name, names in lower case and in order: few nodes differ in it."""


@dataclass(slots=True, eq=False)
class NodeView:
    """A node and how it is filed. The record is the fleet's; the rest belongs to dispatch."""

    record: NodeRecord
    slot: int
    limits: Thresholds
    promises: Promises = field(default_factory=dict)
    barred: Exclusion | None = None
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
