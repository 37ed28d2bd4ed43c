"""The model scanner: every model source read in bounded time, and only where something changed.

A scan has a budget, shared among the sources; what one source does not need is for the others. A unit that
the scan does not reach keeps its last known state and comes first in the next scan. A source on a disk that
hangs is left behind with its thread: its models stay as they were for a while, then they are in error, until
the disk answers; the other sources go on.

`ModelScanner` holds a `SourceState` for each source. A scan makes a `_ScanBudget`, and goes through the
sources in a `ScanThread`; where one hangs, another thread takes the rest. Nothing that a disk holds raises.
Keep one scanner per process, and scan from one thread at a time.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from gpu_agent.probe.host.host import DiskSpace, disk_space_at, distinct_disks
from gpu_agent.probe.models import declared
from gpu_agent.probe.models.declared import ModelDeclaration, apply_declarations, more_usable
from gpu_agent.probe.models.source import Mark, ModelSource, Reading, Unit
from gpu_agent.records import dataclass, field, replace
from gpu_agent.wire.inventory import CacheDisk, Model, ModelStatus

DEFAULT_BUDGET_SECONDS = 2.0
DISK_SILENT = "its disk does not answer: see `df` and `dmesg`"
"""Why a path could not be searched."""
UNREADABLE = "its disk does not answer"
"""The detail of a model whose disk has not answered for too long."""

_LEAST_WAIT_SECONDS = 0.02
"""A working disk answers within it, on a machine that is not too busy."""
_SETTLED_NANOSECONDS = 2_000_000_000
"""Coarsest time stamp of the file systems in use (FAT's): a younger change may not be the last."""

ModelsById = Mapping[tuple[str, str], Model]
"""By id and version."""
_UnitKey = tuple[str, str]
"""Root and path of a unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskPatience:
    """How long to wait for disks that do not answer. Seconds."""

    wait_seconds: float = 1.0
    """How long a scan waits for the first source that makes no progress.

    Half as long for each further one.
    """
    silent_after_seconds: float = 3.0
    """From then on its silence is a problem."""
    stale_after_seconds: float = 60.0
    """From then on its models are in error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """The result of one scan."""

    models: tuple[Model, ...] = ()
    complete: bool = True
    """Every unit was reached, except where there are problems.

    An unreached unit is as last known, if it is known.
    """
    problems: Mapping[str, str] = field(default_factory=dict)
    """Folder → why it could not be searched. For the log and the operator; never for the wire."""
    disks: tuple[CacheDisk, ...] = ()
    """Those that the sources are on."""
    disk_unknowns: Mapping[str, str] = field(default_factory=dict)
    """Name of a path → why the space on its disk is not known."""


class ModelScanner:
    """Knows the state of every source, and the models that follow from it."""

    def __init__(
        self,
        sources: Sequence[ModelSource],
        declarations: Sequence[ModelDeclaration] = (),
        *,
        previous: Iterable["SourceState"] = (),
        patience: DiskPatience | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`sources` in order of preference: of one model found twice and alike, the first counts.

        `previous` are the states of a scanner before this one; those of an equal source go on in this one.
        """
        known = {state.source: state for state in previous}
        self.states = tuple(known.get(source) or SourceState(source, wall_ns=wall_ns) for source in sources)
        """One for each source."""
        self.problems: Mapping[str, str] = {}
        """Those of the last scan."""
        self.declarations = tuple(declarations)
        """What the operator declares, whatever the sources hold."""
        self._patience = patience or DiskPatience()
        self._monotonic = monotonic
        self._owners: dict[tuple[str, str], SourceState] = {}
        """Which source has a root, by source name and path."""
        self._models: tuple[Model, ...] = ()
        self._models_from: list[tuple[ModelsById, bool]] | None = None
        """What `_models` was made from: the models of each source, and whether they are stale."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every path on disks that it searches."""
        return tuple(path for state in self.states for path in state.source.paths)

    def scan(
        self,
        budget_seconds: float = DEFAULT_BUDGET_SECONDS,
        *,
        answers_within_seconds: float = 0.0,
        after_read: Callable[["SourceState"], None] | None = None,
    ) -> Scan:
        """Scan for no longer than the budget, the unit that it ends in, and the patience with disks.

        With `answers_within_seconds`, counted from now, it waits in the end for disks that do not answer.
        `after_read` is called for each source that was read, in a thread that may hang there.
        """
        began = time.monotonic()
        budget = _ScanBudget(
            began,
            self._owners,
            monotonic=self._monotonic,
            budget_seconds=budget_seconds,
            after_read=after_read,
        )
        for thread in self._read_sources(budget):
            thread.ended.wait(max(0.0, began + answers_within_seconds - time.monotonic()))
        now = time.monotonic()
        patience = self._patience  # with no next scan in which to report it, silence is reported sooner
        bound = patience.wait_seconds if answers_within_seconds else patience.silent_after_seconds
        silent = {state for state in self.states if state.busy and now - state.progress_at >= bound}
        # Before the models: what a source found that answers meanwhile is not among them yet.
        complete = all(
            state in silent or (not state.busy and state.contents.complete) for state in self.states
        )
        self.problems = self._all_problems(silent)
        answering = [state for state in self.states if state not in silent]
        return Scan(
            models=self._all_models(now),
            complete=complete,
            problems=self.problems,
            disks=distinct_disks(disk for state in answering for disk in state.contents.disks),
            disk_unknowns=self._all_disk_unknowns(silent),
        )

    def _read_sources(self, budget: "_ScanBudget") -> list["ScanThread"]:
        """Read all sources that no thread is in; returns the threads that had to be left behind."""
        hung: list[ScanThread] = []
        wait_seconds = self._patience.wait_seconds
        ready = (state for state in self.states if not state.busy)
        waiting = tuple(sorted(ready, key=lambda state: state.scanned_since))  # stable: longest unread first
        while waiting:
            thread = ScanThread(waiting, budget.read)
            if thread.made_progress(wait_seconds):
                break
            waiting = thread.abandon()
            hung.append(thread)
            budget.exclude(thread.current, lost_seconds=wait_seconds)
            wait_seconds = max(wait_seconds / 2, _LEAST_WAIT_SECONDS)
        return hung

    def _all_problems(self, silent: set["SourceState"]) -> dict[str, str]:
        problems: dict[str, str] = {}
        for state in self.states:
            if state in silent:
                problems.update((str(path), DISK_SILENT) for path in state.source.paths)
            else:
                problems.update(state.contents.problems)
        return problems

    def _all_disk_unknowns(self, silent: set["SourceState"]) -> dict[str, str]:
        unknowns: dict[str, str] = {}
        for state in self.states:
            if state in silent:
                unknowns.update((path.name, "no answer") for path in state.source.paths)
            else:
                unknowns.update(state.contents.disk_unknowns)
        return unknowns

    def _all_models(self, now: float) -> tuple[Model, ...]:
        limit = self._patience.stale_after_seconds
        parts = [
            (state.contents.models, state.busy and now - state.progress_at >= limit) for state in self.states
        ]
        if self._models_from is None or not _same_models(self._models_from, parts):
            found = merge_models(
                mark_unreadable(models.values()) if stale else models.values() for models, stale in parts
            )
            self._models = apply_declarations(self.declarations, found.values())
            self._models_from = parts
        return self._models


def _same_models(one: Sequence[tuple[ModelsById, bool]], other: Sequence[tuple[ModelsById, bool]]) -> bool:
    return all(a is b and stale is was for (a, stale), (b, was) in zip(one, other, strict=True))


def merge_models(findings: Iterable[Iterable[Model]]) -> ModelsById:
    """Merge by id and version: of a model found twice the more usable one, the first where both are alike."""
    found: dict[tuple[str, str], Model] = {}
    for models in findings:
        for model in models:
            key = model.model_id, model.version
            found[key] = more_usable(found[key], model) if key in found else model
    return found


def mark_unreadable(models: Iterable[Model]) -> tuple[Model, ...]:
    """Models whose disk has not answered for too long are in error: they cannot be loaded.

    Declared models stay, because they are the operator's statement, and so do models that could not serve
    before: those have a reason of their own.
    """
    serving = (ModelStatus.READY, ModelStatus.DOWNLOADING)
    return tuple(
        replace(model, status=ModelStatus.ERROR, detail=UNREADABLE)
        if model.source != declared.SOURCE and model.status in serving
        else model
        for model in models
    )


class _ScanBudget:
    """The time of one scan, and how it is shared among the sources."""

    def __init__(
        self,
        began: float,
        owners: dict[tuple[str, str], "SourceState"],
        *,
        monotonic: Callable[[], float],
        budget_seconds: float,
        after_read: Callable[["SourceState"], None] | None,
    ) -> None:
        self._began = began
        self._owners = owners
        self._monotonic = monotonic
        self._budget_seconds = budget_seconds
        self._deadline = monotonic() + budget_seconds
        self._after_read = after_read
        self._listed: set[SourceState] = set()
        self._has_read = False
        """Some unit was read: every scan makes progress, even without a budget."""
        self._excluded: set[SourceState | None] = set()
        """Sources that the scan no longer waits for: they take no time from others."""

    def exclude(self, state: "SourceState | None", *, lost_seconds: float) -> None:
        """Stop waiting for a source; the others get back the time that waiting for it took."""
        self._excluded.add(state)
        self._deadline += lost_seconds

    def read(self, state: "SourceState", others: int) -> bool:
        """Read a source for its share of what is left; True where more is wanted and there is time."""
        with state.acquire() as acquired:
            if not acquired:
                return False
            if state not in self._listed:
                self._listed.add(state)
                state.list_units(self._owners)
            now = self._monotonic()
            share = now + (self._deadline - now) / (others + 1)
            alone = now + self._budget_seconds
            state.read(self._began, lambda: self._may_go_on(alone if state in self._excluded else share))
            if self._after_read is not None:
                self._after_read(state)
            return not state.contents.complete and self._monotonic() < self._deadline

    def _may_go_on(self, until: float) -> bool:
        first, self._has_read = not self._has_read, True
        return first or self._monotonic() < until


class ScanThread:
    """One thread that goes through the sources, and is left behind with a source that hangs.

    The scan waits for it as long as it makes progress; then another thread takes the rest. A thread that was
    left behind ends when its disk answers, and reads nothing else.
    """

    def __init__(self, states: Iterable["SourceState"], read: Callable[["SourceState", int], bool]) -> None:
        """`read` gets a source and how many come after it; True means that it wants another turn."""
        self.ended = threading.Event()
        self._read = read
        self._waiting = deque(states)
        self._again: deque[SourceState] = deque()
        self.current: SourceState | None = None
        """The source that it reads, or hangs in."""
        self._lock = threading.Lock()
        self._abandoned = False
        self._finished = False
        threading.Thread(target=self._run, name="models", daemon=True).start()

    def made_progress(self, within_seconds: float) -> bool:
        """Wait for its end, as long as it makes progress within that time; False when it did not."""
        while not self.ended.wait(self._time_left(within_seconds)):
            if self._time_left(within_seconds) <= 0:
                return False
        if not self._finished:
            raise RuntimeError("the scan of the model sources failed")  # the reason is on stderr
        return True

    def abandon(self) -> tuple["SourceState", ...]:
        """Leave it behind where it is; returns the sources that it had not finished."""
        with self._lock:
            self._abandoned = True
            return (*self._waiting, *self._again)

    def _time_left(self, within_seconds: float) -> float:
        current = self.current
        return within_seconds if current is None else current.progress_at + within_seconds - time.monotonic()

    def _run(self) -> None:
        try:
            while (state := self._next()) is not None:
                if self._read(state, len(self._waiting)):
                    self._again.append(state)
            self._finished = True
        finally:
            self.ended.set()

    def _next(self) -> "SourceState | None":
        with self._lock:
            if self._abandoned:
                return None
            if not self._waiting:
                self._waiting, self._again = self._again, self._waiting
            if not self._waiting:
                return None
            state = self._waiting.popleft()
            state.progress_at = time.monotonic()
            self.current = state
            return state


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


class SourceState:
    """Remembers what each unit of one source held, and reads it again only where it must.

    One thread at a time reads it, and may hang there as long as the disk does; others see that it is busy,
    and what it held before. A unit whose watched files and folders did not change is not read again, unless
    they changed so shortly before its reading that one more change could have the same time stamp.
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
        self._wall_ns = wall_ns
        self._lock = threading.Lock()
        self._known: dict[_UnitKey, _KnownUnit] = {}
        self._read_in: dict[_UnitKey, float] = {}
        """The start of the scan that read each unit: it stays valid for the next scanner."""
        self._waiting: list[tuple[_UnitKey, Unit]] = []
        """Units that the current scan has not reached, the next one last."""
        self._listing_problems: Mapping[str, str] = {}
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
        """List the units, those first that were not read for longest.

        A root that another source of this kind has too, because a link leads to it, is left to that one once
        that one has read all of it.
        """
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
        self._listing_problems = listing.problems
        self._disks = self._read_disks()
        self._remove_all_but(units)
        if roots != self._roots:
            self._roots, self._paths_changed = roots, True
        self.progress_at = time.monotonic()

    def read(self, scan_began: float, goes_on: Callable[[], bool]) -> None:
        """Read units as long as `goes_on` allows, which is called before each."""
        while self._waiting and goes_on():
            key, unit = self._waiting.pop()
            self._read_unit(key, unit)
            self._read_in[key] = scan_began
            self.progress_at = time.monotonic()
        self.scanned_since = self._read_in.get(self._waiting[-1][0], 0.0) if self._waiting else scan_began
        problems = dict(self._listing_problems)
        for known in self._known.values():
            problems.update(known.reading.problems)
        disks, disk_unknowns = self._disks
        self.contents = SourceContents(
            models=self._all_models(),
            complete=not self._waiting,
            problems=problems,
            disks=disks,
            disk_unknowns=disk_unknowns,
        )
        self.progress_at = time.monotonic()

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
        if known and known.settled and _is_unchanged(known.reading.watched):
            return
        began = self._wall_ns()
        reading = self.source.read(unit)
        newest = max((mark[1] for mark in reading.watched.values() if mark), default=0)
        self._known[key] = _KnownUnit(reading=reading, settled=newest < began - _SETTLED_NANOSECONDS)
        if known is None or known.reading.models != reading.models:
            self._models = None
        if known is None or known.reading.watched != reading.watched:
            self._paths_changed = True

    def _remove_all_but(self, units: Collection[_UnitKey]) -> None:
        gone = [key for key in self._known if key not in units]
        for key in gone:
            del self._known[key], self._read_in[key]
            self._models, self._paths_changed = None, True

    def _all_models(self) -> ModelsById:
        if self._models is None:
            self._models = merge_models(known.reading.models for known in self._known.values())
        return self._models

    def _all_paths(self) -> Collection[str]:
        """The roots, what was watched, the folders that hold it, and the path to each unit."""
        paths = dict.fromkeys(self._roots)
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
