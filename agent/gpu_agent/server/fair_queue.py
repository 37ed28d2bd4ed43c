"""Shares the event loop's time, so that neither long nor unimportant work delays registered nodes.

`FairQueue` gives work that may wait a slice of every turn of the loop; `collect_in_slices` runs one long
iteration in slices.
"""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeVar

SLICE_SECONDS = 0.005
"""A turn of the loop spends no longer on work that may wait; one piece of it may take longer."""

OVERDUE_SHARE = 0.3
"""The share of a slice for work that has waited longer than the queue's patience."""

_STEPS_BETWEEN_LOOKS = 16

T = TypeVar("T")


class FairQueue:
    """Runs work that may wait, in turns of one event loop.

    Urgent work comes first, such as everything that completes what was begun: a connection that was
    accepted is served before another one is. Other work has its patience: beyond it, it gets a share of its
    own, so that a peer that waited in vain gets at least its refusal. Otherwise work runs in the order in
    which it came, and at once while the turn has time left.
    """

    def __init__(self, *, monotonic: Callable[[], float], patience_seconds: float) -> None:
        self._now = monotonic
        self._patience_seconds = patience_seconds
        self._urgent: deque[Callable[[], None]] = deque()
        self._other: deque[tuple[float, Callable[[], None]]] = deque()
        self._turn_began = False
        self._turn_ends = 0.0

    @property
    def waiting(self) -> int:
        """How many pieces of work wait."""
        return len(self._urgent) + len(self._other)

    def has_time(self, *, urgent: bool) -> bool:
        """Whether this turn has time left, and nothing waits that comes first."""
        if self._urgent or (self._other and not urgent):
            return False
        if not self._turn_began:
            self._begin_turn()
            return True
        return self._now() < self._turn_ends

    def wait(self, work: Callable[[], None], *, urgent: bool) -> None:
        """Run this in a later turn."""
        if urgent:
            self._urgent.append(work)
        else:
            self._other.append((self._now(), work))
        if not self._turn_began:
            self._begin_turn()

    def run(self, work: Callable[[], None], *, urgent: bool) -> None:
        """Run this now if there is time, else in a later turn."""
        if self.has_time(urgent=urgent):
            work()
        else:
            self.wait(work, urgent=urgent)

    def _begin_turn(self) -> None:
        self._turn_began, self._turn_ends = True, self._now() + SLICE_SECONDS
        asyncio.get_running_loop().call_soon(self._next_turn)

    def _next_turn(self) -> None:
        """Begin the next turn with what waits."""
        self._turn_began = False
        if not self.waiting:
            return
        self._begin_turn()
        overdue_ends = self._turn_ends - SLICE_SECONDS * (1 - OVERDUE_SHARE)
        while self._other and (now := self._now()) < overdue_ends:
            since, work = self._other[0]
            if now - since <= self._patience_seconds:
                break
            self._other.popleft()
            work()
        while self._urgent and self._now() < self._turn_ends:
            self._urgent.popleft()()
        while self._other and self._now() < self._turn_ends:
            self._other.popleft()[1]()


async def collect_in_slices(steps: Iterator[T]) -> list[T]:
    """Run an iterator to its end and return what it yielded; other work runs after each slice."""
    found: list[T] = []
    slice_ends = time.monotonic() + SLICE_SECONDS
    while some := list(itertools.islice(steps, _STEPS_BETWEEN_LOOKS)):
        found += some
        if time.monotonic() > slice_ends:
            await asyncio.sleep(0)
            slice_ends = time.monotonic() + SLICE_SECONDS
    return found
