"""Restores a backup of a registry's database; the database before stays beside it under another name.

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
from gpu_agent.store.base import StoreError
from gpu_agent.store.sqlite import (
    bad_backup,
    check_schema,
    connect,
    copy_database,
    damaged_backup,
    database_error,
    find_damage,
    sync,
)

_COUNT = "SELECT count(*) FROM documents WHERE kind = ?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a database holds."""

    nodes: int
    claims: int
    tokens: int
    events: int


def inspect_backup(path: Path) -> Contents:
    """Read a backup from end to end; raises `StoreError`, `UnusableError`."""
    try:
        with closing(connect(path, mode="ro")) as database:
            found = find_damage(database)
            if found is not None:
                raise damaged_backup(path, f"it is damaged ({' '.join(found.split())})")
            check_schema(database, str(path))
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
    """Put a copy of a backup at `path`; returns where the database before is now. Raises `StoreError`."""
    fresh = path.with_name(f".{path.name}.restoring")
    with suppress(FileNotFoundError):
        fresh.unlink()
    copy_database(backup, fresh)
    try:
        _give_to_owner(fresh, path)
        before = _set_aside(path) if path.exists() else None
        fresh.replace(path)
        sync(path.parent)
    except OSError as error:
        raise database_error(path, error) from error
    finally:
        fresh.unlink(missing_ok=True)
    return before


def _set_aside(path: Path) -> Path:
    """Give the present database another name as well; its log is written into it first."""
    with suppress(StoreError, sqlite3.Error):
        inspect_backup(path)  # a damaged one must not be opened for writing: that deletes its log
        with closing(connect(path)) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = _free_name(path)
    for ending in ("-wal", "-shm"):  # of a damaged one: its log must not be applied to the backup
        with suppress(FileNotFoundError):
            path.with_name(path.name + ending).rename(before.with_name(before.name + ending))
    try:
        os.link(path, before)
    except OSError:  # a file system without links: for an instant there is no database in its place
        path.rename(before)
    return before


def _free_name(path: Path) -> Path:
    stem = f"{path.name}.replaced-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    names = (path.with_name(stem if number == 0 else f"{stem}-{number}") for number in range(1000))
    return next(name for name in names if not name.exists())


def _give_to_owner(fresh: Path, path: Path) -> None:
    """Give a file that root wrote to the user who runs the registry; never follow a link."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return
    owner = (path if path.exists() else path.parent).stat()
    os.chown(fresh, owner.st_uid, owner.st_gid, follow_symlinks=False)
    lock = path.with_name(f"{path.name}.lock")
    with suppress(FileNotFoundError):
        os.chown(lock, owner.st_uid, owner.st_gid, follow_symlinks=False)
