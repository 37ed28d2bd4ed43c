"""Restores a backup of a registry's database; the database that it replaces stays beside it under another name.

Both files are checked first. At every moment a whole database lies in place: the one before, or the backup.
The caller holds the lock, so that no registry uses either file.
"""

import os
import sqlite3
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from gpu_agent.registry.actions import DocumentKind
from gpu_agent.store import sqlite as sqlite_file
from gpu_agent.store import sqlite as sqlite_schema
from gpu_agent.store.base import StoreError
from gpu_agent.store.sqlite import bad_backup, damaged_backup, database_error

_COUNT = "SELECT count(*) FROM documents WHERE kind = ?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a database holds."""

    nodes: int
    claims: int
    tokens: int
    events: int


def inspect_backup(path: Path) -> Contents:
    """Look at a backup from end to end; raises `StoreError`, `UnusableError`."""
    try:
        with closing(sqlite_file.connect(path, mode="ro")) as database:
            found = sqlite_file.find_damage(database)
            if found is not None:
                raise damaged_backup(path, f"it is damaged ({' '.join(found.split())})")
            sqlite_schema.check_schema(database, str(path))
            nodes, claims, tokens = (
                int(database.execute(_COUNT, (kind.value,)).fetchone()[0])
                for kind in (DocumentKind.NODE, DocumentKind.CLAIM, DocumentKind.TOKEN)
            )
            events = int(database.execute("SELECT count(*) FROM events").fetchone()[0])
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorname", "") == "SQLITE_ERROR":  # no such table: it is not whole
            raise damaged_backup(path, f"it is damaged ({error})") from error
        raise bad_backup(path, error) from error
    except sqlite3.Error as error:
        raise bad_backup(path, error) from error
    return Contents(nodes=nodes, claims=claims, tokens=tokens, events=events)


def replace_database(backup: Path, path: Path) -> Path | None:
    """Put a copy of a backup at `path`, and say where what was there is kept; raises `StoreError`."""
    fresh = path.with_name(f".{path.name}.restoring")
    with suppress(FileNotFoundError):
        fresh.unlink()
    sqlite_file.copy_database(backup, fresh)
    try:
        _give_to_owner(fresh, path)
        before = _set_aside(path) if path.exists() else None
        fresh.replace(path)
        sqlite_file.sync(path.parent)
    except OSError as error:
        raise database_error(path, error) from error
    finally:
        fresh.unlink(missing_ok=True)
    return before


def _set_aside(path: Path) -> Path:
    """Keep what is there under another name as well; what stands in its log is written into it first."""
    with suppress(StoreError, sqlite3.Error):
        inspect_backup(path)  # one that is damaged must not be opened to be written: that tidies its log away
        with closing(sqlite_file.connect(path)) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = _free_name(path)
    for ending in ("-wal", "-shm"):  # of a damaged one: what is in its log must not meet the backup
        with suppress(FileNotFoundError):
            path.with_name(path.name + ending).rename(before.with_name(before.name + ending))
    try:
        os.link(path, before)
    except OSError:  # a file system without links: for an instant there is no database in its place
        path.rename(before)
    return before


def _free_name(path: Path) -> Path:
    stem = f"{path.name}.replaced-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    names = (path.with_name(stem if turn == 0 else f"{stem}-{turn}") for turn in range(1000))
    return next(name for name in names if not name.exists())


def _give_to_owner(fresh: Path, path: Path) -> None:
    """Leave a file that root puts there to the user who runs the registry; what a link names is not given."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return
    owner = (path if path.exists() else path.parent).stat()
    os.chown(fresh, owner.st_uid, owner.st_gid, follow_symlinks=False)
    lock = path.with_name(f"{path.name}.lock")
    with suppress(FileNotFoundError):
        os.chown(lock, owner.st_uid, owner.st_gid, follow_symlinks=False)
