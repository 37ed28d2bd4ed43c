"""The store on disk: one SQLite file, written by one registry.

When `save` has returned, its batches are on the disk, whatever happens to the process or the machine
afterwards. A release reads every schema version up to its own and refuses a newer one untouched; it never
overwrites a file that it cannot read. Any thread may use a store, one at a time; only a backup may run beside
a save.
"""

import errno
import os
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from itertools import chain
from pathlib import Path

from gpu_agent.registry.actions import Change, DocumentKind
from gpu_agent.store.base import (
    EVENTS_PER_NODE,
    RECENT_EVENTS,
    Batch,
    Loaded,
    StoreError,
    UnusableError,
    document_text,
    fields_text,
    parse_text,
)
from gpu_agent.wire.api import RegistryEvent

_KINDS = frozenset(kind.value for kind in DocumentKind)

_TRIM_EVENTS = 256
"""So many events more than it must hold the file may hold: trimming takes a third of a small commit."""

_MOST_ROWS = 64
"""Of one statement. Between two of them other threads run, and each change of threads costs as much as a row
of a document does."""

_SAVE = "INSERT OR REPLACE INTO documents (kind, key, document) VALUES {rows}"
_DELETE = "DELETE FROM documents WHERE (kind, key) IN (VALUES {rows})"
_CLOSE_HISTORY = "UPDATE events SET history = NULL WHERE history = ?"
# An event that is saved again joins its history again: the same save may have deleted that before.
_ADD = """INSERT INTO events (id, at, event, node_id, fields, history) VALUES {rows}
    ON CONFLICT (id) DO UPDATE SET history = excluded.history"""
_EVENT = "(?, ?, ?, ?, ?, (SELECT key FROM documents WHERE kind = 'node' AND key = ?))"
_SHORTEN_HISTORIES = """WITH nodes (node) AS (VALUES {rows}) UPDATE events SET history = NULL WHERE id IN
    (SELECT id FROM nodes CROSS JOIN events WHERE history = node AND id <=
        (SELECT id FROM events WHERE history = node ORDER BY id DESC LIMIT 1 OFFSET {length}))"""
_DELETE_OLD = "DELETE FROM events WHERE history IS NULL AND id <= ?"
_DOCUMENTS = "SELECT kind, key, document FROM documents"
_EVENTS = "SELECT at, event, node_id, fields, id, history FROM events ORDER BY id"

_Row = tuple[float, str, str | None, str, int, str | None]


