"""Stores what the fleet changes, off the event loop: one thread, and one commit for all that waits.

While one commit runs, the next one's batches gather. Decides nothing about nodes.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gpu_agent.registry.actions import DocumentKind
from gpu_agent.runtime.logs import Logger
from gpu_agent.runtime.tasks import Worker, in_thread
from gpu_agent.server.counters import Histogram
from gpu_agent.store.base import Batch, Loaded, Store, StoreError, UnstorableError

# One commit for many batches; where it fails, each batch by itself. Blocks: runs in the writer's thread.
#
# One that cannot be kept refuses itself and what was built on it, nobody else.


SPOILT = "it builds on something that could not be kept, and was undone with it; ask again"

Key = tuple[DocumentKind, str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a commit."""

    problems: Sequence[str | None]
    """For each batch: None when it is kept, else why not."""
    fault: str | None = None
    """What is wrong with the store itself, rather than with a batch."""
    bugs: Sequence[str] = ()
    """What no store would have kept."""


def commit(store: Store, batches: Sequence[Batch]) -> Outcome:
    """Keep all of these, or else each that can be kept."""
    try:
        store.save(batches)
    except StoreError as error:
        return _failed(error) if len(batches) == 1 else _one_by_one(store, batches)
    return Outcome([None] * len(batches))


def probe(store: Store) -> str | None:
    """Say why nothing could be kept now; None when something could."""
    try:
        store.probe()
    except StoreError as error:
        return str(error)
    return None


def keys_of(batch: Batch) -> set[Key]:
    """Name what a batch holds."""
    return {(change.kind, change.key) for change in batch.changes}


def _failed(error: StoreError) -> Outcome:
    sentence = str(error)
    if isinstance(error, UnstorableError):
        return Outcome([sentence], bugs=[sentence])
    return Outcome([sentence], fault=sentence)


def _one_by_one(store: Store, batches: Sequence[Batch]) -> Outcome:
    problems: list[str | None] = []
    bugs: list[str] = []
    spoilt = set[Key]()
    fault: str | None = None
    for batch in batches:
        keys = keys_of(batch)
        outcome = Outcome([SPOILT]) if keys & spoilt else commit(store, [batch])
        (problem,) = outcome.problems
        problems.append(problem)
        bugs += outcome.bugs
        fault = outcome.fault or fault
        if problem is not None:
            spoilt |= keys
    return Outcome(problems, fault, bugs)


# Keeps what the fleet wants kept, off the event loop: one thread, and all that waits in one commit.
#
# While one commit runs, the next ones' batches gather. Where a commit fails each of its batches is
# tried alone, so that one that cannot be kept refuses itself and what was built on it, nobody else.
# A store that does not answer is given nothing more, so that what waits for it stays bounded.
# Decides nothing about nodes.


MOST_AT_ONCE = 500
"""Batches of one commit: more would make the first wait for the last."""

MOST_WAITING = 20_000
"""Twice a fleet that registers at once. Beyond that the registry is too busy to keep more."""

STALL_SECONDS = 10.0
"""A commit that takes longer than this is a store that does not answer."""

PROBE_SECONDS = 2.0
"""A store that fails is looked at this often, so that it is known to work before anybody needs it."""

_COMMIT_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 10.0)
_LOG = Logger("registry")

