"""How many dispatches failed of late, and on what: counted by the minute for an hour.

Counts what is told; judges nothing. What it remembers is bounded, whatever fails.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from gpu_agent.registry.dispatch.verdict import EXAMPLES_PER_REASON, Excluded, Exclusion, NoAvailableNode
from gpu_agent.registry.quoting import quoted

WINDOW_SECONDS = 60.0
WINDOWS = 60
LAST_JOBS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ExclusionWindow:
    """One window in which dispatches failed. Times are monotonic seconds."""

    start: float
    end: float
    failed: int
    """Dispatches that found nobody."""
    counts: Mapping[Exclusion, int]
    """How many nodes fell to each reason, over all of them."""
    examples: Mapping[Exclusion, tuple[Excluded, ...]]
    """Different nodes, a few for each reason."""
    last_jobs: tuple[str, ...]
    """The ids of the last few that failed, the newest last."""


@dataclass(slots=True)
class _Counted:
    start: float
    failed: int = 0
    counts: dict[Exclusion, int] = field(default_factory=dict)
    examples: dict[Exclusion, dict[str, Excluded]] = field(default_factory=dict)
    jobs: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_JOBS))

    def shown(self) -> ExclusionWindow:
        return ExclusionWindow(
            start=self.start,
            end=self.start + WINDOW_SECONDS,
            failed=self.failed,
            counts=dict(self.counts),
            examples={reason: tuple(nodes.values()) for reason, nodes in self.examples.items()},
            last_jobs=tuple(self.jobs),
        )


class Exclusions:
    """The windows of the last hour in which something failed, the oldest first."""

    def __init__(self) -> None:
        self._windows: deque[_Counted] = deque()
        self._finished_until = 0.0

    def failed(self, verdict: NoAvailableNode, now: float) -> None:
        """Count a dispatch that found nobody."""
        window = self._at(now)
        window.failed += 1
        window.jobs.append(quoted(verdict.job_id))
        for reason, count in verdict.counts.items():
            window.counts[reason] = window.counts.get(reason, 0) + count
        for reason, shown in verdict.examples.items():
            nodes = window.examples.setdefault(reason, {})
            for one in shown:
                if one.node_id in nodes or len(nodes) < EXAMPLES_PER_REASON:
                    nodes[one.node_id] = one

    def windows(self, now: float) -> tuple[ExclusionWindow, ...]:
        """Return the windows of the last hour; the one that is running is the last, if anything failed."""
        self._forget_old(now)
        return tuple(window.shown() for window in self._windows)

    def finished(self, now: float) -> tuple[ExclusionWindow, ...]:
        """Return the windows that are over, each of them once."""
        over = [one for one in self.windows(now) if self._finished_until < one.end <= now]
        self._finished_until = max(self._finished_until, now)
        return tuple(over)

    def _at(self, now: float) -> _Counted:
        start = now // WINDOW_SECONDS * WINDOW_SECONDS
        if not self._windows or self._windows[-1].start < start:
            self._windows.append(_Counted(start))
        self._forget_old(now)
        return self._windows[-1]

    def _forget_old(self, now: float) -> None:
        oldest = (now // WINDOW_SECONDS - WINDOWS + 1) * WINDOW_SECONDS
        while self._windows and self._windows[0].start < oldest:
            self._windows.popleft()
