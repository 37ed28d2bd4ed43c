"""All models of this machine: every source read, in bounded time, and only where something changed.

A scan has a budget. What it does not reach keeps its last known state and comes first in the next
one. A unit whose watched files and folders are as they were is not read again, unless they changed
so shortly before the reading that one more change could hide behind the same time stamp.

It refuses to raise for anything a cache can hold, and to run twice at once: keep one per process,
and scan from one thread at a time.
"""

import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from gpu_agent.probe.models.declared import Declaration, better, declare
from gpu_agent.probe.models.source import Mark, ModelSource, Reading, Unit
from gpu_agent.probe.models.tree import mark_of
from gpu_agent.wire.inventory import Model

DEFAULT_BUDGET_SECONDS = 2.0

_SETTLED_NANOSECONDS = 2_000_000_000
"""Coarsest time stamp of the file systems in use (FAT's): a younger change may not be the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What one scan knows."""

    models: tuple[Model, ...] = ()
    complete: bool = True
    """Every unit was reached; else what was not is as it was last known, or not known yet."""
    problems: Mapping[str, str] = field(default_factory=dict)
    """Folder → why it could not be searched. For the log and the owner; never for the wire."""


@dataclass(frozen=True, slots=True)
class _Known:
    reading: Reading
    settled: bool


_Key = tuple[str, str, str]
"""Source, root and path of a unit."""


class Catalogue:
    """Remembers what each unit held, and looks again where it must."""

    def __init__(
        self,
        sources: Sequence[ModelSource],
        declarations: Sequence[Declaration] = (),
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`sources` in order of preference: of one model found twice and alike, the first counts."""
        self._sources = tuple(sources)
        self._declarations = tuple(declarations)
        self._monotonic = monotonic
        self._wall_ns = wall_ns
        self._known: dict[_Key, _Known] = {}
        self._scans = 0
        self._looked: dict[_Key, int] = {}
        self._models: tuple[Model, ...] | None = None
        """What follows from all that is known; `None` when some of it changed since."""
        self._roots: tuple[str, ...] = ()
        self._moved = False
        """Something at the places changed, so they may be others than they were."""
        self._places: Collection[str] = ()
        self.problems: Mapping[str, str] = {}
        """Those of the last scan."""

    @property
    def places(self) -> Collection[str]:
        """Every path that a change of models shows at; the same object while none of it changes."""
        if self._moved:
            self._places, self._moved = self._all_places(self._roots), False
        return self._places

    @property
    def declarations(self) -> tuple[Declaration, ...]:
        """What the owner states, whatever the sources hold."""
        return self._declarations

    def scan(self, budget_seconds: float = DEFAULT_BUDGET_SECONDS) -> Scan:
        """Look for models, for no longer than the budget and the unit it ends in."""
        deadline = self._monotonic() + budget_seconds
        units, problems, roots = self._units()
        order = sorted(units, key=lambda key: self._looked.get(key, 0))  # stable: longest unseen first
        self._scans += 1
        reached = 0
        for key in order:
            if reached and self._monotonic() >= deadline:
                break
            source, unit = units[key]
            self._look(key, source, unit)
            self._looked[key] = self._scans
            reached += 1
        self._forget_all_but(units)
        for known in self._known.values():
            if known.reading.problems:
                problems.update(known.reading.problems)
        self.problems = problems
        if self._models is None:
            self._models = self._declared()
        if roots != self._roots:
            self._roots, self._moved = roots, True
        return Scan(models=self._models, complete=reached == len(order), problems=problems)

    def _units(self) -> tuple[dict[_Key, tuple[ModelSource, Unit]], dict[str, str], tuple[str, ...]]:
        units: dict[_Key, tuple[ModelSource, Unit]] = {}
        problems: dict[str, str] = {}
        roots: tuple[str, ...] = ()
        for source in self._sources:
            listing = source.units()
            problems.update(listing.problems)
            roots += listing.roots
            units |= {(source.name, unit.root.path, unit.path): (source, unit) for unit in listing.units}
        return units, problems, roots

    def _all_places(self, roots: Iterable[str]) -> Collection[str]:
        """The roots, what was watched, the folders that hold it, and the way to each unit."""
        places = dict.fromkeys(roots)
        for (_, root, path), known in self._known.items():
            places.update(dict.fromkeys(known.reading.watched))
            holding = map(_folder_of, known.reading.watched)
            places.update((folder, None) for folder in holding if len(folder) >= len(root))
            above = _folder_of(path)
            while len(above) > len(root) and above not in places:
                places[above] = None
                above = _folder_of(above)
        return places.keys()

    def _look(self, key: _Key, source: ModelSource, unit: Unit) -> None:
        known = self._known.get(key)
        if known and known.settled and _unchanged(known.reading.watched):
            return
        began = self._wall_ns()
        reading = source.read(unit)
        newest = max((mark[1] for mark in reading.watched.values() if mark), default=0)
        self._known[key] = _Known(reading, settled=newest < began - _SETTLED_NANOSECONDS)
        if known is None or known.reading.models != reading.models:
            self._models = None
        if known is None or known.reading.watched != reading.watched:
            self._moved = True

    def _forget_all_but(self, units: Collection[_Key]) -> None:
        gone = [key for key in self._known if key not in units]
        for key in gone:
            del self._known[key], self._looked[key]
            self._models, self._moved = None, True

    def _declared(self) -> tuple[Model, ...]:
        found: dict[tuple[str, str], Model] = {}
        for known in self._known.values():
            for model in known.reading.models:
                identity = model.model_id, model.version
                found[identity] = better(found[identity], model) if identity in found else model
        return declare(self._declarations, found.values())


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
