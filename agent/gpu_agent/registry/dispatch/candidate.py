"""One node as dispatch sees it: its record, its score and load, its claims by GPU, its index entries.

The score is one whole number, so that equal means equal: four shares, each with its weight from the settings,
for free slots, idle GPUs, free GPU memory and a short round trip. All but the first count in tenths, so that
small changes of a figure move no node. Heartbeats whose figures fall into the same tenths, and on the same
side of each limit, have the same load and change nothing in the index.
"""

from collections.abc import Callable, Hashable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from gpu_agent.registry.gpus import Gpus, GpuState
from gpu_agent.registry.job import GpuDemand, GpuSet
from gpu_agent.registry.node import Declared, NodeRecord
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.codes import ExclusionReason
from gpu_agent.wire.heartbeat import Usage

Load = tuple[bool, bool, bool, float | None, float | None]
"""CPU, memory and GPU over their limits; tenths of GPU use; tenths of GPU memory use."""

LIMITS = 3
"""The first so many decide which jobs a node is open to, the others only its score."""

_TENTHS = 10
_ALL = 100
_FAR_SECONDS = 0.1
"""A node whose round trip takes this long is far; one that takes longer is no farther."""


@dataclass(slots=True)
class ReservedMemory:
    """What the claims that share one GPU will use of its memory. MiB."""

    claims: int = 0
    needs_mb: int = 0
    expected_mb: int = 0
    """The use that the node will show once every claim has what it needs."""

    def add(self, need_mb: int, used_mb: int, *, shown: bool) -> None:
        """Add a claim; `shown` says that its job runs, so that `used_mb` holds memory of it already."""
        self.claims += 1
        self.needs_mb += need_mb
        if shown:
            self.expected_mb = max(self.expected_mb + need_mb, used_mb)
        else:
            self.expected_mb = max(self.expected_mb, used_mb) + need_mb

    def remove(self, need_mb: int) -> None:
        """Remove a claim."""
        self.claims -= 1
        self.needs_mb -= need_mb
        self.expected_mb -= need_mb

    def unshown_mb(self, used_mb: int) -> int:
        """Return what is reserved and not in the node's figures yet; never more than the sum of the needs."""
        return min(max(self.expected_mb - used_mb, 0), self.needs_mb)


Reservations = dict[str, ReservedMemory]
"""By the GPU's UUID; a GPU that no claim shares has no entry."""


@dataclass(frozen=True, slots=True)
class GpuHolder:
    """The claim that holds a GPU, or held it and whose job may still run there."""

    claim_id: str
    job_id: str
    node_id: str
    exclusive: bool
    ended: bool = False

    def __str__(self) -> str:
        """Say who holds it."""
        return f"held: job {self.job_id} may still run there" if self.ended else f"claimed by {self.job_id}"


@dataclass(frozen=True, slots=True)
class QueueReservation:
    """What a waiting job may keep others from on a node (§5.4)."""

    job_id: str
    priority: int
    demand: GpuDemand
    since: float
    """Claims granted later do not count as ending."""


