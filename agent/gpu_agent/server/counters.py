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

from gpu_agent.registry.lifecycle import TRANSITIONS
from gpu_agent.registry.node import NodeRecord
from gpu_agent.wire.codes import ErrorCode, ExclusionReason, NodeStatus
from gpu_agent.wire.inventory import Health

NODES_IN_A_SLICE = 250
MAX_GPU_NAMES = 40
MAX_GPU_NAME_LENGTH = 80
OTHER = "other"
LAG_SAMPLE_SECONDS = 0.1
"""Each sample wakes the process: fifty a second take 0.6 % of a core that has nothing else to do."""

_LAG_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
_SELECTION_BOUNDS = (25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 0.001, 0.0025, 0.005, 0.01, 0.1)
_MAX_SELECTIONS = 4096
_MAX_LAGS = 16384
_MAX_TICKS = 500
"""Ticks that are counted for one stall: a machine that was suspended for a night needs no more."""
_P50, _P99 = 0.50, 0.99
_HEALTHS = frozenset(health.value for health in Health)
_STATUSES = dict.fromkeys((status.value for status in NodeStatus), 0)
_TRANSITIONS = {
    (source or "none", target.value, reason.value): 0
    for (source, target), reasons in TRANSITIONS.items()
    for reason in reasons
}
_CLAIM_EVENTS = {
    "job_assigned": "granted",
    "claim_released": "released",
    "claim_lost": "lost",
    "claim_expired": "expired",
    "claim_reattached": "reattached",
}

GpuList = tuple[tuple[str | None, ...], tuple[str, ...]]
"""The names and healths of a node's GPUs, in order."""


class EventCounters:
    """Counts the fleet's events since the start, each known kind from 0, so that its first one is seen."""

    def __init__(self) -> None:
        self.registrations = 0
        self.refusals: Counter[str] = Counter(dict.fromkeys((code.value for code in ErrorCode), 0))
        """Refusals sent to nodes, by code."""
        self.status_changes: Counter[tuple[str, str, str]] = Counter(_TRANSITIONS)
        """By previous status, status and reason code."""
        self.claims: Counter[str] = Counter(dict.fromkeys(_CLAIM_EVENTS.values(), 0))
        self.failures = 0
        """Jobs for which there was no node."""
        self.exclusions: Counter[str] = Counter(dict.fromkeys((one.value for one in ExclusionReason), 0))
        """Nodes excluded for a reason, over all jobs for which there was no node."""
        self._count_of = {
            "node_registered": self._registered,
            "node_status_changed": self._changed,
            "dispatch_failed": self._failed,
        }

    def count(self, event: str, fields: Mapping[str, object]) -> None:
        """Count a log event of §8; others are ignored."""
        outcome = _CLAIM_EVENTS.get(event)
        if outcome is not None:
            self.claims[outcome] += 1
        elif (count := self._count_of.get(event)) is not None:
            count(fields)

    def _registered(self, _: Mapping[str, object]) -> None:
        self.registrations += 1

    def _changed(self, fields: Mapping[str, object]) -> None:
        source, target, reason = fields.get("from") or "none", fields.get("to"), fields.get("reason_code")
        self.status_changes[str(source), str(target), str(reason)] += 1

    def _failed(self, fields: Mapping[str, object]) -> None:
        self.failures += 1
        counts = fields.get("counts")
        if isinstance(counts, Mapping):
            self.exclusions.update(counts)


@dataclass(slots=True)
class FleetTotals:
    """The fleet as it is at one moment, counted by a scan."""

    statuses: Counter[str] = field(default_factory=lambda: Counter(_STATUSES))
    slots: Counter[str] = field(default_factory=lambda: Counter(_STATUSES))
    """By the status of their node."""
    occupied: Counter[str] = field(default_factory=lambda: Counter(_STATUSES))
    connected: int = 0
    cordoned: int = 0
    drained: int = 0
    open: int = 0
    """Nodes that are ready, connected and not cordoned."""
    claims: int = 0
    held_gpus: int = 0
    cordoned_gpus: int = 0
    unclaimed_gpus: int = 0
    """GPUs that show processes of no claim, as `gpu_used_without_claim` logs them."""
    gpu_lists: Counter[GpuList] = field(default_factory=Counter)
    """Nodes by their GPUs: ten thousand nodes have few kinds of GPUs between them."""

    @property
    def gpus(self) -> Counter[tuple[str, str]]:
        """GPUs by name and health, without the parents of MIG devices; rare names are counted as `other`."""
        found: Counter[tuple[str, str]] = Counter()
        for (names, healths), nodes in self.gpu_lists.items():
            for name, health in zip(names, healths, strict=True):
                if name is not None:
                    shown = health if health in _HEALTHS else OTHER
                    found[_printable(name), shown] += nodes
        return _bounded(found)


async def count_fleet(records: Sequence[NodeRecord]) -> FleetTotals:
    """Count these nodes in slices, so that other work runs meanwhile."""
    totals = FleetTotals()
    for begin in range(0, len(records), NODES_IN_A_SLICE):
        for record in records[begin : begin + NODES_IN_A_SLICE]:
            _count(record, totals)
        await asyncio.sleep(0)
    return totals


