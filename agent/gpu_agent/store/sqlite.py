"""A keeper on disk: one SQLite file, written by one registry.

What `save` has returned for is on the disk, whatever happens to the process or the machine
afterwards. Never overwrites a file that it cannot read. May be used from any thread, by one at a time;
a backup alone may run beside a save.
"""

import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from gpu_agent.registry.actions import Change, Kept
from gpu_agent.store import sqlite_file, texts
from gpu_agent.store.base import (
    EVENTS_PER_NODE,
    RECENT_EVENTS,
    Batch,
    Loaded,
    RegistryEvent,
    StoreError,
)
from gpu_agent.store.sqlite_faults import damage, fault

_KINDS = frozenset(kind.value for kind in Kept)
_PROBE_BYTES = 256 * 1024

_SAVE = "INSERT OR REPLACE INTO documents (kind, key, document) VALUES (?, ?, ?)"
_LET_GO = "DELETE FROM documents WHERE kind = ? AND key = ?"
_CLOSE_HISTORY = "UPDATE events SET history = NULL WHERE history = ?"
_ADD_EVENT = """INSERT INTO events (id, at, event, node_id, fields, history) VALUES (?, ?, ?, ?, ?,
    (SELECT key FROM documents WHERE kind = 'node' AND key = ?))"""
_SHORTEN_HISTORY = """UPDATE events SET history = NULL WHERE history = :node AND id <=
    (SELECT id FROM events WHERE history = :node ORDER BY id DESC LIMIT 1 OFFSET :length)"""
_FORGET_OLD = "DELETE FROM events WHERE history IS NULL AND id <= ?"
_PROBE = "INSERT OR REPLACE INTO probes (id, filler) VALUES (1, randomblob(?))"
_DOCUMENTS = "SELECT kind, key, document FROM documents"
_EVENTS = "SELECT at, event, node_id, fields, id, history FROM events ORDER BY id"

_Row = tuple[float, str, str | None, str, int, str | None]


class SqliteStore:
    """Keeps everything in the file at `path`, which is made when it is not there.

    The caller sees to it that nobody else writes the file; `released` is called once it is closed.
    """

    def __init__(self, path: Path, *, released: Callable[[], None] = lambda: None) -> None:
        """Open or make the file; raises `StoreError`."""
        self.path = path
        self._released = released
        self._database: sqlite3.Connection | None = sqlite_file.opened(path)
        self._identity = sqlite_file.identity(path)

    def load(self) -> Loaded:
        """Return all that is kept; documents of kinds that this release does not know stay where they are."""
        database = self._open
        try:
            changes = [
                Change(Kept(kind), key, texts.read(document))
                for kind, key, document in database.execute(_DOCUMENTS)
                if kind in _KINDS
            ]
            events = list(_read_events(database.execute(_EVENTS)))
        except sqlite3.Error as error:
            raise fault(self.path, error) from error
        except ValueError as error:
            raise damage(self.path, str(error)) from error
        return _loaded(changes, events)

    def save(self, batches: Sequence[Batch]) -> None:
        """Keep all of these in one transaction; raises `StoreError`."""
        self._write(lambda database: _keep(database, batches))

    def probe(self) -> None:
        """Write something of a fair size that does not count as kept; raises `StoreError`."""
        self._write(lambda database: database.execute(_PROBE, (_PROBE_BYTES,)))

    def backup(self, target: Path, *, overwrite: bool = False) -> None:
        """Write all that is kept now to a file of its own; raises `StoreError`."""
        _ = self._open
        sqlite_file.copy(self.path, target, overwrite=overwrite)

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        if self._database is not None:
            with suppress(sqlite3.Error):  # what was saved is on the disk, however the file is left
                self._database.close()
            self._database = None
            self._released()

    @property
    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            raise StoreError(f"{self.path} is closed; start the registry again to open it")
        return self._database

    def _write(self, work: Callable[[sqlite3.Connection], object]) -> None:
        database = self._open
        self._refuse_when_gone()
        try:
            database.execute("BEGIN IMMEDIATE")
            try:
                work(database)
                database.execute("COMMIT")
            finally:
                if database.in_transaction:
                    database.execute("ROLLBACK")
        except (sqlite3.Error, OverflowError) as error:
            raise fault(self.path, error) from error

    def _refuse_when_gone(self) -> None:
        """A file that was deleted or replaced can still be written, and all of that would be lost."""
        if sqlite_file.identity(self.path) != self._identity:
            raise StoreError(
                f"the registry's database {self.path} was moved, deleted or replaced while the registry uses "
                "it: nothing more can be kept until the registry is started again"
            )


def _keep(database: sqlite3.Connection, batches: Sequence[Batch]) -> None:
    for batch in batches:
        for change in batch.changes:
            _change(database, change)
        for event in batch.events:
            fields = texts.of_fields(event)
            row = (event.id, event.at, event.event, event.node_id, fields, event.node_id)
            database.execute(_ADD_EVENT, row)
    events = [event for batch in batches for event in batch.events]
    if events:
        for node_id in {event.node_id for event in events if event.node_id is not None}:
            database.execute(_SHORTEN_HISTORY, {"node": node_id, "length": EVENTS_PER_NODE})
        database.execute(_FORGET_OLD, ((events[-1].id or 0) - RECENT_EVENTS,))


def _change(database: sqlite3.Connection, change: Change) -> None:
    text = texts.of_document(change)
    if text is not None:
        database.execute(_SAVE, (change.kind.value, change.key, text))
        return
    database.execute(_LET_GO, (change.kind.value, change.key))
    if change.kind is Kept.NODE:
        database.execute(_CLOSE_HISTORY, (change.key,))


def _read_events(rows: Iterable[_Row]) -> Iterator[tuple[RegistryEvent, str | None]]:
    """Read events, of which most say what others said: each name and each set of fields is held once."""
    names: dict[str | None, str | None] = {}
    said: dict[str, Mapping[str, object]] = {}
    for at, event, node_id, text, number, history in rows:
        fields = said.get(text)
        if fields is None:
            fields = said[text] = texts.read(text)
        node = names.setdefault(node_id, node_id)
        yield RegistryEvent(at, sys.intern(event), node, fields, number), names.setdefault(history, history)


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
