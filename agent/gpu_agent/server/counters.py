"""What the registry counts and measures: events by kind, nodes by status, latencies.

Plain integers, so that an embedded registry needs no metrics library; `metrics` writes them for Prometheus.
Every set of counters is bounded by what this code can name, never by what a peer sends.
"""

import asyncio
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from gpu_agent.registry.node import NodeRecord
from gpu_agent.wire.codes import NodeStatus
from gpu_agent.wire.inventory import Health

# What happened since the start of the registry, counted by kind. Keeps no event.
#
# Every set of counters is bounded by what our own code can say, never by what a peer sends.


class EventCounters:
    """Counts since the start."""

    def __init__(self) -> None:
        self.registrations = 0
        self.refusals: Counter[str] = Counter()
        """Refused registrations by code."""
        self.status_changes: Counter[tuple[str, str, str]] = Counter()
        """By status before, status after and reason code."""
        self.claims: Counter[str] = Counter(dict.fromkeys(_CLAIMS.values(), 0))
        self.failures = 0
        """Jobs for which there was no node."""
        self.exclusions: Counter[str] = Counter()
        """Nodes that fell to a reason, over all jobs for which there was none."""
        self._count_of = {
            "node_registered": self._registered,
            "node_register_refused": self._refused,
            "node_status_changed": self._changed,
            "dispatch_failed": self._failed,
        }

    def count(self, event: str, fields: Mapping[str, object]) -> None:
        """Count what an event of §8 tells of."""
        outcome = _CLAIMS.get(event)
        if outcome is not None:
            self.claims[outcome] += 1
        elif (count := self._count_of.get(event)) is not None:
            count(fields)

    def _registered(self, _: Mapping[str, object]) -> None:
        self.registrations += 1

    def _refused(self, fields: Mapping[str, object]) -> None:
        self.refusals[str(fields.get("code"))] += 1

    def _changed(self, fields: Mapping[str, object]) -> None:
        source, target, reason = (str(fields.get(name) or "none") for name in ("from", "to", "reason_code"))
        self.status_changes[source, target, reason] += 1

    def _failed(self, fields: Mapping[str, object]) -> None:
        self.failures += 1
        counts = fields.get("counts")
        if isinstance(counts, Mapping):
            self.exclusions.update(counts)


_CLAIMS = {
    "job_assigned": "granted",
    "claim_released": "released",
    "claim_lost": "lost",
    "claim_expired": "expired",
    "claim_reattached": "found_again",
}


# The fleet counted as it stands: by status, by GPU, by place. In slices, so that it keeps nobody waiting.
#
# Alike nodes are looked at as one: ten thousand of them have few kinds of GPUs between them. What
# a peer may name as it likes is bounded before it is told by name.


NODES_IN_A_SLICE = 250
MOST_GPU_NAMES = 40
LONGEST_GPU_NAME = 80
OTHER = "other"

_HEALTHS = frozenset(health.value for health in Health)
_STATUSES = dict.fromkeys((status.value for status in NodeStatus), 0)

GpuList = tuple[tuple[str | None, ...], tuple[str, ...]]
"""The names and healths of a node's GPUs, in order."""


@dataclass(frozen=True, slots=True)
class FleetCounters:
    """A fleet's numbers."""

    statuses: Counter[str] = field(default_factory=lambda: Counter(_STATUSES))
    places: Counter[str] = field(default_factory=lambda: Counter(_STATUSES))
    """For jobs, by the status of their node."""
    occupied: Counter[str] = field(default_factory=lambda: Counter(_STATUSES))
    others: Counter[str] = field(
        default_factory=lambda: Counter({"connected": 0, "cordoned": 0, "drains": 0, "claims": 0})
    )
    looks: Counter[GpuList] = field(default_factory=Counter)

    @property
    def gpus(self) -> Counter[tuple[str, str]]:
        """GPUs by name and health, without the parents of MIG slices; rare names are told as one."""
        found: Counter[tuple[str, str]] = Counter()
        for (names, healths), nodes in self.looks.items():
            for name, health in zip(names, healths, strict=True):
                if name is not None:
                    shown = health if health in _HEALTHS else OTHER
                    found[_presentable(name), shown] += nodes
        return _bounded(found)


def _presentable(name: str) -> str:
    """Shorten a name, and let nothing in it steer the terminal of who looks at the figures."""
    short = name[:LONGEST_GPU_NAME]
    if short.isprintable():
        return short
    return "".join(letter if letter.isprintable() else "?" for letter in short)


async def count_fleet(records: Sequence[NodeRecord]) -> FleetCounters:
    """Count these nodes, and let others have their turn meanwhile."""
    headcount = FleetCounters()
    for begin in range(0, len(records), NODES_IN_A_SLICE):
        for record in records[begin : begin + NODES_IN_A_SLICE]:
            _count(record, headcount)
        await asyncio.sleep(0)
    return headcount


def _count(record: NodeRecord, headcount: FleetCounters) -> None:
    status, others = record.status.value, headcount.others
    headcount.statuses[status] += 1
    headcount.places[status] += record.max_concurrent_jobs
    headcount.occupied[status] += record.in_flight_jobs
    others["connected"] += record.connected
    others["cordoned"] += record.cordoned is not None
    others["drains"] += record.drain is not None
    others["claims"] += len(record.claims)
    headcount.looks[record.gpus.names, record.gpus.healths] += 1