class SqliteStore:
    """Holds everything in the file at `path`, and makes the file where there is none.

    The caller holds the lock for writing the file; `released` is called once the file is closed.
    """

    def __init__(self, path: Path, *, released: Callable[[], None] = lambda: None) -> None:
        """Open or make the file; raises `StoreError`."""
        self.path = path
        self._released = released
        self._database: sqlite3.Connection | None = open_database(path)
        self._identity = identity(path)
        self._lengthened: set[str] = set()
        """Nodes whose histories may have become too long."""
        self._trim_at = 0
        """From this event id on, histories are shortened and old events deleted."""

    def load(self) -> Loaded:
        """Return all that is stored; documents of kinds that this release does not know stay in the file.

        Only now the database is checked, for which all of it is read: the nodes' port is open by now, and
        they wait in its queue.
        """
        database = self._open
        try:
            check_integrity(database, self.path)
            changes = [
                Change(DocumentKind(kind), key, parse_text(document))
                for kind, key, document in database.execute(_DOCUMENTS)
                if kind in _KINDS
            ]
            events = list(_read_events(database.execute(_EVENTS)))
        except sqlite3.Error as error:
            raise database_error(self.path, error) from error
        except ValueError as error:
            raise damaged_database(self.path, str(error)) from error
        return _loaded(changes, events)

    def save(self, batches: Sequence[Batch]) -> None:
        """Store all of these in one transaction; raises `StoreError`."""
        database = self._open
        self._refuse_when_gone()
        try:
            database.execute("BEGIN IMMEDIATE")
            try:
                newest = self._store(database, batches)
                trims = newest >= self._trim_at
                if trims:
                    self._trim(database, newest)
                database.execute("COMMIT")
            finally:
                if database.in_transaction:
                    database.execute("ROLLBACK")
            if trims:
                self._lengthened.clear()
                self._trim_at = newest + _TRIM_EVENTS
        except (sqlite3.Error, OverflowError) as error:
            raise database_error(self.path, error) from error

    def backup(self, target: Path, *, overwrite: bool = False) -> None:
        """Write all that is stored now to a file of its own; raises `StoreError`."""
        _ = self._open
        copy_database(self.path, target, overwrite=overwrite)

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

    def _store(self, database: sqlite3.Connection, batches: Sequence[Batch]) -> int:
        """Write all; returns the id of the newest event, -1 without any."""
        newest = -1
        gathered = _Gathered(database)
        for batch in batches:
            for change in batch.changes:
                gathered.change(change)
            for event in batch.events:
                gathered.add(event)
                newest = event.id or 0
                if event.node_id is not None:
                    self._lengthened.add(event.node_id)
        gathered.write()
        return newest

    def _trim(self, database: sqlite3.Connection, newest: int) -> None:
        shorten = _SHORTEN_HISTORIES.replace("{length}", str(EVENTS_PER_NODE))
        _execute_rows(database, shorten, row="(?)", rows=[(node_id,) for node_id in self._lengthened])
        database.execute(_DELETE_OLD, (newest - RECENT_EVENTS,))

    def _refuse_when_gone(self) -> None:
        """Raise where the file was deleted or replaced: what is written to it now would be lost."""
        if identity(self.path) != self._identity:
            raise StoreError(
                f"the registry's database {self.path} was moved, deleted or replaced while the registry uses "
                "it: nothing more can be stored until the registry is started again"
            )


