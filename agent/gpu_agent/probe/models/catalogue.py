"""All models of this machine: every shelf looked at, in bounded time, and only where something changed.

A scan has a budget, shared among the shelves; what one does not need is for the others. What it does
not reach keeps its last known state and comes first in the next one. A shelf on a disk that hangs is
left behind with its thread: what was found on it stands for a while and is in error then, until the
disk answers; the other shelves go on.

It refuses to raise for anything a cache can hold, and to run twice at once: keep one per process,
and scan from one thread at a time.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gpu_agent.probe.disk_room import disks_of
from gpu_agent.probe.models.declared import Declaration, declare
from gpu_agent.probe.models.found import Found, merged
from gpu_agent.probe.models.shelf import Shelf
from gpu_agent.probe.models.source import ModelSource
from gpu_agent.probe.models.unanswered import unanswered
from gpu_agent.probe.models.walk import Walk
from gpu_agent.wire.inventory import CacheDisk, Model

DEFAULT_BUDGET_SECONDS = 2.0
SILENT = "its disk does not answer: see `df` and `dmesg`"
"""Why a place could not be searched."""

_LEAST_WAIT_SECONDS = 0.02
"""A disk that is well answers within it, on a machine that is not too busy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long disks that do not answer are borne with. Seconds."""

    wait_seconds: float = 1.0
    """How long a scan waits for the first one that does not get on; for each further one half as long."""
    silent_after_seconds: float = 3.0
    """From then on its silence is a problem."""
    stale_after_seconds: float = 60.0
    """From then on what was found on it is in error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What one scan knows."""

    models: tuple[Model, ...] = ()
    complete: bool = True
    """Every unit was reached, but for places with problems; what was not is as last known, if it is."""
    problems: Mapping[str, str] = field(default_factory=dict)
    """Folder → why it could not be searched. For the log and the owner; never for the wire."""
    disks: tuple[CacheDisk, ...] = ()
    """Those that the places are on."""
    roomless: Mapping[str, str] = field(default_factory=dict)
    """Name of a place → why the room on its disk is not known."""


class Catalogue:
    """Knows all shelves, and what follows from what they hold."""

    def __init__(
        self,
        sources: Sequence[ModelSource],
        declarations: Sequence[Declaration] = (),
        *,
        kept: Iterable[Shelf] = (),
        patience: Patience | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`sources` in order of preference: of one model found twice and alike, the first counts.

        `kept` are shelves of a catalogue before this one; those of an equal source go on in this one.
        """
        known = {shelf.source: shelf for shelf in kept}
        self.shelves = tuple(known.get(source) or Shelf(source, wall_ns=wall_ns) for source in sources)
        """One for each source."""
        self.problems: Mapping[str, str] = {}
        """Those of the last scan."""
        self._declarations = tuple(declarations)
        self._patience = patience or Patience()
        self._monotonic = monotonic
        self._claims: dict[tuple[str, str], Shelf] = {}
        """Which shelf has a root, by kind and path."""
        self._models: tuple[Model, ...] = ()
        self._follow_from: list[tuple[Found, bool]] | None = None
        """What the models follow from: what was found on each shelf, and whether it is in error by now."""

    @property
    def declarations(self) -> tuple[Declaration, ...]:
        """What the owner states, whatever the sources hold."""
        return self._declarations

    @property
    def places(self) -> tuple[Path, ...]:
        """Everywhere it looks on disks."""
        return tuple(place for shelf in self.shelves for place in shelf.source.places)

    def scan(
        self,
        budget_seconds: float = DEFAULT_BUDGET_SECONDS,
        *,
        answers_within_seconds: float = 0.0,
        follow: Callable[[Shelf], None] | None = None,
    ) -> Scan:
        """Look for models, for no longer than the budget and the unit it ends in, and the patience.

        With `answers_within_seconds`, counted from now, it waits in the end for disks that do not answer.
        `follow` is called for each shelf that was looked at, in a thread that may hang there.
        """
        began = time.monotonic()
        visits = _Visits(
            began,
            self._claims,
            monotonic=self._monotonic,
            budget_seconds=budget_seconds,
            follow=follow,
        )
        left_behind = self._walk(visits)
        for walk in left_behind:
            walk.ended.wait(max(0.0, began + answers_within_seconds - time.monotonic()))
        now = time.monotonic()
        patience = self._patience  # with no next scan in which to tell of it, it is told sooner
        bound = patience.wait_seconds if answers_within_seconds else patience.silent_after_seconds
        silent = {shelf for shelf in self.shelves if shelf.out and now - shelf.heard_at >= bound}
        # Before the models: of one that is back meanwhile, what it found is not among them yet.
        complete = all(
            shelf in silent or (not shelf.out and shelf.holding.complete) for shelf in self.shelves
        )
        self.problems = self._all_problems(silent)
        return Scan(
            models=self._all_models(now),
            complete=complete,
            problems=self.problems,
            disks=disks_of(
                room for shelf in self.shelves if shelf not in silent for room in shelf.holding.rooms
            ),
            roomless=self._all_roomless(silent),
        )

    def _walk(self, visits: "_Visits") -> list[Walk]:
        """Go through all shelves that nobody is in; the walks that had to be left behind."""
        left_behind: list[Walk] = []
        patience_seconds = self._patience.wait_seconds
        ready = (shelf for shelf in self.shelves if not shelf.out)
        way = tuple(sorted(ready, key=lambda shelf: shelf.seen_to))  # stable: longest unseen first
        while way:
            walk = Walk(way, visits.visit)
            if walk.got_on(patience_seconds):
                break
            way = walk.leave()
            left_behind.append(walk)
            visits.leave(walk.at, lost_seconds=patience_seconds)
            patience_seconds = max(patience_seconds / 2, _LEAST_WAIT_SECONDS)
        return left_behind

    def _all_problems(self, silent: set[Shelf]) -> dict[str, str]:
        problems: dict[str, str] = {}
        for shelf in self.shelves:
            if shelf in silent:
                problems.update((str(place), SILENT) for place in shelf.source.places)
            else:
                problems.update(shelf.holding.problems)
        return problems

    def _all_roomless(self, silent: set[Shelf]) -> dict[str, str]:
        roomless: dict[str, str] = {}
        for shelf in self.shelves:
            if shelf in silent:
                roomless.update((place.name, "no answer") for place in shelf.source.places)
            else:
                roomless.update(shelf.holding.roomless)
        return roomless

    def _all_models(self, now: float) -> tuple[Model, ...]:
        limit = self._patience.stale_after_seconds
        parts = [(shelf.holding.found, shelf.out and now - shelf.heard_at >= limit) for shelf in self.shelves]
        if self._follow_from is None or not _alike(self._follow_from, parts):
            found = merged(
                unanswered(models.values()) if stale else models.values() for models, stale in parts
            )
            self._models, self._follow_from = declare(self._declarations, found.values()), parts
        return self._models


