"""The model scanner: every model source read in bounded time, and only where something changed.

A scan has a budget, shared among the sources; what one does not need is for the others. A unit that the scan
does not reach keeps its last known state and comes first in the next scan. A source on a disk that hangs is
left behind with its thread: its models stay as they were for a while, then they are in error, until the disk
answers; the other sources go on. Keep one scanner per process, and scan from one thread at a time.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from gpu_agent.probe.host.disks import DiskSpace, disk_space_at, distinct_disks
from gpu_agent.probe.models import declared
from gpu_agent.probe.models.declared import Declaration, apply_declarations, more_usable
from gpu_agent.probe.models.files import mark_of
from gpu_agent.probe.models.source import Mark, ModelSource, Reading, Unit
from gpu_agent.wire.inventory import CacheDisk, Model, ModelStatus

# What was found in several places or parts of one: each model once, by id and version.


ModelsById = Mapping[tuple[str, str], Model]
"""By id and version."""


def merge_models(findings: Iterable[Iterable[Model]]) -> ModelsById:
    """Of a model found twice, the one that can serve; the first where both are alike."""
    found: dict[tuple[str, str], Model] = {}
    for models in findings:
        for model in models:
            identity = model.model_id, model.version
            found[identity] = more_usable(found[identity], model) if identity in found else model
    return found


# One place of models and what is remembered of it, apart from all others.
#
# It is looked into by one thread at a time, which may hang there for as long as the disk does; whoever
# else asks meanwhile sees that it is out, and what it held when it was looked at last. A unit whose
# watched files and folders are as they were is not read again, unless they changed so shortly before
# the reading that one more change could hide behind the same time stamp.
#
# It refuses to wait, to start a thread, and to raise for anything that a disk can hold.


_SETTLED_NANOSECONDS = 2_000_000_000
"""Coarsest time stamp of the file systems in use (FAT's): a younger change may not be the last."""

_Key = tuple[str, str]
"""Root and path of a unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceContents:
    """What a place held when it was looked at last."""

    found: ModelsById = field(default_factory=dict)
    """The same object while nothing of it changes."""
    complete: bool = False
    """Every unit was reached."""
    problems: Mapping[str, str] = field(default_factory=dict)
    """Folder → why it could not be searched."""
    rooms: tuple[DiskSpace, ...] = ()
    roomless: Mapping[str, str] = field(default_factory=dict)
    """Name of a place → why the room on its disk is not known."""


@dataclass(frozen=True, slots=True)
class _KnownUnit:
    reading: Reading
    settled: bool


class SourceState:
    """Remembers what each unit of one source held, and looks again where it must."""

    def __init__(self, source: ModelSource, *, wall_ns: Callable[[], int] = time.time_ns) -> None:
        self.source = source
        self.holding = SourceContents()
        """As of the last look that got on; a new object after each."""
        self.heard_at = time.monotonic()
        """When it was asked, or got on since, in monotonic seconds."""
        self.seen_to = 0.0
        """When the scan began that all of its units were looked at in, or after; in monotonic seconds."""
        self._wall_ns = wall_ns
        self._taken = threading.Lock()
        self._known: dict[_Key, _KnownUnit] = {}
        self._looked: dict[_Key, float] = {}
        """When the scan began that looked at each: it goes on from one catalogue to the next."""
        self._waiting: list[tuple[_Key, Unit]] = []
        """Units that the look under way has not reached, the next one last."""
        self.listed: Collection[str] = ()
        """Its roots, as far as they were there, whoever has them."""
        self._unlisted: Mapping[str, str] = {}
        self._room: tuple[tuple[DiskSpace, ...], Mapping[str, str]] = ((), {})
        self._found: ModelsById | None = {}
        """What follows from all that is known; `None` when some of it changed since."""
        self._roots: tuple[str, ...] = ()
        self._moved = False
        """Something at the places changed, so they may be others than they were."""
        self._places: Collection[str] = ()

    @property
    def out(self) -> bool:
        """Whether somebody is looking into it now, or hangs there."""
        return self._taken.locked()

    @contextmanager
    def taken(self) -> Iterator[bool]:
        """Have it to oneself; False where somebody else has it, who is not waited for."""
        mine = self._taken.acquire(blocking=False)
        try:
            yield mine
        finally:
            if mine:
                self._taken.release()

    @property
    def places(self) -> Collection[str]:
        """Every path that a change of models shows at; the same object while none of it changes."""
        if self._moved:
            self._places, self._moved = self._all_places(), False
        return self._places

    def begin(self, claims: MutableMapping[tuple[str, str], "SourceState"]) -> None:
        """List what there is, those first that were not looked at for longest.

        A root that another shelf of this kind has, as one that a link leads to, is left to that one, once
        that one holds all of it.
        """
        listing = self.source.units()
        self.listed = listing.roots
        roots = tuple(root for root in listing.roots if self._claims(root, claims))
        left_to_others = set(listing.roots).difference(roots)
        units = {
            (unit.root.path, unit.path): unit
            for unit in listing.units
            if not left_to_others or unit.root.path not in left_to_others
        }
        order = sorted(units, key=lambda key: self._looked.get(key, 0.0))  # stable: longest unseen first
        self._waiting = [(key, units[key]) for key in reversed(order)]
        self._unlisted = listing.problems
        self._room = self._asked_rooms()
        self._forget_all_but(units)
        if roots != self._roots:
            self._roots, self._moved = roots, True
        self.heard_at = time.monotonic()

    def read(self, scan: float, goes_on: Callable[[], bool]) -> None:
        """Read units for as long as it `goes_on`, which is asked before each; `scan` is when that began."""
        while self._waiting and goes_on():
            key, unit = self._waiting.pop()
            self._look(key, unit)
            self._looked[key] = scan
            self.heard_at = time.monotonic()
        self.seen_to = self._looked.get(self._waiting[-1][0], 0.0) if self._waiting else scan
        problems = dict(self._unlisted)
        for known in self._known.values():
            if known.reading.problems:
                problems.update(known.reading.problems)
        rooms, roomless = self._room
        self.holding = SourceContents(
            found=self._all_found(),
            complete=not self._waiting,
            problems=problems,
            rooms=rooms,
            roomless=roomless,
        )
        self.heard_at = time.monotonic()

    def _claims(self, root: str, claims: MutableMapping[tuple[str, str], "SourceState"]) -> bool:
        key = self.source.name, root
        owner = claims.setdefault(key, self)
        if root not in owner.listed:
            claims[key] = owner = self
        # One that hangs stays the owner, or what it holds would be missing once it is back.
        return owner is self or owner.out or (root in self._roots and not owner.holding.complete)

    def _asked_rooms(self) -> tuple[tuple[DiskSpace, ...], dict[str, str]]:
        rooms: list[DiskSpace] = []
        roomless: dict[str, str] = {}
        for place in self.source.places:
            room = disk_space_at(place)
            if isinstance(room, DiskSpace):
                rooms.append(room)
            else:
                roomless[place.name] = room
        return tuple(rooms), roomless

    def _look(self, key: _Key, unit: Unit) -> None:
        known = self._known.get(key)
        if known and known.settled and _unchanged(known.reading.watched):
            return
        began = self._wall_ns()
        reading = self.source.read(unit)
        newest = max((mark[1] for mark in reading.watched.values() if mark), default=0)
        self._known[key] = _KnownUnit(reading, settled=newest < began - _SETTLED_NANOSECONDS)
        if known is None or known.reading.models != reading.models:
            self._found = None
        if known is None or known.reading.watched != reading.watched:
            self._moved = True

    def _forget_all_but(self, units: Collection[_Key]) -> None:
        gone = [key for key in self._known if key not in units]
        for key in gone:
            del self._known[key], self._looked[key]
            self._found, self._moved = None, True

    def _all_found(self) -> ModelsById:
        if self._found is None:
            self._found = merge_models(known.reading.models for known in self._known.values())
        return self._found

    def _all_places(self) -> Collection[str]:
        """The roots, what was watched, the folders that hold it, and the way to each unit."""
        places = dict.fromkeys(self._roots)
        for (root, path), known in self._known.items():
            places.update(dict.fromkeys(known.reading.watched))
            holding = map(_folder_of, known.reading.watched)
            places.update((folder, None) for folder in holding if len(folder) >= len(root))
            above = _folder_of(path)
            while len(above) > len(root) and above not in places:
                places[above] = None
                above = _folder_of(above)
        return places.keys()


def _folder_of(path: str) -> str:
    return path.rpartition(os.sep)[0]


def _unchanged(watched: Mapping[str, Mark | None]) -> bool:
    for path, mark in watched.items():
        try:
            status = os.lstat(path)
        except OSError:
            if mark is not None:
                return False
            continue
        if mark is None or mark_of(status) != mark:
            return False
    return bool(watched)


# The way through the shelves: one thread goes it, and is left behind with a shelf that hangs.
#
# Whoever waits for it has patience for as long as it gets on; then another thread goes the rest of the
# way. The one that was left behind ends when its disk answers, and looks at nothing else.
#
# It refuses to share out time: that is whoever's `visit` it makes.


class ScanThread:
    """One thread on its way."""

    def __init__(self, shelves: Iterable[SourceState], visit: Callable[[SourceState, int], bool]) -> None:
        """`visit` hears how many come after, and says whether it wants to come again to what it visits."""
        self.ended = threading.Event()
        self._visit = visit
        self._waiting = deque(shelves)
        self._again: deque[SourceState] = deque()
        self.at: SourceState | None = None
        """Where it is, and once it was left where it stays."""
        self._turn = threading.Lock()
        self._left = False
        self._went_through = False
        threading.Thread(target=self._go, name="models", daemon=True).start()

    def got_on(self, within_seconds: float) -> bool:
        """Wait for its end, for as long as it gets on within that time; False when it did not."""
        while not self.ended.wait(self._patience(within_seconds)):
            if self._patience(within_seconds) <= 0:
                return False
        if not self._went_through:
            raise RuntimeError("the way through the places of models broke off")  # why is told on stderr
        return True

    def leave(self) -> tuple[SourceState, ...]:
        """Leave it behind where it is; the rest of its way."""
        with self._turn:
            self._left = True
            return (*self._waiting, *self._again)

    def _patience(self, within_seconds: float) -> float:
        at = self.at
        return within_seconds if at is None else at.heard_at + within_seconds - time.monotonic()

    def _go(self) -> None:
        try:
            while (shelf := self._next()) is not None:
                if self._visit(shelf, len(self._waiting)):
                    self._again.append(shelf)
            self._went_through = True
        finally:
            self.ended.set()

    def _next(self) -> SourceState | None:
        with self._turn:
            if self._left:
                return None
            if not self._waiting:
                self._waiting, self._again = self._again, self._waiting
            if not self._waiting:
                return None
            shelf = self._waiting.popleft()
            shelf.heard_at = time.monotonic()
            self.at = shelf
            return shelf


# All models of this machine: every shelf looked at, in bounded time, and only where something changed.
#
# A scan has a budget, shared among the shelves; what one does not need is for the others. What it does
# not reach keeps its last known state and comes first in the next one. A shelf on a disk that hangs is
# left behind with its thread: what was found on it stands for a while and is in error then, until the
# disk answers; the other shelves go on.
#
# It refuses to raise for anything a cache can hold, and to run twice at once: keep one per process,
# and scan from one thread at a time.


DEFAULT_BUDGET_SECONDS = 2.0
DISK_SILENT = "its disk does not answer: see `df` and `dmesg`"
"""Why a place could not be searched."""

_LEAST_WAIT_SECONDS = 0.02
"""A disk that is well answers within it, on a machine that is not too busy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskPatience:
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


class ModelScanner:
    """Knows all shelves, and what follows from what they hold."""

    def __init__(
        self,
        sources: Sequence[ModelSource],
        declarations: Sequence[Declaration] = (),
        *,
        kept: Iterable[SourceState] = (),
        patience: DiskPatience | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`sources` in order of preference: of one model found twice and alike, the first counts.

        `kept` are shelves of a catalogue before this one; those of an equal source go on in this one.
        """
        known = {shelf.source: shelf for shelf in kept}
        self.shelves = tuple(known.get(source) or SourceState(source, wall_ns=wall_ns) for source in sources)
        """One for each source."""
        self.problems: Mapping[str, str] = {}
        """Those of the last scan."""
        self._declarations = tuple(declarations)
        self._patience = patience or DiskPatience()
        self._monotonic = monotonic
        self._claims: dict[tuple[str, str], SourceState] = {}
        """Which shelf has a root, by kind and path."""
        self._models: tuple[Model, ...] = ()
        self._follow_from: list[tuple[ModelsById, bool]] | None = None
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
        follow: Callable[[SourceState], None] | None = None,
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
            disks=distinct_disks(
                room for shelf in self.shelves if shelf not in silent for room in shelf.holding.rooms
            ),
            roomless=self._all_roomless(silent),
        )

    def _walk(self, visits: "_Visits") -> list[ScanThread]:
        """Go through all shelves that nobody is in; the walks that had to be left behind."""
        left_behind: list[ScanThread] = []
        patience_seconds = self._patience.wait_seconds
        ready = (shelf for shelf in self.shelves if not shelf.out)
        way = tuple(sorted(ready, key=lambda shelf: shelf.seen_to))  # stable: longest unseen first
        while way:
            walk = ScanThread(way, visits.visit)
            if walk.got_on(patience_seconds):
                break
            way = walk.leave()
            left_behind.append(walk)
            visits.leave(walk.at, lost_seconds=patience_seconds)
            patience_seconds = max(patience_seconds / 2, _LEAST_WAIT_SECONDS)
        return left_behind

    def _all_problems(self, silent: set[SourceState]) -> dict[str, str]:
        problems: dict[str, str] = {}
        for shelf in self.shelves:
            if shelf in silent:
                problems.update((str(place), DISK_SILENT) for place in shelf.source.places)
            else:
                problems.update(shelf.holding.problems)
        return problems

    def _all_roomless(self, silent: set[SourceState]) -> dict[str, str]:
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
        if self._follow_from is None or not _same_models(self._follow_from, parts):
            found = merge_models(
                mark_unreadable(models.values()) if stale else models.values() for models, stale in parts
            )
            self._models, self._follow_from = apply_declarations(self._declarations, found.values()), parts
        return self._models


class _Visits:
    """What is done at each shelf of one scan, and the time for it."""

    def __init__(
        self,
        scan: float,
        claims: dict[tuple[str, str], SourceState],
        *,
        monotonic: Callable[[], float],
        budget_seconds: float,
        follow: Callable[[SourceState], None] | None,
    ) -> None:
        """`scan` is when it began."""
        self._scan = scan
        self._claims = claims
        self._monotonic = monotonic
        self._budget_seconds = budget_seconds
        self._deadline = monotonic() + budget_seconds
        self._follow = follow
        self._begun: set[SourceState] = set()
        self._reached = False
        """Some unit was: every scan gets on, even without a budget."""
        self._left: set[SourceState | None] = set()
        """Those that nobody waits for: they take no time from others, and have all of the budget."""

    def leave(self, shelf: SourceState | None, *, lost_seconds: float) -> None:
        """Nobody waits for that one any more, and waiting for it is not at the cost of the others."""
        self._left.add(shelf)
        self._deadline += lost_seconds

    def visit(self, shelf: SourceState, others: int) -> bool:
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


def _same_models(one: Sequence[tuple[ModelsById, bool]], other: Sequence[tuple[ModelsById, bool]]) -> bool:
    return all(a is b and stale is was for (a, stale), (b, was) in zip(one, other, strict=True))


# Models on disks that have not answered for too long: nobody can load what cannot be read.
#
# It refuses to touch what the owner declares, which is his word, and what could not serve before:
# that has a reason of its own.


DETAIL = "its disk does not answer"

_VOUCHED_FOR_BY_DISK = (ModelStatus.READY, ModelStatus.DOWNLOADING)


def mark_unreadable(models: Iterable[Model]) -> tuple[Model, ...]:
    """The models as they stand while no disk vouches for them."""
    return tuple(
        replace(model, status=ModelStatus.ERROR, detail=DETAIL)
        if model.source != declared.SOURCE and model.status in _VOUCHED_FOR_BY_DISK
        else model
        for model in models
    )