Answered = Callable[[str | None], None]
"""Hears, on the loop, what became of a batch: None when it is kept, else why it is not."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Waiting:
    batch: Batch
    answered: Answered


class Writer:
    """The one user of a store, until `close`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._worker = Worker("store")
        self._waiting: deque[_Waiting] = deque()
        self._problem: str | None = None
        self._stalled = False
        self._working = False
        self._busy_since: float | None = None
        self._probing: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self.kept, self.failed = 0, 0
        """Batches, since the start."""
        self.commits = Histogram(_COMMIT_BOUNDS)
        """Seconds, since the start; those that failed too."""

    @property
    def problem(self) -> str | None:
        """Why the store keeps nothing at the moment, as a sentence; None when all is well."""
        return self._problem

    @property
    def waiting(self) -> int:
        """How many batches wait for the next commit."""
        return len(self._waiting)

    @property
    def busy_since(self) -> float | None:
        """When its thread began with what it is at, by the loop's clock; None while it waits for work."""
        return self._busy_since

    @property
    def overwhelmed(self) -> str | None:
        """Why nothing more may be `put` just now; None when it may."""
        if self._stalled:
            return self._problem
        if len(self._waiting) >= MOST_WAITING:
            return f"{len(self._waiting)} saves wait for the disk already; ask again in a moment"
        return None

    def put(self, batch: Batch, answered: Answered) -> None:
        """Keep a batch after all those before it."""
        self._waiting.append(_Waiting(batch, answered))
        self._go_on()

    async def load(self) -> Loaded:
        """Read all that is kept, before the first `put`; raises `StoreError`."""
        return await in_thread("store", self._store.load, deadline_seconds=None)

    async def backup(self, path: Path, *, overwrite: bool = False) -> None:
        """Write all that is kept to a database of its own, mode 0600; raises `StoreError`.

        No commit waits for it. What lies at `path` is replaced only with `overwrite`.
        """
        await in_thread(
            "backup", lambda: self._store.backup(path, overwrite=overwrite), deadline_seconds=None
        )

    async def close(self, *, within_seconds: float) -> bool:
        """Close the store once nothing is being written; False when it does not come to that in time."""
        if self._probing is not None:
            self._probing.cancel()
        try:
            async with asyncio.timeout(within_seconds):
                await self._idle.wait()
            await in_thread("store", self._store.close, deadline_seconds=within_seconds)
        except TimeoutError:
            return False
        self._worker.end()
        return True

    def _go_on(self) -> None:
        """Let the thread keep what waits, as much as fits into one commit."""
        if self._working or not self._waiting:
            return
        group = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST_AT_ONCE))]
        now = asyncio.get_running_loop().time
        began = now()

        def ended(outcome: Outcome | None, fault: BaseException | None) -> None:
            self.commits.add(now() - began)
            self._end(group, outcome or _broken(group, fault))

        self._let_work(lambda: commit(self._store, [one.batch for one in group]), ended)

    def _let_work(
        self, work: Callable[[], _T], done: Callable[[_T | None, BaseException | None], None]
    ) -> None:
        """Let the thread do one thing, and go on with the next once `done` has heard of it."""
        self._working = True
        self._busy_since = asyncio.get_running_loop().time()
        self._idle.clear()
        overdue = asyncio.get_running_loop().call_later(STALL_SECONDS, self._stall)

        def ended(value: _T | None, fault: BaseException | None) -> None:
            overdue.cancel()
            self._stalled = False
            try:
                done(value, fault)
            finally:
                self._working, self._busy_since = False, None
                if not self._waiting:
                    self._idle.set()
                self._go_on()

        self._worker.do(work, ended)

    def _end(self, group: Sequence[_Waiting], outcome: Outcome) -> None:
        """Say what became of each, and of what was built on those that failed: those first."""
        if outcome.fault is not None:
            self._fail(outcome.fault)
        for bug in outcome.bugs:
            _LOG.error("save_impossible", problem=bug)
        told = list(zip(group, outcome.problems, strict=True))
        failed = [(one, problem) for one, problem in told if problem is not None]
        self.kept += len(told) - len(failed)
        if failed:
            spoilt = {key for one, _ in failed for key in keys_of(one.batch)}
            failed += [(one, SPOILT) for one in _drawn_out(self._waiting, spoilt)]
        self.failed += len(failed)
        self._tell(deque([*failed, *((one, None) for one, problem in told if problem is None)]))

    def _tell(self, outcomes: deque[tuple[_Waiting, str | None]]) -> None:
        """Tell each what became of its batch, whatever the one before does about it."""
        try:
            while outcomes:
                one, problem = outcomes.popleft()
                one.answered(problem)
        finally:
            if outcomes:
                asyncio.get_running_loop().call_soon(self._tell, outcomes)

    def _stall(self) -> None:
        self._stalled = True
        self._fail(f"the store has not answered for {STALL_SECONDS:g} s; look at the disk that it lies on")

    def _fail(self, sentence: str) -> None:
        if self._problem is None:
            _LOG.error("store_failing", problem=sentence)
        self._problem = sentence
        if self._probing is None:
            self._probing = asyncio.get_running_loop().call_later(PROBE_SECONDS, self._probe)

    def _probe(self) -> None:
        """See whether the store keeps something again; what waits to be kept comes first."""
        self._probing = None
        if self._working:
            self._probing = asyncio.get_running_loop().call_later(PROBE_SECONDS, self._probe)
        else:
            self._let_work(lambda: probe(self._store), self._probed)

    def _probed(self, problem: str | None, fault: BaseException | None) -> None:
        if problem is not None or fault is not None:
            self._fail(problem or f"{type(fault).__name__}: {fault}")
        else:
            self._problem = None
            _LOG.info("store_recovered")


def _broken(group: Sequence[_Waiting], fault: BaseException | None) -> Outcome:
    sentence = f"the store broke: {type(fault).__name__}: {fault}; this is a bug, please report it"
    return Outcome([sentence] * len(group), sentence)


def _drawn_out(waiting: deque[_Waiting], spoilt: set[Key]) -> list[_Waiting]:
    """Take out of the queue what holds something that has failed, and what holds that in turn."""
    drawn_out: list[_Waiting] = []
    for _ in range(len(waiting)):
        one = waiting.popleft()
        keys = keys_of(one.batch)
        if keys & spoilt:
            spoilt |= keys
            drawn_out.append(one)
        else:
            waiting.append(one)
    return drawn_out
