"""A keeper on disk: one SQLite file, written by one registry.

What `save` has returned for is on the disk, whatever happens to the process or the machine
afterwards. Never overwrites a file that it cannot read. May be used from any thread, by one at a time.
"""

import os
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

from gpu_agent.registry.actions import Change, Kept
from gpu_agent.store import sqlite_schema, texts
from gpu_agent.store.base import (
    EVENTS_PER_NODE,
    RECENT_EVENTS,
    Batch,
    Loaded,
    RegistryEvent,
    StoreError,
)

_MODE = 0o600
_KINDS = frozenset(kind.value for kind in Kept)

_SAVE = "INSERT OR REPLACE INTO documents (kind, key, document) VALUES (?, ?, ?)"
_LET_GO = "DELETE FROM documents WHERE kind = ? AND key = ?"
_CLOSE_HISTORY = "UPDATE events SET history = NULL WHERE history = ?"
_ADD_EVENT = """INSERT INTO events (id, at, event, node_id, fields, history) VALUES (?, ?, ?, ?, ?,
    (SELECT key FROM documents WHERE kind = 'node' AND key = ?))"""
_SHORTEN_HISTORY = """UPDATE events SET history = NULL WHERE history = :node AND id <=
    (SELECT id FROM events WHERE history = :node ORDER BY id DESC LIMIT 1 OFFSET :length)"""
_FORGET_OLD = "DELETE FROM events WHERE history IS NULL AND id <= ?"
_PROBE = "INSERT OR REPLACE INTO probes (id, filler) VALUES (1, zeroblob(?))"
_PROBE_BYTES = 256 * 1024
_DOCUMENTS = "SELECT kind, key, document FROM documents"
_EVENTS = "SELECT at, event, node_id, fields, id, history FROM events ORDER BY id"


class SqliteStore:
    """Keeps everything in the file at `path`; made, with its directory, when it is not there."""

    def __init__(self, path: Path) -> None:
        """Open or make the file; raises `StoreError`."""
        self.path = path
        self._database: sqlite3.Connection | None = None
        try:
            self._database = _opened(path)
        except (OSError, sqlite3.Error) as error:
            raise _cannot_open(path, error) from error

    def load(self) -> Loaded:
        """Return all that is kept; documents of kinds that this release does not know stay where they are."""
        database = self._open
        try:
            changes = [
                Change(Kept(kind), key, texts.read(document))
                for kind, key, document in database.execute(_DOCUMENTS)
                if kind in _KINDS
            ]
            events = [
                (RegistryEvent(at, event, node_id, texts.read(fields), number), history)
                for at, event, node_id, fields, number, history in database.execute(_EVENTS)
            ]
        except (sqlite3.Error, ValueError) as error:
            raise _cannot_open(self.path, error) from error
        return _loaded(changes, events)

    def save(self, batches: Sequence[Batch]) -> None:
        """Keep all of these in one transaction; raises `StoreError`."""
        database = self._open
        try:
            database.execute("BEGIN IMMEDIATE")
            with database:
                for batch in batches:
                    _write(database, batch)
        except (sqlite3.Error, OverflowError) as error:
            raise _cannot_write(self.path, error) from error

    def probe(self) -> None:
        """Write something of a fair size, and do not count it as kept; raises `StoreError`."""
        try:
            self._open.execute(_PROBE, (_PROBE_BYTES,))
        except sqlite3.Error as error:
            raise _cannot_write(self.path, error) from error

    def backup(self, target: Path) -> None:
        """Write all that is kept now to a new file; raises `StoreError`."""
        _ = self._open
        try:
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE)
            os.close(descriptor)
            with closing(sqlite3.connect(self.path)) as source, closing(sqlite3.connect(target)) as copy:
                source.backup(copy)
                copy.execute("PRAGMA journal_mode = DELETE")
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"no backup could be written to {target}: {error}") from error

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        if self._database is not None:
            self._database.close()
            self._database = None

    @property
    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            raise StoreError(f"{self.path} is closed; start the registry again to open it")
        return self._database


def _opened(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, _MODE))
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        sqlite_schema.prepare(database, str(path))
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
    except BaseException:
        database.close()
        raise
    return database


def _write(database: sqlite3.Connection, batch: Batch) -> None:
    for change in batch.changes:
        text = texts.of_document(change)
        if text is not None:
            database.execute(_SAVE, (change.kind.value, change.key, text))
            continue
        database.execute(_LET_GO, (change.kind.value, change.key))
        if change.kind is Kept.NODE:
            database.execute(_CLOSE_HISTORY, (change.key,))
    for event in batch.events:
        fields = texts.of_fields(event)
        database.execute(_ADD_EVENT, (event.id, event.at, event.event, event.node_id, fields, event.node_id))
    if batch.events:
        for node_id in {event.node_id for event in batch.events if event.node_id is not None}:
            database.execute(_SHORTEN_HISTORY, {"node": node_id, "length": EVENTS_PER_NODE})
        database.execute(_FORGET_OLD, ((batch.events[-1].id or 0) - RECENT_EVENTS,))


def _loaded(changes: Sequence[Change], events: Iterable[tuple[RegistryEvent, str | None]]) -> Loaded:
    """Sort the events, which come by id: the last of all, and each kept node's."""
    recent: list[RegistryEvent] = []
    histories: dict[str, list[RegistryEvent]] = {}
    for event, history in events:
        recent.append(event)
        if history is not None:
            histories.setdefault(history, []).append(event)
    oldest = (recent[-1].id or 0) - RECENT_EVENTS if recent else 0
    return Loaded(changes, [one for one in recent if (one.id or 0) > oldest], histories)


def _cannot_open(path: Path, error: Exception) -> StoreError:
    return StoreError(f"the registry's database {path} cannot be used: {error}")


def _cannot_write(path: Path, error: Exception) -> StoreError:
    return StoreError(f"the registry's database {path} could not be written: {error}")
