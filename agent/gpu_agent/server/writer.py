"""Commits batches to the store, off the event loop: one thread, one commit at a time.

The loop decides what goes into a commit, and retries what failed. Knows nothing about nodes.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from gpu_agent.runtime.logs import Logger
from gpu_agent.runtime.tasks import Worker, in_thread
from gpu_agent.server.counters import Histogram
from gpu_agent.store.base import (
    Batch,
    Loaded,
    Store,
    StoreError,
    UnstorableError,
    document_text,
    fields_text,
)

_COMMIT_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 10.0)
_MOST_DURATIONS = 16384
_LOG = Logger("registry")
_Stored = TypeVar("_Stored")

Committed = Callable[[str | None], None]
"""Called on the loop after a commit: None when all is stored, else a sentence that says why it failed."""


class Writer:
    """The one user of a store, until `close`."""

    def __init__(self, store: Store, *, pause_seconds: float = 0.0) -> None:
        self.pause_seconds = pause_seconds
        """How long the next commit waits for more, after one that held several outputs."""
        self._store = store
        self._worker = Worker("store")
        self._busy_since: float | None = None
        self._ended: asyncio.Future[None] | None = None
        """Once `close` was called: done when the store is closed."""
        self.stored = 0
        """Batches, since the start."""
        self.failed = 0
        """Commits, since the start; what they held is committed again."""
        self.commits = Histogram(_COMMIT_BOUNDS)
        """Seconds, since the start; those that failed too."""
        self._durations: deque[float] = deque(maxlen=_MOST_DURATIONS)

    @property
    def busy_since(self) -> float | None:
        """When the commit that runs began, in monotonic seconds; None while none runs."""
        return self._busy_since

    @property
    def closed(self) -> bool:
        """Whether nothing more is committed."""
        return self._ended is not None

    def commit(self, batches: Sequence[Batch], committed: Committed) -> None:
        """Store these batches in one transaction; not while another commit runs, nor after `close`."""
        began = self._busy_since = time.monotonic()

        def ended(bugs: Sequence[str] | None, error: BaseException | None) -> None:
            took = time.monotonic() - began
            self.commits.add(took)
            self._durations.append(took)
            self._busy_since = None
            for bug in bugs or ():
                _LOG.error("save_impossible", problem=bug)
            if error is None:
                self.stored += len(batches)
            else:
                self.failed += 1
            committed(None if error is None else _sentence(error))

        self._worker.do(partial(_save, self._store, batches), ended)

    def take_durations(self) -> list[float]:
        """Return how long the commits since the last call took, in seconds: the newest so many."""
        durations = list(self._durations)
        self._durations.clear()
        return durations

    async def load(self) -> Loaded:
        """Read all that is stored, before the first commit; raises `StoreError`."""
        return await in_thread("store", self._store.load, deadline_seconds=None)

    async def backup(self, path: Path, *, overwrite: bool = False) -> None:
        """Write all that is stored to a database of its own, mode 0600; raises `StoreError`.

        No commit waits for it. A file that lies at `path` is replaced only with `overwrite`.
        """
        await in_thread(
            "backup", lambda: self._store.backup(path, overwrite=overwrite), deadline_seconds=None
        )

    async def close(self, *, within_seconds: float) -> bool:
        """Close the store after the commit that runs; False when that takes longer: it is closed later."""
        if self._ended is None:
            ended = self._ended = asyncio.get_running_loop().create_future()

            def done(_: None, error: BaseException | None) -> None:
                if error is None:
                    ended.set_result(None)
                else:
                    ended.set_exception(error)

            self._worker.do(self._store.close, done)
            self._worker.end()
        await asyncio.wait({self._ended}, timeout=within_seconds)
        if not self._ended.done():
            return False
        self._ended.result()
        return True


def _save(store: Store, batches: Sequence[Batch]) -> list[str]:
    """Store all, except for what no store can hold: returns why, for each. Blocks; raises `StoreError`."""
    try:
        store.save(batches)
    except UnstorableError:
        storable, bugs = _without_unstorable(batches)
        store.save(storable)
        return bugs
    return []


def _without_unstorable(batches: Sequence[Batch]) -> tuple[list[Batch], list[str]]:
    bugs: list[str] = []
    storable = [
        Batch(
            [change for change in batch.changes if _is_storable(document_text, change, bugs)],
            [event for event in batch.events if _is_storable(fields_text, event, bugs)],
        )
        for batch in batches
    ]
    return storable, bugs


def _is_storable(write: Callable[[_Stored], object], one: _Stored, bugs: list[str]) -> bool:
    try:
        write(one)
    except UnstorableError as error:
        bugs.append(str(error))
        return False
    return True


def _sentence(error: BaseException) -> str:
    if isinstance(error, StoreError):
        return str(error)
    return f"the store broke: {type(error).__name__}: {error}; this is a bug, please report it"