class _Gathered:
    """What a save gathers before it writes it, many rows at a time.

    Whether an event joins the history of its node depends on whether that is stored: events of a node are
    written before a later change of it.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._documents: dict[tuple[str, str], str | None] = {}
        """By kind and key: the newest text, None where it is deleted."""
        self._events: list[tuple[object, ...]] = []
        self._nodes: set[str | None] = set()
        """Those of the events."""

    def change(self, change: Change) -> None:
        """Take in a change of a document."""
        text = document_text(change)
        if change.kind is DocumentKind.NODE:
            if change.key in self._nodes:
                self.write()
            if text is None:
                self._database.execute(_CLOSE_HISTORY, (change.key,))
        self._documents[change.kind.value, change.key] = text

    def add(self, event: RegistryEvent) -> None:
        """Take in an event."""
        node_id = event.node_id
        self._events.append((event.id, event.at, event.event, node_id, fields_text(event), node_id))
        self._nodes.add(node_id)

    def write(self) -> None:
        """Write all that was gathered."""
        documents, events = self._documents, self._events
        self._documents, self._events, self._nodes = {}, [], set()
        deleted = [key for key, text in documents.items() if text is None]
        saved = [(*key, text) for key, text in documents.items() if text is not None]
        _execute_rows(self._database, _DELETE, row="(?, ?)", rows=deleted)
        _execute_rows(self._database, _SAVE, row="(?, ?, ?)", rows=saved)
        _execute_rows(self._database, _ADD, row=_EVENT, rows=events)


def _execute_rows(
    database: sqlite3.Connection, statement: str, *, row: str, rows: Sequence[tuple[object, ...]]
) -> None:
    """Execute a statement for all rows, many at a time."""
    for begin in range(0, len(rows), _MOST_ROWS):
        some = rows[begin : begin + _MOST_ROWS]
        written = statement.format(rows=", ".join([row] * len(some)))
        database.execute(written, [*chain.from_iterable(some)])


def _read_events(rows: Iterable[_Row]) -> Iterator[tuple[RegistryEvent, str | None]]:
    """Read events; most repeat the fields of others, so each name and each set of fields is held once."""
    names: dict[str | None, str | None] = {}
    known: dict[str, Mapping[str, object]] = {}
    for at, event, node_id, text, number, history in rows:
        fields = known.get(text)
        if fields is None:
            fields = known[text] = parse_text(text)
        node = names.setdefault(node_id, node_id)
        yield RegistryEvent(at, sys.intern(event), node, fields, number), names.setdefault(history, history)


def _loaded(changes: Sequence[Change], events: Iterable[tuple[RegistryEvent, str | None]]) -> Loaded:
    """Sort the events, which come by id: the recent ones, and the history of each stored node."""
    recent: list[RegistryEvent] = []
    histories: dict[str, list[RegistryEvent]] = {}
    for event, history in events:
        recent.append(event)
        if history is not None:
            histories.setdefault(history, []).append(event)
    oldest = (recent[-1].id or 0) - RECENT_EVENTS if recent else 0
    shortened = {node_id: history[-EVENTS_PER_NODE:] for node_id, history in histories.items()}
    return Loaded(changes, [one for one in recent if (one.id or 0) > oldest], shortened)


# The file

MODE = 0o600

_WAIT_SECONDS = 5.0
"""How long another process, such as a backup of the whole machine, may keep the file locked."""

_SETTINGS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA fullfsync = ON",  # on a Mac nothing less reaches the disk
    "PRAGMA journal_size_limit = 67108864",
)

Identity = tuple[tuple[int, int] | None, ...]


def open_database(path: Path) -> sqlite3.Connection:
    """Open a registry's database, or make one, to be written; raises `StoreError`."""
    try:
        _make(path)
        database = connect(path)
    except (OSError, sqlite3.Error) as error:
        raise database_error(path, error) from error
    with ExitStack() as on_error:
        on_error.callback(database.close)
        try:
            _check_and_copy_before_upgrade(database, path)
            prepare_schema(database, str(path))
            for setting in _SETTINGS:
                database.execute(setting)
            database.execute("BEGIN IMMEDIATE")  # shows that it can be written, and makes the file of the log
            database.execute("COMMIT")
        except sqlite3.Error as error:
            raise database_error(path, error) from error
        on_error.pop_all()  # it stays open
    return database


def check_integrity(database: sqlite3.Connection, path: Path) -> None:
    """Raise `UnusableError` where the database is damaged."""
    found = find_damage(database)
    if found is not None:
        raise damaged_database(path, found)


def find_damage(database: sqlite3.Connection) -> str | None:
    """Return how a database contradicts itself; None where it does not."""
    (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
    return None if found == "ok" else str(found)


def identity(path: Path) -> Identity:
    """Return what tells an open database, and the log beside it, from others at the same path."""
    return _inode(path), _inode(path.with_name(f"{path.name}-wal"))


def copy_database(path: Path, target: Path, *, overwrite: bool = False) -> None:
    """Write all that a database holds at this moment to another file; raises `StoreError`.

    The target is complete or not there, and only its owner may read it.
    """
    if not overwrite and target.exists():
        raise StoreError(f"{target} is there already and was left as it is: name another file")
    part = target.with_name(f".{target.name}.part")
    try:
        part.unlink(missing_ok=True)
        os.close(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, MODE))
        try:
            _copy(path, part)
            sync(part)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        sync(target.parent)
    except (OSError, sqlite3.Error) as error:
        raise copy_failed(target, error) from error


def connect(path: Path, *, mode: str = "rw") -> sqlite3.Connection:
    """Connect to a file that is there, to read it (`ro`) or to write it (`rw`); raises `sqlite3.Error`."""
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=_WAIT_SECONDS,
    )


