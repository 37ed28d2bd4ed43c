"""What a row of the table of filters states; `filters` says how to add one."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import KW_ONLY, dataclass
from enum import Enum, auto
from typing import NamedTuple, Self

from gpu_agent.registry.dispatch.candidate import Candidate
from gpu_agent.registry.job import Demand
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.quoting import clip_sentence
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.codes import ExclusionReason


class Shortfall(NamedTuple):
    """What a job needs, and what the node has instead."""

    need: str
    have: str


@dataclass(frozen=True, slots=True)
class NodeState:
    """The index holds the nodes that this excludes whatever the job, each under its first reason only."""

    excludes: Callable[[NodeRecord, Thresholds], bool]


@dataclass(frozen=True, slots=True)
class NodeIds:
    """The job names the nodes that pass (None for all), and those that do not."""

    allowed: Callable[[Demand], frozenset[str] | None]
    excluded: Callable[[Demand], frozenset[str]]


@dataclass(frozen=True, slots=True)
class Keys:
    """The index holds the nodes that have a key; a node passes that has one key of each group of the job's.

    The keys follow from what the node declares.
    """

    of_node: Callable[[NodeRecord], AbstractSet[Hashable]]
    of_job: Callable[[Demand], Iterable[tuple[Hashable, ...]]]


class GpuKey(Enum):
    """What the index holds of a node's GPUs."""

    USABLE = auto()
    """How many are usable of each kind."""
    FREE = auto()
    """How many of these nothing else holds, and how much memory is free on them.

    Memory is held in steps: a node that passes the index may still fail the filter.
    """
    RESERVED = auto()
    """The few nodes on which a waiting job keeps others from what it needs."""
    BUSY = auto()
    """Whether GPU use is above its limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeExclusion:
    """Jobs that one filter excludes from a node."""

    reason: ExclusionReason
    jobs: str
    """Which jobs, in words."""
    need: str
    have: str
    clears_when: str
    is_limit: bool
    """True for what the node is, as opposed to a state that may pass."""

    @classmethod
    def of(
        cls,
        reason: ExclusionReason,
        shortfall: Shortfall,
        *,
        jobs: str,
        clears_when: str,
        is_limit: bool = False,
    ) -> Self:
        """Make one, its words clipped."""
        return cls(
            reason=reason,
            jobs=clip_sentence(jobs),
            need=clip_sentence(shortfall.need),
            have=clip_sentence(shortfall.have),
            clears_when=clip_sentence(clears_when),
            is_limit=is_limit,
        )


class NodeQuestion(NamedTuple):
    """A node to explain; `model` is named whatever its state."""

    candidate: Candidate
    now: float
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Filter:
    """One row of the table."""

    reason: ExclusionReason
    _: KW_ONLY
    key: NodeState | NodeIds | Keys | GpuKey
    shortfall: Callable[[Candidate, Demand], Shortfall | None]
    """None when the node passes."""
    exclusions: Callable[[NodeQuestion], Iterator[NodeExclusion]]
    permanent: bool = False
    """Whether it excludes a node for as long as the node declares what it declares: waiting does not help."""
