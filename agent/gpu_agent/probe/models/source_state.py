"""What is known of one model source, and what of it has to be read again.

A unit is not read again while the marks of what its reading watched are the same, unless those changed so
shortly before that one more change could have the same time stamp. Where the kernel reports each change, and
a look at all marks found none, a scan looks at nothing until something is reported. Every ten minutes it
looks at all marks even so: a file that is written through a memory map is not reported.
"""

import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path

from gpu_agent.probe.host.host import DiskSpace, disk_space_at
from gpu_agent.probe.models.declared import more_usable
from gpu_agent.probe.models.source import Mark, ModelSource, Reading, Unit
from gpu_agent.records import dataclass, field
from gpu_agent.wire.inventory import Model

LOOK_EVERY_SECONDS = 600.0
"""How long a source whose folders are watched goes without a look at its marks."""

_SETTLED_NANOSECONDS = 2_000_000_000
"""Coarsest time stamp of the file systems in use (FAT's): a younger change may not be the last."""

ModelsById = Mapping[tuple[str, str], Model]
"""By id and version."""
_UnitKey = tuple[str, str]
"""Root and path of a unit."""
QuietSince = Callable[[Collection[str]], int | None]
"""`InotifyWatcher.quiet_since`, which a probe that watches nothing does not load."""
_Folder = tuple[int, int]
"""File system and inode."""
_Stillness = tuple[QuietSince, int, tuple[_Folder | None, ...]]
"""What stays the same while nothing changes: who says so, its number, and where the source's paths lead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceContents:
    """What a source held when it was last read."""

    models: ModelsById = field(default_factory=dict)
    """The same object while nothing of it changes."""
    complete: bool = False
    """Every unit was reached."""
    problems: Mapping[str, str] = field(default_factory=dict)
    """Folder → why it could not be searched."""
    disks: tuple[DiskSpace, ...] = ()
    disk_unknowns: Mapping[str, str] = field(default_factory=dict)
    """Name of a path → why the space on its disk is not known."""


@dataclass(frozen=True, slots=True)
class _KnownUnit:
    reading: Reading
    settled: bool
    folder: bool
    """As the unit was listed."""


class SourceState:
    """Remembers what each unit of one source held, and reads it again only where it must.

    One thread at a time reads it, and may hang there as long as the disk does; others see that it is busy,
    and what it held before.
    """

    def __init__(self, source: ModelSource, *, wall_ns: Callable[[], int] = time.time_ns) -> None:
        self.source = source
        self.contents = SourceContents()
        """As of the last read that made progress; a new object after each."""
        self.progress_at = time.monotonic()
        """When a read began, or made progress since, in monotonic seconds."""
        self.scanned_since = 0.0
        """The start of the oldest scan that read a unit last, in monotonic seconds."""
        self.listed: Collection[str] = ()
        """Its roots that exist, even those that another source has."""
        self.quiet_since: QuietSince | None = None
        """Of what follows its `watched_paths`, if anything does."""
        self._wall_ns = wall_ns
        self._lock = threading.Lock()
        self._known: dict[_UnitKey, _KnownUnit] = {}
        self._read_in: dict[_UnitKey, float] = {}
        """The start of the scan that read each unit: it stays valid for the next scanner."""
        self._waiting: list[tuple[_UnitKey, Unit]] = []
        """Units that the current scan has not reached, the next one last."""
        self._still: _Stillness | None = None
        """As before the last look, where that found all marks unchanged."""
        self._still_before: _Stillness | None = None
        """As before the current look, while that finds all marks unchanged."""
        self._look_by = 0.0
        """When all marks are looked at again, in monotonic seconds."""
        self._leads_to: tuple[_Folder | None, ...] = ()
        """The folder that each path led to."""
        self._folders: Mapping[str, int | None] = {}
        """Those below the roots in which a new unit shows, with their inodes."""
        self._listing_problems: Mapping[str, str] = {}
        self._problems: Mapping[str, str] | None = None
        """Those of all units and their listing; `None` when some of them may have changed since."""
        self._disks: tuple[tuple[DiskSpace, ...], Mapping[str, str]] = ((), {})
        self._models: ModelsById | None = {}
        """The models of all known units; `None` when some of them changed since."""
        self._roots: tuple[str, ...] = ()
        self._paths_changed = False
        self._watched_paths: Collection[str] = ()

    @property
    def busy(self) -> bool:
        """Whether a thread reads it now, or hangs there."""
        return self._lock.locked()

    @contextmanager
    def acquire(self) -> Iterator[bool]:
        """Reserve it for this thread; False, without waiting, where another thread has it."""
        acquired = self._lock.acquire(blocking=False)
        try:
            yield acquired
        finally:
            if acquired:
                self._lock.release()

    @property
    def watched_paths(self) -> Collection[str]:
        """Every path where a change of models shows; the same object while none of them changes."""
        if self._paths_changed:
            self._watched_paths, self._paths_changed = self._all_paths(), False
        return self._watched_paths

    def list_units(self, owners: MutableMapping[tuple[str, str], "SourceState"]) -> None:
        """List the units, those first that were not read for longest; none while nothing has changed.

        A root that another source of this kind has too, because a link leads to it, is left to that one once
        that one has read all of it.
        """
        still = self._stillness()
        if still is not None and still == self._still and self._may_rest(owners):
            self._disks = self._read_disks()
            self.progress_at = time.monotonic()
            return
        self._look_by = time.monotonic() + LOOK_EVERY_SECONDS
        listing = self.source.units()
        self.listed = listing.roots
        roots = tuple(root for root in listing.roots if self._owns(root, owners))
        left_to_others = set(listing.roots).difference(roots)
        units = {
            (unit.root.path, unit.path): unit
            for unit in listing.units
            if not left_to_others or unit.root.path not in left_to_others
        }
        order = sorted(units, key=lambda key: self._read_in.get(key, 0.0))  # stable: longest unread first
        self._waiting = [(key, units[key]) for key in reversed(order)]
        self._listing_problems, self._problems = listing.problems, None
        self._disks = self._read_disks()
        self._still_before = still if listing.local and not listing.problems else None
        self._remove_all_but(units)
        leads_to, folders = self._leading_to(), _places(listing.folders)
        if (roots, leads_to, folders) != (self._roots, self._leads_to, self._folders):
            self._roots, self._leads_to, self._folders = roots, leads_to, folders
            self._paths_changed = True
        self.progress_at = time.monotonic()

    def read(self, scan_began: float, goes_on: Callable[[], bool]) -> None:
        """Read units as long as `goes_on` allows, which is called before each."""
        while self._waiting and goes_on():
            key, unit = self._waiting.pop()
            self._read_unit(key, unit)
            self._read_in[key] = scan_began
            self.progress_at = time.monotonic()
        self.scanned_since = self._read_in.get(self._waiting[-1][0], 0.0) if self._waiting else scan_began
        self._still = None if self._waiting else self._still_before
        disks, disk_unknowns = self._disks
        self.contents = SourceContents(
            models=self._all_models(),
            complete=not self._waiting,
            problems=self._all_problems(),
            disks=disks,
            disk_unknowns=disk_unknowns,
        )
        self.progress_at = time.monotonic()

    def _stillness(self) -> _Stillness | None:
        if self.quiet_since is None or not self._roots:
            return None
        number = self.quiet_since(self.watched_paths)
        return None if number is None else (self.quiet_since, number, self._leading_to())

    def _leading_to(self) -> tuple[_Folder | None, ...]:
        return tuple(map(_leads_to, self.source.paths))

    def _may_rest(self, owners: Mapping[tuple[str, str], "SourceState"]) -> bool:
        """Whether no look is due: neither by time, nor because another source has one of its roots back."""
        own = all(owners.get((self.source.name, root)) is self for root in self._roots)
        return own and time.monotonic() < self._look_by

    def _owns(self, root: str, owners: MutableMapping[tuple[str, str], "SourceState"]) -> bool:
        key = self.source.name, root
        owner = owners.setdefault(key, self)
        if root not in owner.listed:
            owners[key] = owner = self
        # A hanging source stays the owner, or its models would be missing once it is back.
        return owner is self or owner.busy or (root in self._roots and not owner.contents.complete)

    def _read_disks(self) -> tuple[tuple[DiskSpace, ...], dict[str, str]]:
        disks: list[DiskSpace] = []
        unknowns: dict[str, str] = {}
        for path in self.source.paths:
            space = disk_space_at(path)
            if isinstance(space, DiskSpace):
                disks.append(space)
            else:
                unknowns[path.name] = space
        return tuple(disks), unknowns

    def _read_unit(self, key: _UnitKey, unit: Unit) -> None:
        known = self._known.get(key)
        if known and known.settled and known.folder is unit.folder and _is_unchanged(known.reading.watched):
            return
        self._still_before, self._problems = None, None
        began = self._wall_ns()
        reading = self.source.read(unit)
        newest = max([mark[1] for mark in reading.watched.values() if mark], default=0)
        self._known[key] = _KnownUnit(reading, newest < began - _SETTLED_NANOSECONDS, unit.folder)
        if known is None or known.reading.models != reading.models:
            self._models = None
        if known is None or _places(known.reading.watched) != _places(reading.watched):
            self._paths_changed = True

    def _remove_all_but(self, units: Collection[_UnitKey]) -> None:
        gone = [key for key in self._known if key not in units]
        for key in gone:
            del self._known[key], self._read_in[key]
            self._models, self._paths_changed = None, True

    def _all_problems(self) -> Mapping[str, str]:
        if self._problems is None:
            problems = dict(self._listing_problems)
            for known in self._known.values():
                problems.update(known.reading.problems)
            self._problems = problems
        return self._problems

    def _all_models(self) -> ModelsById:
        if self._models is None:
            self._models = merge_models(known.reading.models for known in self._known.values())
        return self._models

    def _all_paths(self) -> Collection[str]:
        """The roots and folders, what was watched, the folders that hold it, and the path to each unit."""
        paths = dict.fromkeys((*self._roots, *(self._folders if self._roots else ())))
        for (root, path), known in self._known.items():
            paths.update(dict.fromkeys(known.reading.watched))
            parents = map(_parent_of, known.reading.watched)
            paths.update((parent, None) for parent in parents if len(parent) >= len(root))
            above = _parent_of(path)
            while len(above) > len(root) and above not in paths:
                paths[above] = None
                above = _parent_of(above)
        return paths.keys()


def _parent_of(path: str) -> str:
    return path.rpartition(os.sep)[0]


def _leads_to(path: Path) -> _Folder | None:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _places(watched: Mapping[str, Mark | None]) -> dict[str, int | None]:
    """Which inode each path led to: a watch on a folder lasts as long as its inode."""
    return {path: None if mark is None else mark[0] for path, mark in watched.items()}


def _is_unchanged(watched: Mapping[str, Mark | None]) -> bool:
    for path, mark in watched.items():
        try:
            status = os.lstat(path)
        except OSError:
            if mark is not None:
                return False
            continue
        if (status.st_ino, status.st_mtime_ns, status.st_size) != mark:  # `mark_of`, thousands of times
            return False
    return bool(watched)


def merge_models(findings: Iterable[Iterable[Model]]) -> ModelsById:
    """Merge by id and version: of a model found twice the more usable one, the first where both are alike."""
    found: dict[tuple[str, str], Model] = {}
    for models in findings:
        for model in models:
            key = model.model_id, model.version
            found[key] = more_usable(found[key], model) if key in found else model
    return found
