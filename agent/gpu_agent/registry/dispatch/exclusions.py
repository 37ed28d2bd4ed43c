"""Exclusions: which nodes a job found excluded and why, `NO_AVAILABLE_NODE`, counts of the last hour (§5)."""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter

from gpu_agent.registry.job import Job
from gpu_agent.registry.quoting import clip_quote
from gpu_agent.wire.api import NodeExplanation
from gpu_agent.wire.codes import ExclusionReason

NO_AVAILABLE_NODE = "NO_AVAILABLE_NODE"
EXAMPLES_PER_REASON = 5

WINDOW_SECONDS = 60.0
WINDOWS = 60
LAST_JOBS = 5


@dataclass(frozen=True, slots=True)
class Excluded:
    """Why one node cannot take one job: what the job needs, what the node has."""

    node_id: str
    reason: ExclusionReason
    need: str
    have: str
    hostname: str | None = None
    missing_gpus: int = field(default=0, compare=False)
    """How many usable or free GPUs it lacks, where these are what excludes it, in an explanation."""
    clears_when: str | None = field(default=None, compare=False)
    """What would end it; empty where that is not known, None where it was not asked for."""


@dataclass(frozen=True, slots=True)
class Eligible:
    """A node that could take a job, and its score."""

    node_id: str
    score: int
    hostname: str | None = None


@dataclass(frozen=True, slots=True)
class NoAvailableNode:
    """No node is eligible (A-8): how many nodes each reason excluded, with a few examples."""

    job_id: str
    counts: Mapping[ExclusionReason, int] = field(default_factory=dict)
    examples: Mapping[ExclusionReason, tuple[Excluded, ...]] = field(default_factory=dict)
    nodes_needed: int = 1
    nodes_eligible: int = 0
    """How many could take it, where it needs several."""
    never_fits: bool = False
    """True where it was to wait, and not even an empty fleet of today's nodes could take it (§5.4)."""

    @property
    def knows_no_node(self) -> bool:
        """Whether the fleet has no node at all."""
        return not self.counts and not self.nodes_eligible

    def __str__(self) -> str:
        """Count the nodes by reason; of a job that needs several, also those that could take it."""
        counted = ", ".join(f"{count} {reason.value}" for reason, count in self.counts.items())
        if self.nodes_needed == 1:
            return counted
        eligible = f"needs {self.nodes_needed} nodes, {self.nodes_eligible} can take it"
        alike = "the same GPUs on several of them" if self.nodes_eligible >= self.nodes_needed else ""
        return "; ".join(one for one in (eligible, alike, counted) if one)

    @property
    def code(self) -> str:
        """The code that a scheduler receives (§5)."""
        return NO_AVAILABLE_NODE


@dataclass(frozen=True, slots=True)
class Explanation:
    """Each node's answer to one job, on request (A-3)."""

    job_id: str
    eligible_nodes: tuple[Eligible, ...]
    """Best first."""
    excluded: tuple[Excluded, ...]
    """Nearest first: those that pass the most filters, then those that lack the fewest GPUs."""
    nodes_needed: int = 1

    @classmethod
    def of(cls, job: Job, answers: Iterable[Eligible | Excluded]) -> "Explanation":
        """Collect the answers of all nodes."""
        eligible, excluded = list[Eligible](), list[Excluded]()
        for one in answers:
            if isinstance(one, Eligible):
                eligible.append(one)
            else:
                excluded.append(one)
        eligible.sort(key=attrgetter("score"), reverse=True)
        excluded.sort(key=_distance)
        return cls(job.job_id, tuple(eligible), tuple(excluded), job.nodes)

    @property
    def eligible(self) -> tuple[str, ...]:
        """The ids of the eligible nodes, best first."""
        return tuple(one.node_id for one in self.eligible_nodes)

    @property
    def counts(self) -> dict[ExclusionReason, int]:
        """How many nodes each reason excluded."""
        counted: dict[ExclusionReason, int] = {}
        for one in self.excluded:
            counted[one.reason] = counted.get(one.reason, 0) + 1
        return counted


def clears_when(one: Excluded, explained: NodeExplanation | None) -> str:
    """Return what would end an exclusion, given which jobs its node excludes; empty where it is not known."""
    views = () if explained is None else (*explained.exclusions, *explained.limits)
    return next((view.clears_when for view in views if view.reason == one.reason.value), "")


_ORDER = {reason: place for place, reason in enumerate(ExclusionReason)}


def _distance(one: Excluded) -> tuple[int, int, str, str]:
    """Return how far a node is from taking the job."""
    return -_ORDER[one.reason], one.missing_gpus, one.hostname or "", one.node_id


@dataclass(frozen=True, slots=True, kw_only=True)
class ExclusionWindow:
    """One minute in which dispatches failed. Times are monotonic seconds."""

    start: float
    end: float
    failed: int
    """Dispatches that found no node."""
    counts: Mapping[ExclusionReason, int]
    """How many nodes each reason excluded, over all of them."""
    examples: Mapping[ExclusionReason, tuple[Excluded, ...]]
    """Different nodes, a few for each reason."""
    last_jobs: tuple[str, ...]
    """The ids of the last few jobs that failed, the newest last."""


class ExclusionCounters:
    """The minutes of the last hour in which dispatches failed, the oldest first; bounded, whatever fails."""

    def __init__(self) -> None:
        self._windows: deque[_Window] = deque()
        self._finished_until = 0.0

    def count(self, failure: NoAvailableNode, now: float) -> None:
        """Count a dispatch that found no node."""
        window = self._current(now)
        window.failed += 1
        window.jobs.append(clip_quote(failure.job_id))
        for reason, count in failure.counts.items():
            window.counts[reason] = window.counts.get(reason, 0) + count
        for reason, shown in failure.examples.items():
            nodes = window.examples.setdefault(reason, {})
            for one in shown:
                if one.node_id in nodes or len(nodes) < EXAMPLES_PER_REASON:
                    nodes[one.node_id] = one

    def windows(self, now: float) -> tuple[ExclusionWindow, ...]:
        """Return the minutes of the last hour; the current one is the last, if anything failed in it."""
        self._drop_old(now)
        return tuple(window.snapshot() for window in self._windows)

    def finished(self, now: float) -> tuple[ExclusionWindow, ...]:
        """Return the minutes that are over, each of them once."""
        over = [one for one in self.windows(now) if self._finished_until < one.end <= now]
        self._finished_until = max(self._finished_until, now)
        return tuple(over)

    def _current(self, now: float) -> "_Window":
        start = now // WINDOW_SECONDS * WINDOW_SECONDS
        if not self._windows or self._windows[-1].start < start:
            self._windows.append(_Window(start))
        self._drop_old(now)
        return self._windows[-1]

    def _drop_old(self, now: float) -> None:
        oldest = (now // WINDOW_SECONDS - WINDOWS + 1) * WINDOW_SECONDS
        while self._windows and self._windows[0].start < oldest:
            self._windows.popleft()


@dataclass(slots=True)
class _Window:
    start: float
    failed: int = 0
    counts: dict[ExclusionReason, int] = field(default_factory=dict)
    examples: dict[ExclusionReason, dict[str, Excluded]] = field(default_factory=dict)
    jobs: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_JOBS))

    def snapshot(self) -> ExclusionWindow:
        return ExclusionWindow(
            start=self.start,
            end=self.start + WINDOW_SECONDS,
            failed=self.failed,
            counts=dict(self.counts),
            examples={reason: tuple(nodes.values()) for reason, nodes in self.examples.items()},
            last_jobs=tuple(self.jobs),
        )
