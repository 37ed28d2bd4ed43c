"""Shares the event loop's time, so that long or unimportant work never delays registered nodes.

`FairQueue` gives work that may wait a slice of every turn of the loop, urgent work first;
`collect_in_slices` runs a long iteration in slices.
"""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeVar

# Shares out the loop's time: work that may wait gets a slice of every turn, and goes on in the next.
#
# A thousand strangers who speak at once must not make the nodes wait that are known. What is urgent
# comes first, such as whatever brings to an end what was begun: who was let in is served before anybody
# else is let in. What is not urgent has its patience: beyond that it gets a share of its own, so that
# it can at least be told that it came in vain. Otherwise work is taken in the order in which it came;
# a turn that has time left does it at once. Knows no connection.


SLICE_SECONDS = 0.005
"""A turn of the loop spends no longer on work that may wait; one piece of it may last longer."""

OVERDUE_SHARE = 0.3
"""Of a slice, for what has run out of patience."""


class FairQueue:
    """Belongs to one event loop."""

    def __init__(self, *, monotonic: Callable[[], float], patience_seconds: float) -> None:
        self._now = monotonic
        self._patience_seconds = patience_seconds
        self._urgent: deque[Callable[[], None]] = deque()
        self._other: deque[tuple[float, Callable[[], None]]] = deque()
        self._begun = False
        self._ends = 0.0

    @property
    def waiting(self) -> int:
        """How much work waits for its turn."""
        return len(self._urgent) + len(self._other)

    def has_time(self, *, urgent: bool) -> bool:
        """Say whether this turn has time left, and nobody waits who comes first."""
        if self._urgent or (self._other and not urgent):
            return False
        if not self._begun:
            self._begin()
            return True
        return self._now() < self._ends

    def wait(self, work: Callable[[], None], *, urgent: bool) -> None:
        """Do this when its turn comes."""
        if urgent:
            self._urgent.append(work)
        else:
            self._other.append((self._now(), work))
        if not self._begun:
            self._begin()

    def do(self, work: Callable[[], None], *, urgent: bool) -> None:
        """Do this now if there is time, else when its turn comes."""
        if self.has_time(urgent=urgent):
            work()
        else:
            self.wait(work, urgent=urgent)

    def _begin(self) -> None:
        self._begun, self._ends = True, self._now() + SLICE_SECONDS
        asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        """Begin the next turn with what waits."""
        self._begun = False
        if not self.waiting:
            return
        self._begin()
        overdue_ends = self._ends - SLICE_SECONDS * (1 - OVERDUE_SHARE)
        while self._other and (now := self._now()) < overdue_ends:
            since, work = self._other[0]
            if now - since <= self._patience_seconds:
                break
            self._other.popleft()
            work()
        while self._urgent and self._now() < self._ends:
            self._urgent.popleft()()
        while self._other and self._now() < self._ends:
            self._other.popleft()[1]()


# Long work on the event loop, done in slices so that nobody else waits for it.


ITERATION_SLICE_SECONDS = 0.005
_STEPS_BETWEEN_LOOKS = 16

T = TypeVar("T")


async def collect_in_slices(steps: Iterator[T]) -> list[T]:
    """Run an iterator to its end and return what it gave; after each slice everybody else has a turn."""
    found: list[T] = []
    slice_ends = time.monotonic() + ITERATION_SLICE_SECONDS
    while some := list(itertools.islice(steps, _STEPS_BETWEEN_LOOKS)):
        found += some
        if time.monotonic() > slice_ends:
            await asyncio.sleep(0)
            slice_ends = time.monotonic() + ITERATION_SLICE_SECONDS
    return found
