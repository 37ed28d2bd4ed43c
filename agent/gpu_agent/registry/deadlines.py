"""When each node must be checked next: a lazy heap with one living entry per node.

A heartbeat moves a deadline later and touches nothing here: an entry that comes up early is checked and put back. Only
the heartbeat of a suspected node moves its deadline earlier, so that node is scheduled again.
"""

import heapq
from collections.abc import Iterator
from itertools import count
from math import inf

from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.codes import NodeStatus

# When each node must be looked at next: a lazy heap with one living entry per node.
#
# A beat moves a deadline later and touches nothing here: an entry that comes up early is
# looked at and put back. The one beat that moves it earlier, that of a suspected node, must be
# planned anew. Knows times, not what to do about them.


_FEW = 64
"""So many entries that were given up are no reason to tidy up."""


class Deadlines:
    """Which node is due when; times are monotonic seconds."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, str]] = []
        self._due: dict[str, float] = {}
        self._turn = count()

    @property
    def earliest(self) -> float | None:
        """When the first entry comes up; None when no node waits for anything."""
        return self._heap[0][0] if self._heap else None

    @property
    def entries(self) -> int:
        """How many entries are kept, with those that were given up and will be passed over."""
        return len(self._heap)

    @property
    def planned(self) -> int:
        """How many nodes wait for a look."""
        return len(self._due)

    def at(self, node_id: str, due: float) -> None:
        """Look at a node at `due` at the latest; an earlier look that is planned stays."""
        if due == inf or self._due.get(node_id, inf) <= due:
            return
        self._due[node_id] = due
        heapq.heappush(self._heap, (due, next(self._turn), node_id))
        if len(self._heap) > 2 * len(self._due) + _FEW:
            self._tidy_up()

    def forget(self, node_id: str) -> None:
        """Plan no further look at a node."""
        self._due.pop(node_id, None)

    def reached(self, now: float) -> Iterator[str]:
        """Take out the nodes whose time has come; each must be planned anew by `at`."""
        while self._heap and self._heap[0][0] <= now:
            due, _, node_id = heapq.heappop(self._heap)
            if self._due.get(node_id) == due:
                del self._due[node_id]
                yield node_id

    def _tidy_up(self) -> None:
        """Drop what was given up: a node that comes and goes leaves a look a week ahead each time."""
        self._heap = [(due, next(self._turn), node_id) for node_id, due in self._due.items()]
        heapq.heapify(self._heap)


def silent_until(record: NodeRecord) -> float:
    """Return when a silent node times out (§4)."""
    if record.suspected_until is not None:
        return record.suspected_until
    return record.heard_at + record.timeout_seconds


def purge_at(record: NodeRecord, thresholds: Thresholds) -> float:
    """Return when an offline record is let go; never while it carries an operator's wish or a connection."""
    if record.status is not NodeStatus.OFFLINE or record.connection is not None or record.has_desired_state:
        return inf
    if not record.acknowledged:
        return record.since
    return record.since + thresholds.offline_retention_seconds


def next_deadline(record: NodeRecord, thresholds: Thresholds) -> float:
    """Return when time alone may next change something about a node; infinity for never."""
    looks = [purge_at(record, thresholds)]
    if record.connection is not None:
        looks.append(record.next_status_at)
    if record.connection is not None or record.status is not NodeStatus.OFFLINE:
        looks.append(silent_until(record))
    if record.faults.left_out:
        looks.append(record.faults.until)
    if record.status is NodeStatus.REGISTERING:
        looks.append(record.warmup_until)
    if record.status is NodeStatus.DRAINING and record.drain is not None:
        looks.append(record.drain.deadline)
    return min(looks)
