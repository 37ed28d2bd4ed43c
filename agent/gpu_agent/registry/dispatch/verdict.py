"""The verdicts of dispatch: exclusion reasons in the order they are tried, and a refusal's account (§5)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from operator import attrgetter

NO_AVAILABLE_NODE = "NO_AVAILABLE_NODE"
EXAMPLES_PER_REASON = 5


class Exclusion(StrEnum):
    """Why a node cannot take a job, in the order of the filters; the first that fails is the reason."""

    STATUS_NOT_READY = "status_not_ready"
    DISCONNECTED = "disconnected"
    CORDONED = "cordoned"
    NOT_ALLOWED = "not_allowed"
    NOT_IN_PUBLIC_POOL = "not_in_public_pool"
    GPU_UNAVAILABLE = "gpu_unavailable"
    MODEL_NOT_AVAILABLE = "model_not_available"
    FEATURE_NOT_SUPPORTED = "feature_not_supported"
    LABEL_MISMATCH = "label_mismatch"
    CAPACITY_EXCEEDED = "capacity_exceeded"
    RESOURCE_THRESHOLD_EXCEEDED = "resource_threshold_exceeded"


@dataclass(frozen=True, slots=True)
class Excluded:
    """One node's reason for one job: what the job needs, what the node has."""

    node_id: str
    reason: Exclusion
    need: str
    have: str


@dataclass(frozen=True, slots=True)
class Able:
    """A node that could take a job, and how good a place it is."""

    node_id: str
    score: int


@dataclass(frozen=True, slots=True)
class NoAvailableNode:
    """Nobody is left (A-8): how many nodes fell to each reason, with a few examples."""

    job_id: str
    counts: Mapping[Exclusion, int] = field(default_factory=dict)
    examples: Mapping[Exclusion, tuple[Excluded, ...]] = field(default_factory=dict)

    @property
    def code(self) -> str:
        """What a scheduler is told (§5)."""
        return NO_AVAILABLE_NODE


@dataclass(frozen=True, slots=True)
class Explanation:
    """Every node's answer to one job, on request (A-3)."""

    job_id: str
    able: tuple[str, ...]
    """Best first."""
    excluded: tuple[Excluded, ...]

    @classmethod
    def of(cls, job_id: str, verdicts: Iterable[Able | Excluded]) -> "Explanation":
        """Put the verdicts on all nodes together."""
        able, excluded = list[Able](), list[Excluded]()
        for one in verdicts:
            if isinstance(one, Able):
                able.append(one)
            else:
                excluded.append(one)
        able.sort(key=attrgetter("score"), reverse=True)
        return cls(job_id, tuple(one.node_id for one in able), tuple(excluded))

    @property
    def counts(self) -> dict[Exclusion, int]:
        """How many nodes fell to each reason."""
        counted: dict[Exclusion, int] = {}
        for one in self.excluded:
            counted[one.reason] = counted.get(one.reason, 0) + 1
        return counted