class Histogram:
    """Counts values by bounds, since the start; cheap enough for a hot path."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """Take the upper bounds in rising order; values above the last are counted too."""
        self._bounds = (*bounds, inf)
        self._counts = [0] * len(self._bounds)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def cumulative(self) -> Iterator[tuple[float, int]]:
        """Yield each bound and how many values are at most that; infinity is the last."""
        total = 0
        for bound, count in zip(self._bounds, self._counts, strict=True):
            total += count
            yield bound, total


@dataclass(frozen=True, slots=True, kw_only=True)
class Performance:
    """The figures of one period, for the `performance` event (§8); None where nothing was measured."""

    heartbeats_per_second: float
    loop_lag_ms: float
    """The largest of the period."""
    loop_lag_p50_ms: float | None
    loop_lag_p99_ms: float | None
    select_p99_us: float | None
    commit_p99_ms: float | None


class PerformanceMeter:
    """Measures over a period, then starts the next."""

    def __init__(self, *, now: float, heartbeats: int = 0) -> None:
        self._began, self._heartbeats_before = now, heartbeats
        self._worst_lag_seconds = 0.0
        self._lags: deque[float] = deque(maxlen=_MAX_LAGS)
        self._selections: deque[float] = deque(maxlen=_MAX_SELECTIONS)
        self.loop_lag = Histogram(_LAG_BOUNDS)
        """Seconds, since the start."""
        self.selections = Histogram(_SELECTION_BOUNDS)
        """Seconds, since the start."""
        self.last: Performance | None = None
        """The last full period; None before its end."""

    def lagged(self, seconds: float) -> None:
        """Record how late the loop came to a timer."""
        self._worst_lag_seconds = max(self._worst_lag_seconds, seconds)
        self._lags.append(seconds)
        self.loop_lag.add(seconds)

    def selected(self, seconds: float) -> None:
        """Record how long the choice of one slot took, without storing and sending it."""
        self._selections.append(seconds)
        self.selections.add(seconds)

    def read(self, *, now: float, heartbeats: int, commits: Sequence[float] = ()) -> Performance:
        """Return the period's figures and start the next.

        `heartbeats` counts from the registry's start; `commits` says how long those of the period took, in
        seconds.
        """
        span = max(now - self._began, 1e-9)
        lags, selections = sorted(self._lags), sorted(self._selections)
        self.last = Performance(
            heartbeats_per_second=round((heartbeats - self._heartbeats_before) / span, 1),
            loop_lag_ms=round(self._worst_lag_seconds * 1e3, 2),
            loop_lag_p50_ms=_quantile(lags, _P50, unit=1e3),
            loop_lag_p99_ms=_quantile(lags, _P99, unit=1e3),
            select_p99_us=_quantile(selections, _P99, unit=1e6),
            commit_p99_ms=_quantile(sorted(commits), _P99, unit=1e3),
        )
        self._began, self._heartbeats_before = now, heartbeats
        self._worst_lag_seconds = 0.0
        self._lags.clear()
        self._selections.clear()
        return self.last


class LagSampler:
    """Measures ten times a second how late the running loop comes to a timer.

    A stall counts once for each tick that it delayed: a loop that stalls for a second delays all work that
    arrived in that second, not only the work whose turn it was.
    """

    def __init__(self, lagged: Callable[[float], None], *, monotonic: Callable[[], float]) -> None:
        self._lagged = lagged
        self._now = monotonic
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start sampling."""
        self._due = self._now() + LAG_SAMPLE_SECONDS
        self._timer = asyncio.get_running_loop().call_later(LAG_SAMPLE_SECONDS, self._tick)

    def stop(self) -> None:
        """Stop sampling."""
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        for lateness in lateness_of_ticks(max(0.0, self._now() - self._due)):
            self._lagged(lateness)
        self.start()


def lateness_of_ticks(late: float) -> list[float]:
    """Return how late each tick of a stall is, the one at its beginning first."""
    ticks = min(int(late / LAG_SAMPLE_SECONDS), _MAX_TICKS) + 1
    return [late - LAG_SAMPLE_SECONDS * tick for tick in range(ticks)]


def _count(record: NodeRecord, totals: FleetTotals) -> None:
    status, is_cordoned = record.status.value, record.desired.cordoned is not None
    totals.statuses[status] += 1
    totals.slots[status] += record.slots
    totals.occupied[status] += record.in_flight_jobs
    totals.connected += record.connected
    totals.cordoned += is_cordoned
    totals.drained += record.desired.drain is not None
    totals.open += record.status is NodeStatus.READY and record.connected and not is_cordoned
    totals.claims += sum(one.grants[0].node_id == record.node_id for one in record.claims.values())
    totals.held_gpus += sum(len(one.gpu_uuids) for one in record.held.values())
    totals.cordoned_gpus += len(record.desired.gpu_cordons)
    totals.unclaimed_gpus += len(record.unclaimed_logged)
    totals.gpu_lists[record.gpus.names, record.gpus.healths] += 1


def _printable(name: str) -> str:
    """Shorten a GPU's name, and replace what could control a terminal that shows the figures."""
    short = name[:MAX_GPU_NAME_LENGTH]
    if short.isprintable():
        return short
    return "".join(letter if letter.isprintable() else "?" for letter in short)


def _bounded(found: Counter[tuple[str, str]]) -> Counter[tuple[str, str]]:
    by_name: Counter[str] = Counter()
    for (name, _), count in found.items():
        by_name[name] += count
    named = {name for name, _ in by_name.most_common(MAX_GPU_NAMES)}
    bounded: Counter[tuple[str, str]] = Counter()
    for (name, health), count in found.items():
        bounded[name if name in named else OTHER, health] += count
    return bounded


def _quantile(ordered: list[float], share: float, *, unit: float) -> float | None:
    """Return the value below which this share of them is."""
    return round(ordered[int(len(ordered) * share)] * unit, 2) if ordered else None
