"""One place of models and what is remembered of it, apart from all others.

It is looked into by one thread at a time, which may hang there for as long as the disk does; whoever
else asks meanwhile sees that it is out, and what it held when it was looked at last. A unit whose
watched files and folders are as they were is not read again, unless they changed so shortly before
the reading that one more change could hide behind the same time stamp.

It refuses to wait, to start a thread, and to raise for anything that a disk can hold.
"""

import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from gpu_agent.probe.disk_room import Room, room_at
from gpu_agent.probe.models.found import Found, merged
from gpu_agent.probe.models.source import Mark, ModelSource, Reading, Unit
from gpu_agent.probe.models.tree import mark_of

_SETTLED_NANOSECONDS = 2_000_000_000
"""Coarsest time stamp of the file systems in use (FAT's): a younger change may not be the last."""

_Key = tuple[str, str]
"""Root and path of a unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What a place held when it was looked at last."""

    found: Found = field(default_factory=dict)
    """The same object while nothing of it changes."""
    complete: bool = False
    """Every unit was reached."""
    problems: Mapping[str, str] = field(default_factory=dict)
    """Folder → why it could not be searched."""
    rooms: tuple[Room, ...] = ()
    roomless: Mapping[str, str] = field(default_factory=dict)
    """Name of a place → why the room on its disk is not known."""


@dataclass(frozen=True, slots=True)
class _Known:
    reading: Reading
    settled: bool


class Shelf:
    """Remembers what each unit of one source held, and looks again where it must."""

    def __init__(self, source: ModelSource, *, wall_ns: Callable[[], int] = time.time_ns) -> None:
        self.source = source
        self.holding = Holding()
        """As of the last look that got on; a new object after each."""
        self.heard_at = time.monotonic()
        """When it was asked, or got on since, in monotonic seconds."""
        self.seen_to = 0.0
        """When the scan began that all of its units were looked at in, or after; in monotonic seconds."""
        self._wall_ns = wall_ns
        self._taken = threading.Lock()
        self._known: dict[_Key, _Known] = {}
        self._looked: dict[_Key, float] = {}
        """When the scan began that looked at each: it goes on from one catalogue to the next."""
        self._waiting: list[tuple[_Key, Unit]] = []
        """Units that the look under way has not reached, the next one last."""
        self.listed: Collection[str] = ()
        """Its roots, as far as they were there, whoever has them."""
        self._unlisted: Mapping[str, str] = {}
        self._room: tuple[tuple[Room, ...], Mapping[str, str]] = ((), {})
        self._found: Found | None = {}
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

    def begin(self, claims: MutableMapping[tuple[str, str], "Shelf"]) -> None:
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
        self.holding = Holding(
            found=self._all_found(),
            complete=not self._waiting,
            problems=problems,
            rooms=rooms,
            roomless=roomless,
        )
        self.heard_at = time.monotonic()

    def _claims(self, root: str, claims: MutableMapping[tuple[str, str], "Shelf"]) -> bool:
        key = self.source.name, root
        owner = claims.setdefault(key, self)
        if root not in owner.listed:
            claims[key] = owner = self
        # One that hangs stays the owner, or what it holds would be missing once it is back.
        return owner is self or owner.out or (root in self._roots and not owner.holding.complete)

    def _asked_rooms(self) -> tuple[tuple[Room, ...], dict[str, str]]:
        rooms: list[Room] = []
        roomless: dict[str, str] = {}
        for place in self.source.places:
            room = room_at(place)
            if isinstance(room, Room):
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
        self._known[key] = _Known(reading, settled=newest < began - _SETTLED_NANOSECONDS)
        if known is None or known.reading.models != reading.models:
            self._found = None
        if known is None or known.reading.watched != reading.watched:
            self._moved = True

    def _forget_all_but(self, units: Collection[_Key]) -> None:
        gone = [key for key in self._known if key not in units]
        for key in gone:
            del self._known[key], self._looked[key]
            self._found, self._moved = None, True

    def _all_found(self) -> Found:
        if self._found is None:
            self._found = merged(known.reading.models for known in self._known.values())
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