@dataclass(slots=True, eq=False)
class Candidate:
    """A node and its entries in the index. The record belongs to the fleet, the rest to dispatch."""

    record: NodeRecord
    position: int
    """Its number in the index's bitsets."""
    limits: Thresholds
    reserved: Reservations = field(default_factory=dict)
    """Of claims that share GPUs, those that have ended and hold included."""
    exclusive: dict[str, GpuHolder] = field(default_factory=dict)
    """By UUID: the exclusive claims of this node, those that have ended and hold included."""
    why_elsewhere: Callable[["Candidate", GpuState], str | None] = lambda *_: None
    """Says why another node's declaration or claim keeps a GPU of this node from being given out."""
    identity: tuple[Gpus | None, bool, float] = (None, False, 0.0)
    """What decides whether its GPUs are also another node's, as last compared."""
    elsewhere: frozenset[str] = frozenset()
    """UUIDs of its GPUs that another node declares too, which registered later and so gives them out."""
    ended_at: dict[str, float] = field(default_factory=dict)
    """By UUID: when the last claim on it ended; only readings made after that show what uses it."""
    reclaiming: Mapping[str, int] = field(default_factory=dict)
    """By UUID of a GPU held for the job that is placed now: the MiB that its hold keeps from others."""
    reclaimed: str | None = None
    """The id of the ended claim by which these are held."""
    slot_only: int = 0
    """Claims of a slot alone: they use a worker on the node, on one of its GPUs."""
    reservation: QueueReservation | None = None
    unschedulable: ExclusionReason | None = None
    """The first reason that holds whatever the job; None when the node is open to jobs."""
    is_gpu_busy: bool = False
    """True above the limit on GPU use, which only jobs without GPUs of their own obey."""
    score: int = 0
    taken: int = 0
    """GPUs that exclusive claims hold: the more, the better for another such claim."""
    declared: Declared | None = None
    """The declaration that the index knows; the fleet replaces it as a whole."""
    keys: list[AbstractSet[Hashable]] = field(default_factory=list)
    """What the index holds of it, for each filter with keys, in the order of the filters."""
    gpu_states: Gpus | None = None
    """The GPUs that the index knows; heartbeats change them in place, a declaration replaces them."""
    conditions: tuple[str, ...] = ()
    in_use: tuple[bool, ...] = ()
    has_foreign_jobs: bool = False
    """True while it reports a job without a claim, for which one GPU is left."""
    shared: list[int] = field(default_factory=list)
    """The places among the GPUs of those that no exclusive claim holds and jobs may share."""
    sound: GpuSet = ()
    """All that could take a job if they were sound."""
    usable: GpuSet = ()
    unheld: GpuSet = ()
    """Those of `usable` that no exclusive claim holds, and no cordon or other node."""
    free: GpuSet = ()
    """Those of `unheld` that can be given out exclusively."""
    left: GpuSet = ()
    """Those of `usable` that can be given out exclusively once the present claims have ended."""
    free_places: list[int] = field(default_factory=list)
    """Their places among the GPUs: those that work alone first, then the smallest; better ones stay free."""
    free_memory: list[int] = field(default_factory=list)
    """Free memory of the shared GPUs in steps of the index, the freest first."""
    room: tuple[int, ...] = ()
    """Those of `free_memory` that the index holds, one per rank."""

    def is_held_by_others(self, uuid: str) -> bool:
        """Whether claims hold a GPU, or ended ones do, besides the one that is reclaimed."""
        reserved = self.reserved.get(uuid)
        if reserved is not None:
            return reserved.claims > (uuid in self.reclaiming)
        return uuid in self.exclusive and uuid not in self.reclaiming


def best_score(weights: Thresholds) -> int:
    """Return the score of an idle node; only the affinity bonus goes above it."""
    measured = weights.weight_gpu_use + weights.weight_free_memory + weights.weight_round_trip
    return weights.weight_load + measured


def score(record: NodeRecord, in_flight: int, weights: Thresholds) -> int:
    """Rate a node from 0 to the best score; an unknown figure counts as half."""
    liveness, slots = record.liveness, record.slots
    usage = liveness.usage
    free = slots - in_flight
    rating = weights.weight_load * free // slots if free > 0 else 0
    if usage is None:
        rating += (weights.weight_gpu_use >> 1) + (weights.weight_free_memory >> 1)
    else:
        rating += _idle(usage.gpu_percent, weights.weight_gpu_use)
        rating += _idle(usage.gpu_mem_percent, weights.weight_free_memory)
    return rating + _near(liveness.round_trip_seconds, weights.weight_round_trip)


def load_of(usage: Usage, limits: Thresholds) -> Load:
    """Return all that dispatch reads from a node's usage."""
    cpu, memory, gpu, gpu_memory, _ = usage
    return (  # for each heartbeat: `known_percent` without a call
        cpu > limits.max_cpu_percent,
        memory > limits.max_memory_percent,
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


def _idle(percent: float | None, weight: int) -> int:  # `known_percent` without a call
    """Rate what is left of 100 %, in tenths; a tenth counts as used once it is entered."""
    if percent is None or not 0 <= percent <= _ALL:
        return weight >> 1
    return weight * (_TENTHS - int(percent) // _TENTHS) // _TENTHS


def _near(round_trip_seconds: float | None, weight: int) -> int:
    near = nearness(round_trip_seconds)
    return weight >> 1 if near is None else weight * near // _TENTHS
