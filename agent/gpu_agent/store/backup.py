"""Restores a backup of a registry's database; the database before stays beside it under another name.

Both files are checked first. At every moment a whole database lies in place: the one before, or the backup.
The caller holds the lock, so that no registry uses either file.
"""

import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from gpu_agent.registry.actions import DocumentKind
from gpu_agent.store.base import Batch, Loaded, StoreError
from gpu_agent.store.sqlite import (
    SqliteStore,
    bad_backup,
    check_schema,
    connect,
    copy_database,
    damaged_backup,
    database_error,
    find_damage,
    sync,
)
from gpu_agent.wire.api import RegistryEvent

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


def write_backup(loaded: Loaded, target: Path, *, overwrite: bool) -> None:
    """Write what another store has loaded to a database; raises `StoreError`.

    It is complete or not there, and only its owner may read it.
    """
    recent = [one for one in loaded.recent if not _in_history(one, loaded)]
    histories = sorted(
        (one for history in loaded.histories.values() for one in history), key=lambda one: one.id or 0
    )
    with _scratch_folder(target) as folder:
        with closing(SqliteStore(folder / target.name)) as store:
            # Events that are stored before any document join no history.
            store.save([Batch((), recent), Batch(loaded.changes, histories)])
        copy_database(folder / target.name, target, overwrite=overwrite)


def read_backup(path: Path) -> Loaded:
    """Read all that a backup holds, of this release's version or an older one; raises `StoreError`."""
    with _scratch_folder(path) as folder:
        copy_database(path, folder / path.name)
        with closing(SqliteStore(folder / path.name)) as store:
            return store.load()


def _in_history(event: RegistryEvent, loaded: Loaded) -> bool:
    history = loaded.histories.get(event.node_id or "", ())
    return bool(history) and (event.id or 0) >= (history[0].id or 0)


@contextmanager
def _scratch_folder(beside: Path) -> Iterator[Path]:
    """Make a directory for this user alone, on the same disk where that can be written."""
    try:
        with tempfile.TemporaryDirectory(prefix=f".{beside.name[:100]}.", dir=beside.parent) as folder:
            yield Path(folder)
    except OSError as error:
        raise database_error(beside, error) from error


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
