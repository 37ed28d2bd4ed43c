"""Which node or token is due when: a lazy heap with one valid entry per key.

A heartbeat moves a deadline later and touches nothing here: an entry that comes up early is checked and put
back. Only the heartbeat of a suspected node moves its deadline earlier, so that node is scheduled again.
"""

import heapq
from collections.abc import Iterator
from itertools import count
from math import inf

_FEW = 64
"""A heap with at most this many outdated entries is not rebuilt."""


class Deadlines:
    """Which key is due when; times are monotonic seconds."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, str]] = []
        self._due: dict[str, float] = {}
        self._order = count()

    @property
    def earliest(self) -> float:
        """When the first entry comes up; infinity when nothing is scheduled."""
        return self._heap[0][0] if self._heap else inf

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
