"""The disk under the registry: a true store that can be full, hang or fail, and reports what it stored."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Protocol

from gpu_agent.store.base import Batch, Loaded, StoreError
from gpu_agent.store.memory import MemoryStore
from gpu_agent.store.sqlite import SqliteStore
from tests.simulation.world import World

_LATE_SECONDS = 1.0
"""In the mean; the registry tries again after as long."""


class Medium(Protocol):
    """Where batches end up; `crash` is what the end of the process does to it."""

    def load(self) -> Loaded: ...
    def save(self, batches: Sequence[Batch]) -> None: ...
    def save_torn(self, batches: Sequence[Batch]) -> None: ...
    def crash(self) -> None: ...


@dataclass(slots=True)
class DiskFaults:
    """What is wrong with the disk just now."""

    full_until: float = 0.0
    slow_until: float = 0.0
    slow_seconds: float = 1.5
    hangs_until: float = 0.0
    """No commit ends before."""
    fails_next: int = 0
    """So many commits will fail."""
    unknown_next: int = 0
    """So many commits will be stored and reported as failed."""
    late_next: int = 0
    """So many commits will be reported as failed before they are stored."""


class SimulatedDisk:
    """What the registry takes for its store."""

    def __init__(self, world: World, medium: Medium, *, quick_seconds: float) -> None:
        self.faults = DiskFaults()
        self.power_fails = False
        """While it is true a commit is torn."""
        self.stored: Callable[[Sequence[Batch]], None]
        self._world = world
        self._medium = medium
        self._quick_seconds = quick_seconds
        self._commits = 0
        self._late: tuple[int, Sequence[Batch]] | None = None
        """A commit that is not stored yet, and its number: another one may take that first."""

    def commit_seconds(self) -> float:
        """Draw how long a commit takes."""
        trouble, now = self.faults, self._world.now
        slow = trouble.slow_until > now
        seconds = self._world.soon(trouble.slow_seconds if slow else self._quick_seconds)
        return max(seconds, trouble.hangs_until - now)

    def load(self) -> Loaded:
        """Return all that is stored."""
        return self._medium.load()

    def save(self, batches: Sequence[Batch]) -> None:
        """Store all or none; after an error it may be either."""
        self._fail_if_due()
        if self.power_fails:
            self._medium.save_torn(batches)
            raise StoreError("the power failed")
        if self.faults.late_next:
            self.faults.late_next -= 1
            self._late = self._commits + 1, batches
            self._world.after(self._world.soon(_LATE_SECONDS), self._store_late)
            raise StoreError("the store did not answer in time")
        self._store(batches)
        if self.faults.unknown_next:
            self.faults.unknown_next -= 1
            raise StoreError("the answer of the store was lost")

    def backup(self, target: Path, *, overwrite: bool = False) -> None:
        """The simulation takes no backups."""
        raise NotImplementedError(target)

    def close(self) -> None:
        """A process that crashes closes nothing."""

    def crash(self) -> None:
        """The process is gone; what it has sent may be stored until another one begins."""
        if self._late is not None and self._world.chance(1 / 2):
            self._store_late()
        self._late = None
        self._medium.crash()

    def _store(self, batches: Sequence[Batch]) -> None:
        self._commits += 1
        self._medium.save(batches)
        self.stored(batches)

    def _store_late(self) -> None:
        """Store what was reported as failed, once, unless a retry was stored before."""
        late, self._late = self._late, None
        if late is not None and late[0] == self._commits + 1:
            self._store(late[1])

    def _fail_if_due(self) -> None:
        if self.faults.full_until > self._world.now:
            raise StoreError("the disk is full")
        if self.faults.fails_next:
            self.faults.fails_next -= 1
            raise StoreError("the disk failed once")


# A disk that is a dictionary: whatever was committed is there, whatever crashes.


class MemoryMedium:
    """The memory store, which here outlives the registry's process."""

    def __init__(self) -> None:
        self._store = MemoryStore()

    def load(self) -> Loaded:
        """Return all that was committed."""
        return self._store.load()

    def save(self, batches: Sequence[Batch]) -> None:
        """Commit."""
        self._store.save(batches)

    def save_torn(self, batches: Sequence[Batch]) -> None:
        """A dictionary keeps all or nothing: nothing."""

    def crash(self) -> None:
        """Nothing is lost."""


# The true SQLite store on a true file, under a registry that crashes and a machine that loses power.
#
# A crash leaves the file and its log as they are, not closed: the next process opens a
# copy.
# Power that fails in the middle of a commit leaves some of the bytes that the commit wrote to the log.


_LOG = "-wal"


class SqliteMedium:
    """One database, over all processes that open it."""

    def __init__(self, folder: Path, dice: Random) -> None:
        self._folder = folder
        self._dice = dice
        self._path = folder / "registry-0.db"
        self._life = 0
        self._store: SqliteStore | None = None

    @property
    def store(self) -> SqliteStore:
        """The database as the present process has it open."""
        if self._store is None:
            self._store = SqliteStore(self._path)
        return self._store

    def load(self) -> Loaded:
        """Return all that was committed."""
        return self.store.load()

    def save(self, batches: Sequence[Batch]) -> None:
        """Commit."""
        self.store.save(batches)

    def save_torn(self, batches: Sequence[Batch]) -> None:
        """Let the power fail while this is committed; `crash` must follow."""
        store = self.store
        main, before = self._read(""), self._read(_LOG)
        store.save(batches)
        # Where the log was moved into the database itself, the commit was whole by then: it never began.
        torn = self._torn(before, self._read(_LOG)) if self._read("") == main else before
        self.crash()
        self._path.write_bytes(main)
        self._file(_LOG).write_bytes(torn)

    def crash(self) -> None:
        """Leave the files as they are, and let the next process open them."""
        if self._store is None:
            return
        self._life += 1
        fresh = self._folder / f"registry-{self._life}.db"
        for suffix in ("", _LOG):
            if self._file(suffix).exists():
                shutil.copyfile(self._file(suffix), fresh.with_name(fresh.name + suffix))
        self._store.close()
        self._store, self._path = None, fresh

    def close(self) -> None:
        """Let go of the file."""
        if self._store is not None:
            self._store.close()

    def _torn(self, before: bytes, after: bytes) -> bytes:
        """Keep a part of what a commit wrote, from its first byte on, and what lay there before."""
        shared = min(len(before), len(after))
        first = next((place for place in range(shared) if before[place] != after[place]), shared)
        changed = [place for place in range(first, shared) if before[place] != after[place]]
        last = len(after) - 1 if len(after) > len(before) else changed[-1]
        cut = self._dice.randint(first, last)
        return after[:cut] + before[cut:]

    def _read(self, suffix: str) -> bytes:
        path = self._file(suffix)
        return path.read_bytes() if path.exists() else b""

    def _file(self, suffix: str) -> Path:
        return self._path.with_name(self._path.name + suffix)
