"""The model scanner: every model source read in bounded time, and only where something changed.

A scan has a budget, shared among the sources; what one source does not need is for the others. A unit that
the scan does not reach keeps its last known state and comes first in the next scan. A source on a disk that
hangs is left behind with its thread: its models stay as they were for a while, then they are in error, until
the disk answers; the other sources go on.

`ModelScanner` holds a `SourceState` for each source. A scan makes a `_ScanBudget`, and goes through the
sources in a `ScanThread`; where one hangs, another thread takes the rest. Nothing that a disk holds raises.
Keep one scanner per process, and scan from one thread at a time.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from gpu_agent.probe.host.host import distinct_disks
from gpu_agent.probe.models import declared
from gpu_agent.probe.models.declared import ModelDeclaration, apply_declarations
from gpu_agent.probe.models.source import ModelSource
from gpu_agent.probe.models.source_state import ModelsById, SourceState, merge_models
from gpu_agent.records import dataclass, field, replace
from gpu_agent.wire.inventory import CacheDisk, Model, ModelStatus

DEFAULT_BUDGET_SECONDS = 2.0
DISK_SILENT = "its disk does not answer: see `df` and `dmesg`"
"""Why a path could not be searched."""
UNREADABLE = "its disk does not answer"
"""The detail of a model whose disk has not answered for too long."""

_LEAST_WAIT_SECONDS = 0.02
"""A working disk answers within it, on a machine that is not too busy."""


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