def sync(path: Path) -> None:
    """Bring a file, or the names in a directory, onto the disk."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy(path: Path, part: Path) -> None:
    with closing(connect(path, mode="ro")) as source, closing(connect(part)) as copied:
        source.backup(copied)
        copied.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it


def _check_and_copy_before_upgrade(database: sqlite3.Connection, path: Path) -> None:
    """Check a database of an older version, and copy it before it is changed, for a way back."""
    older = older_version(database)
    if older is not None:
        check_integrity(database, path)
        before = path.with_name(f"{path.name}.v{older}")
        if not before.exists():
            copy_database(path, before)


def _make(path: Path) -> None:
    """Make the database where there is none, whole or not at all; raises `UnusableError` for an empty file.

    A registry that is killed while it makes its first database leaves another file, and no empty database.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        part = path.with_name(f".{path.name}.new")
        for left in (part, part.with_name(f"{part.name}-journal")):
            left.unlink(missing_ok=True)
        os.close(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, MODE))
        with closing(connect(part)) as database:
            prepare_schema(database, str(part))
        sync(part)
        part.replace(path)
        sync(path.parent)
        return
    size = os.fstat(descriptor).st_size
    os.close(descriptor)
    if size == 0:
        raise damaged_database(path, "it is empty, 0 bytes")


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino)


# The schema

APPLICATION_ID = 0x67707561
"""Says that a database is a registry's ("gpua")."""

VERSION = 1

# `history` is the node whose history an event belongs to; an event of no history is deleted when it is old.
_TABLES = (
    """CREATE TABLE documents (
        kind TEXT NOT NULL, key TEXT NOT NULL, document TEXT NOT NULL,
        PRIMARY KEY (kind, key))""",
    """CREATE TABLE events (
        id INTEGER PRIMARY KEY, at REAL NOT NULL, event TEXT NOT NULL, node_id TEXT, fields TEXT NOT NULL,
        history TEXT)""",
    "CREATE INDEX events_by_history ON events (history, id)",
)

MIGRATIONS: Mapping[int, Sequence[str]] = {}
"""By the version they start from: the statements that lead to the next one."""


def prepare_schema(database: sqlite3.Connection, path: str) -> None:
    """Make or migrate the tables; raises `UnusableError` for another program's database, or a newer one."""
    if _is_empty(database):
        _run(database, _TABLES, version=VERSION)
        return
    check_schema(database, path)
    for version in range(_pragma(database, "user_version"), VERSION):
        _run(database, MIGRATIONS[version], version=version + 1)


def check_schema(database: sqlite3.Connection, path: str) -> None:
    """Raise `UnusableError` unless this is a registry's database that this release can read."""
    if _pragma(database, "application_id") != APPLICATION_ID:
        raise UnusableError(
            f"{path} is a database, but not a registry's; nothing was changed in it: name another file "
            "with --store sqlite:///PATH"
        )
    version = _pragma(database, "user_version")
    if version > VERSION:
        raise UnusableError(
            f"{path} was written by a newer release (its version is {version}, this release knows up to "
            f"{VERSION}); nothing was changed in it: use the newer release, or put back a backup from before "
            "the upgrade with `gpu-agent registry restore FILE`"
        )


def older_version(database: sqlite3.Connection) -> int | None:
    """Return the version of a registry's database that is to be brought up to date; None for any other."""
    version = _pragma(database, "user_version")
    is_ours = _pragma(database, "application_id") == APPLICATION_ID
    return version if is_ours and version < VERSION else None


def _is_empty(database: sqlite3.Connection) -> bool:
    tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    return tables == 0 and _pragma(database, "application_id") == 0


def _run(database: sqlite3.Connection, statements: Sequence[str], *, version: int) -> None:
    database.execute("BEGIN IMMEDIATE")
    with database:
        for statement in statements:
            database.execute(statement)
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.execute(f"PRAGMA user_version = {version}")


def _pragma(database: sqlite3.Connection, name: str) -> int:
    return int(database.execute(f"PRAGMA {name}").fetchone()[0])


# Errors: what is wrong with a database, as a sentence that ends in the next step

