"""Shares the event loop's time, so that neither long nor unimportant work delays registered nodes.

`FairQueue` gives work that may wait a slice of every turn of the loop; `collect_in_slices` runs one long
iteration in slices.
"""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import TypeVar

SLICE_SECONDS = 0.005
"""A turn of the loop spends no longer on work that may wait; one piece of it may take longer."""

OVERDUE_SHARE = 0.3
"""The share of a slice for work that has waited longer than the queue's patience."""

HELD_SECONDS = 0.005
"""How often a queue that holds work looks whether the store is still behind."""

_STEPS_BETWEEN_LOOKS = 16

T = TypeVar("T")


class Work(IntEnum):
    """What may wait, in the order in which it is done."""

    SERVED = 0
    """It concerns a peer that is served already, or is gone."""
    REGISTERING = 1
    """It comes from a peer that was accepted: its registration, whose answer waits for the store."""
    NEW = 2
    """It comes from a peer that has shown nothing yet."""


class FairQueue:
    """Runs work that may wait, in turns of one event loop.

    What was begun is completed first: a connection that was accepted is served before another one is. While
    the store is behind, registrations are held, and so is what is new, since it would lead to more of them:
    else the answers of all would come too late. New work has its patience: beyond it, it gets a share of its
    own, so that a peer that waited in vain gets at least its refusal. Otherwise work runs in the order in
    which it came, and at once while the turn has time left.
    """

    def __init__(self, *, monotonic: Callable[[], float], patience_seconds: float) -> None:
        self._now = monotonic
        self._patience_seconds = patience_seconds
        self.store_is_behind: Callable[[], bool] = lambda: False
        """Says whether what the store is given now would wait too long."""
        self._served: deque[Callable[[], None]] = deque()
        self._registering: deque[Callable[[], None]] = deque()
        self._new: deque[tuple[float, Callable[[], None]]] = deque()
        self._turn_began = False
        self._turn_ends = 0.0

    @property
    def waiting(self) -> int:
        """How many pieces of work wait."""
        return len(self._served) + len(self._registering) + len(self._new)

    def has_time(self, kind: Work) -> bool:
        """Whether this turn has time left for such work, and nothing waits that comes first."""
        if (
            self._served
            or (self._registering and kind >= Work.REGISTERING)
            or (self._new and kind is Work.NEW)
            or (kind is Work.REGISTERING and self.store_is_behind())
        ):
            return False
        if not self._turn_began:
            self._begin_turn()
            return True
        return self._now() < self._turn_ends

    def wait(self, work: Callable[[], None], kind: Work) -> None:
        """Run this in a later turn."""
        match kind:
            case Work.SERVED:
                self._served.append(work)
            case Work.REGISTERING:
                self._registering.append(work)
            case Work.NEW:
                self._new.append((self._now(), work))
        if not self._turn_began:
            self._begin_turn()

    def run(self, work: Callable[[], None], kind: Work) -> None:
        """Run this now if there is time, else in a later turn."""
        if self.has_time(kind):
            work()
        else:
            self.wait(work, kind)

    def _begin_turn(self) -> None:
        self._turn_began, self._turn_ends = True, self._now() + SLICE_SECONDS
        loop = asyncio.get_running_loop()
        if self._registering and not self._served and self.store_is_behind():
            loop.call_later(HELD_SECONDS, self._next_turn)
        else:
            loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        """Begin the next turn with what waits."""
        self._turn_began = False
        if not self.waiting:
            return
        self._begin_turn()
        overdue_ends = self._turn_ends - SLICE_SECONDS * (1 - OVERDUE_SHARE)
        while self._new and (now := self._now()) < overdue_ends:
            since, work = self._new[0]
            if now - since <= self._patience_seconds:
                break
            self._new.popleft()
            work()
        while self._served and self._now() < self._turn_ends:
            self._served.popleft()()
        while self._registering and self._now() < self._turn_ends and not self.store_is_behind():
            self._registering.popleft()()
        while self._new and not self._registering and self._now() < self._turn_ends:
            self._new.popleft()[1]()


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