def _bounded(found: Counter[tuple[str, str]]) -> Counter[tuple[str, str]]:
    by_name: Counter[str] = Counter()
    for (name, _), count in found.items():
        by_name[name] += count
    told = {name for name, _ in by_name.most_common(MOST_GPU_NAMES)}
    bounded: Counter[tuple[str, str]] = Counter()
    for (name, health), count in found.items():
        bounded[name if name in told else OTHER, health] += count
    return bounded


# How the registry itself is doing: the figures of the `performance` event (§8), and all since its start.
#
# Measures; judges nothing and logs nothing.


_MOST_SELECTIONS = 4096
_MOST_LAGS = 16384
_P50, _P99 = 0.50, 0.99
_LAG_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
_SELECTION_BOUNDS = (25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 0.001, 0.0025, 0.005, 0.01, 0.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Performance:
    """One period's figures; None where nothing was measured."""

    beats_per_second: float
    loop_lag_ms: float
    """The longest that the loop was late in the period."""
    loop_lag_p50_ms: float | None
    loop_lag_p99_ms: float | None
    select_p99_us: float | None


class PerformanceMeter:
    """Collects over a period, then starts the next."""

    def __init__(self, *, now: float, beats: int = 0) -> None:
        self._since, self._beats_then = now, beats
        self._worst_lag_seconds = 0.0
        self._lags: deque[float] = deque(maxlen=_MOST_LAGS)
        self._selections: deque[float] = deque(maxlen=_MOST_SELECTIONS)
        self.loop_lag = Histogram(_LAG_BOUNDS)
        """Seconds, since the start."""
        self.selections = Histogram(_SELECTION_BOUNDS)
        """Seconds, since the start."""
        self.last: Performance | None = None
        """The last full period; None before its end."""

    def lagged(self, seconds: float) -> None:
        """Note how late the loop came to a timer."""
        self._worst_lag_seconds = max(self._worst_lag_seconds, seconds)
        self._lags.append(seconds)
        self.loop_lag.add(seconds)

    def selected(self, seconds: float) -> None:
        """Note how long the choice of one place took; saving it and telling of it are no part of it."""
        self._selections.append(seconds)
        self.selections.add(seconds)

    def read(self, *, now: float, beats: int) -> Performance:
        """Return the period's figures and begin anew; `beats` counts from the start of the registry."""
        span = max(now - self._since, 1e-9)
        lags, taken = sorted(self._lags), sorted(self._selections)
        self.last = Performance(
            beats_per_second=round((beats - self._beats_then) / span, 1),
            loop_lag_ms=round(self._worst_lag_seconds * 1e3, 2),
            loop_lag_p50_ms=_share(lags, _P50, unit=1e3),
            loop_lag_p99_ms=_share(lags, _P99, unit=1e3),
            select_p99_us=_share(taken, _P99, unit=1e6),
        )
        self._since, self._beats_then = now, beats
        self._worst_lag_seconds = 0.0
        self._lags.clear()
        self._selections.clear()
        return self.last


def _share(ordered: list[float], share: float, *, unit: float) -> float | None:
    """Return the value below which this share of them lies."""
    return round(ordered[int(len(ordered) * share)] * unit, 2) if ordered else None


# How often something took how long: counts per bound, from the start of the registry. Judges nothing.


class Histogram:
    """Counts values into bounds; cheap enough for a path that is often taken."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """Take the upper bounds, rising; what lies above the last is counted too."""
        self._bounds = (*bounds, inf)
        self._counts = [0] * len(self._bounds)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def cumulative(self) -> Iterator[tuple[float, int]]:
        """Return each bound, and how many values were at most that; infinity is the last."""
        total = 0
        for bound, count in zip(self._bounds, self._counts, strict=True):
            total += count
            yield bound, total


# How late the event loop comes to its timers, asked some fifty times a second.
#
# A stall is noted once for each question that went unanswered in it: a loop that stands for a second
# made everybody wait who came in that second, not only the one whose turn it was. Judges nothing.


LAG_SAMPLE_SECONDS = 0.02

_MOST_QUESTIONS = 500
"""Of one stall: a machine that slept for a night must not be made up for question by question."""


class LagSampler:
    """Reports lateness in seconds from `start` to `stop`, on the running loop."""

    def __init__(self, noted: Callable[[float], None], *, monotonic: Callable[[], float]) -> None:
        self._noted = noted
        self._now = monotonic
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to ask."""
        self._due = self._now() + LAG_SAMPLE_SECONDS
        self._timer = asyncio.get_running_loop().call_later(LAG_SAMPLE_SECONDS, self._answered)

    def stop(self) -> None:
        """Ask no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _answered(self) -> None:
        late = max(0.0, self._now() - self._due)
        for lateness in lateness_of_ticks(late):
            self._noted(lateness)
        self.start()


def lateness_of_ticks(late: float) -> list[float]:
    """Return how late each question of a stall was answered, the one that met its beginning first."""
    questions = min(int(late / LAG_SAMPLE_SECONDS), _MOST_QUESTIONS) + 1
    return [late - LAG_SAMPLE_SECONDS * asked for asked in range(questions)]