_BACK = "put back a backup with `gpu-agent registry restore FILE`"
_ROOM = "free some space: the registry goes on by itself"
_OWNER = "check the owner and the permissions of the file and of its directory"
_LOCAL = "put it on a disk of this machine: network file systems often cannot lock as a database needs it"

_BY_NAME: tuple[tuple[str, str, str], ...] = (
    ("SQLITE_FULL", "the disk is full", _ROOM),
    ("SQLITE_NOTADB", "it is no database, or is damaged", f"nothing was changed in it: {_BACK}"),
    ("SQLITE_CORRUPT", "it is damaged", f"nothing was changed in it: {_BACK}"),
    ("SQLITE_BUSY", "another process holds its lock", "end whatever else uses the file"),
    ("SQLITE_LOCKED", "another process holds its lock", "end whatever else uses the file"),
    ("SQLITE_READONLY", "it may not be written", _OWNER),
    ("SQLITE_CANTOPEN", "it cannot be opened", _OWNER),
    ("SQLITE_PERM", "it may not be used", _OWNER),
    ("SQLITE_AUTH", "it may not be used", _OWNER),
    ("SQLITE_PROTOCOL", "it cannot be locked", _LOCAL),
    ("SQLITE_NOLFS", "the file system takes no file as large as this", _LOCAL),
    ("SQLITE_IOERR_LOCK", "it cannot be locked", _LOCAL),
    ("SQLITE_IOERR", "the disk failed", "read the system's log and check the disk"),
)
"""By the beginning of SQLite's own name for it, the more precise first."""

_DAMAGED = ("SQLITE_NOTADB", "SQLITE_CORRUPT")

_BY_NUMBER = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.ENOLCK: _LOCAL,
    errno.EOPNOTSUPP: _LOCAL,
    errno.EISDIR: "name a file, not a directory, with --store sqlite:///PATH",
}


Fault = sqlite3.Error | OSError | OverflowError


def database_error(path: Path, error: Fault) -> StoreError:
    """Say what is wrong with the database at `path`."""
    problem, fix = _problem_and_fix(error)
    kind = UnusableError if _is_damage(error) else StoreError
    return kind(f"the registry's database {path} cannot be used: {problem}; {fix}")


def copy_failed(target: Path, error: Fault) -> StoreError:
    """Say why a copy of a database could not be written."""
    problem, fix = _problem_and_fix(error)
    if fix == _ROOM:
        fix = "free some space there, or name another place"
    return StoreError(f"no copy of the registry's database could be written to {target}: {problem}; {fix}")


def damaged_database(path: Path, detail: str) -> UnusableError:
    """Say that a database is damaged."""
    damage = " ".join(detail.split())
    return UnusableError(
        f"the registry's database {path} cannot be used: it is damaged ({damage}); nothing was changed in "
        f"it: {_BACK}, or start without it: move it away, and give each node a join token (with auth "
        "off they come back by themselves)"
    )


def bad_backup(path: Path, error: Fault) -> StoreError:
    """Say why a backup cannot be restored."""
    problem, fix = _problem_and_fix(error)
    if _is_damage(error):
        return damaged_backup(path, problem)
    return StoreError(f"the backup {path} cannot be used: {problem}; {fix}")


def damaged_backup(path: Path, problem: str) -> UnusableError:
    """Say that a file is no backup, or a damaged one."""
    return UnusableError(f"the backup {path} cannot be used: {problem}; name another one")


def _problem_and_fix(error: Fault) -> tuple[str, str]:
    if isinstance(error, OSError):
        return error.strerror or str(error), _BY_NUMBER.get(error.errno or 0, _OWNER)
    name = _name(error)
    for beginning, problem, fix in _BY_NAME:
        if name.startswith(beginning):
            return f"{problem} ({error})", fix
    return f"{type(error).__name__}: {error}", "this is a bug, please report it"


def _is_damage(error: Fault) -> bool:
    return _name(error).startswith(_DAMAGED)


def _name(error: Fault) -> str:
    return str(getattr(error, "sqlite_errorname", ""))
