"""The true SQLite store on a true file, under a registry that crashes and a machine that loses power.

A crash leaves the file and its log as they are, with nobody to close them: the next process opens a copy.
Power that fails in the middle of a commit leaves some of the bytes that the commit wrote to the log.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from random import Random

from gpu_agent.store.base import Batch, Loaded
from gpu_agent.store.sqlite import SqliteStore

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