class _Visits:
    """What is done at each shelf of one scan, and the time for it."""

    def __init__(
        self,
        scan: float,
        claims: dict[tuple[str, str], Shelf],
        *,
        monotonic: Callable[[], float],
        budget_seconds: float,
        follow: Callable[[Shelf], None] | None,
    ) -> None:
        """`scan` is when it began."""
        self._scan = scan
        self._claims = claims
        self._monotonic = monotonic
        self._budget_seconds = budget_seconds
        self._deadline = monotonic() + budget_seconds
        self._follow = follow
        self._begun: set[Shelf] = set()
        self._reached = False
        """Some unit was: every scan gets on, even without a budget."""
        self._left: set[Shelf | None] = set()
        """Those that nobody waits for: they take no time from others, and have all of the budget."""

    def leave(self, shelf: Shelf | None, *, lost_seconds: float) -> None:
        """Nobody waits for that one any more, and waiting for it is not at the cost of the others."""
        self._left.add(shelf)
        self._deadline += lost_seconds

    def visit(self, shelf: Shelf, others: int) -> bool:
        """Look for as long as its share of what is left; whether more is wanted and there is time."""
        with shelf.taken() as mine:
            if not mine:
                return False
            if shelf not in self._begun:
                self._begun.add(shelf)
                shelf.begin(self._claims)
            now = self._monotonic()
            share = now + (self._deadline - now) / (others + 1)
            alone = now + self._budget_seconds
            shelf.read(self._scan, lambda: self._may_go_on(alone if shelf in self._left else share))
            if self._follow is not None:
                self._follow(shelf)
            return not shelf.holding.complete and self._monotonic() < self._deadline

    def _may_go_on(self, until: float) -> bool:
        first, self._reached = not self._reached, True
        return first or self._monotonic() < until


def _alike(one: Sequence[tuple[Found, bool]], other: Sequence[tuple[Found, bool]]) -> bool:
    return all(a is b and stale is was for (a, stale), (b, was) in zip(one, other, strict=True))
