"""A registry's database as a file: opened after a look at what it is, recognised, copied. Reads no tables."""

import os
import sqlite3
from contextlib import ExitStack, closing
from pathlib import Path

from gpu_agent.store import sqlite_schema
from gpu_agent.store.base import StoreError
from gpu_agent.store.sqlite_faults import damage, fault, unwritten

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


def opened(path: Path) -> sqlite3.Connection:
    """Open a registry's database, or make one, to be written; raises `StoreError`."""
    try:
        _make(path)
        database = connected(path)
    except (OSError, sqlite3.Error) as error:
        raise fault(path, error) from error
    with ExitStack() as undo:
        undo.callback(database.close)
        try:
            check(database, path)
            _keep_before_upgrade(database, path)
            sqlite_schema.prepare(database, str(path))
            for setting in _SETTINGS:
                database.execute(setting)
            database.execute("BEGIN IMMEDIATE")  # shows that it can be written, and makes the file of the log
            database.execute("COMMIT")
        except sqlite3.Error as error:
            raise fault(path, error) from error
        undo.pop_all()  # all is well: it stays open
    return database


def check(database: sqlite3.Connection, path: Path) -> None:
    """Raise `UnusableError` where what the database holds contradicts itself."""
    found = flaw(database)
    if found is not None:
        raise damage(path, found)


def flaw(database: sqlite3.Connection) -> str | None:
    """Say how what a database holds contradicts itself; None where it does not."""
    (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
    return None if found == "ok" else str(found)


def identity(path: Path) -> Identity:
    """Tell an open database, and the log beside it, from others that lie in the same place."""
    return tuple(_inode(each) for each in (path, path.with_name(f"{path.name}-wal")))


def copy(path: Path, target: Path, *, overwrite: bool = False) -> None:
    """Write all that a database holds at this moment to another file; raises `StoreError`.

    The target is whole or not there, and nobody but its owner may read it.
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
        raise unwritten(target, error) from error


def connected(path: Path, *, mode: str = "rw") -> sqlite3.Connection:
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
    with closing(connected(path, mode="ro")) as source, closing(connected(part)) as copied:
        source.backup(copied)
        copied.execute("PRAGMA journal_mode = DELETE")  # one file, that lies by itself


def _keep_before_upgrade(database: sqlite3.Connection, path: Path) -> None:
    """Copy a database of an older version before it is changed, for who wants to go back."""
    older = sqlite_schema.older_version(database)
    if older is not None:
        kept = path.with_name(f"{path.name}.v{older}")
        if not kept.exists():
            copy(path, kept)


def _make(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, MODE)
    except FileExistsError:
        descriptor = os.open(path, os.O_RDWR)
    else:
        sync(path.parent)
    os.close(descriptor)


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino)
