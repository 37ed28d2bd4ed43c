"""When each node must be checked next: a lazy heap with one valid entry per node.

A heartbeat moves a deadline later and touches nothing here: an entry that comes up early is checked and put
back. Only the heartbeat of a suspected node moves its deadline earlier, so that node is scheduled again.
"""

import heapq
from collections.abc import Iterator
from itertools import count
from math import inf

from gpu_agent.registry import lifecycle
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.codes import NodeStatus

_FEW = 64
"""A heap with at most this many outdated entries is not rebuilt."""


class Deadlines:
    """Which key is due when; times are monotonic seconds."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, str]] = []
        self._due: dict[str, float] = {}
        self._order = count()

    @property
    def earliest(self) -> float | None:
        """When the first entry comes up; None when nothing is scheduled."""
        return self._heap[0][0] if self._heap else None

    @property
    def entries(self) -> int:
        """How many entries the heap holds, with the outdated ones."""
        return len(self._heap)

    @property
    def scheduled(self) -> int:
        """How many keys are scheduled."""
        return len(self._due)

    def at(self, key: str, due: float) -> None:
        """Schedule a key at `due` at the latest; an earlier time that is scheduled stays."""
        if due == inf or self._due.get(key, inf) <= due:
            return
        self._due[key] = due
        heapq.heappush(self._heap, (due, next(self._order), key))
        if len(self._heap) > 2 * len(self._due) + _FEW:
            self._rebuild()

    def cancel(self, key: str) -> None:
        """Schedule a key no longer."""
        self._due.pop(key, None)

    def due(self, now: float) -> Iterator[str]:
        """Take out the keys that are due; each must be scheduled again by `at`."""
        while self._heap and self._heap[0][0] <= now:
            due, _, key = heapq.heappop(self._heap)
            if self._due.get(key) == due:
                del self._due[key]
                yield key

    def _rebuild(self) -> None:
        """Drop outdated entries: a node that comes and goes leaves one a week ahead each time."""
        self._heap = [(due, next(self._order), key) for key, due in self._due.items()]
        heapq.heapify(self._heap)


def silent_until(record: NodeRecord) -> float:
    """Return when a silent node times out (§4)."""
    suspected_until = record.liveness.suspected_until
    if suspected_until is not None:
        return suspected_until
    return record.liveness.last_seen_at + record.schedule.timeout_seconds


def purge_at(record: NodeRecord, thresholds: Thresholds) -> float:
    """Return when an offline record is removed; never while an operator needs it, or it is connected."""
    if record.status is not NodeStatus.OFFLINE or record.connection is not None or record.desired.by_operator:
        return inf
    if not record.acknowledged:
        return record.since
    return record.since + thresholds.offline_retention_seconds


def next_deadline(record: NodeRecord, thresholds: Thresholds) -> float:
    """Return when time alone may next change something about a node; infinity for never."""
    times = [purge_at(record, thresholds), lifecycle.time_limit(record)]
    if record.connection is not None:
        times.append(record.schedule.next_status_at)
    if record.connection is not None or record.status is not NodeStatus.OFFLINE:
        times.append(silent_until(record))
    if record.faults.left_out:
        times.append(record.faults.until)
    return min(times)
