"""Opens the registry's database by its `--store` URL, alone and safely, and restores a backup of it.

`memory`, `sqlite` (the file `registry.db` in the state directory), or `sqlite:///PATH` with an absolute
path. Who can write a registry's database can make himself an admin, so a file or directory that other users
can write is refused.
"""

import os
import stat
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from gpu_agent.runtime import state_dir
from gpu_agent.runtime.files import AlreadyLockedError, FileLock, foreign_link
from gpu_agent.store.backup import Contents, inspect_backup, replace_database
from gpu_agent.store.base import Store, StoreError, UnusableError
from gpu_agent.store.memory import MemoryStore
from gpu_agent.store.sqlite import SqliteStore, database_error

# Which keeper `--store` names, opened for this registry alone.
#
# `memory`, `sqlite` (the file `registry.db` in the state directory), or `sqlite:///PATH` with a whole
# path.


MEMORY, SQLITE = "memory", "sqlite"
FILE = "registry.db"

_FORMS = f"write {SQLITE} (a file in the state directory), {SQLITE}:///PATH with a whole path, or {MEMORY}"
_PREFIX = f"{SQLITE}://"


def check_location(place: str) -> str:
    """Return the place if a keeper can be there; raises `ValueError` with what may be written instead."""
    if place not in (MEMORY, SQLITE):
        _path(place)
    return place


def database_path(place: str, folder: Path) -> Path | None:
    """Return where the database lies; None for what is kept in memory only."""
    path = _named(place, folder)
    if path is None:
        return None
    return path.resolve() if path.is_symlink() else path  # what belongs to it lies beside the file itself


def planted_link(place: str, folder: Path) -> str | None:
    """Say which link on the way to the database neither root nor we have made; raises `StoreError`."""
    path = _named(place, folder)
    try:
        return None if path is None else foreign_link(path)
    except OSError as error:
        raise database_error(folder, error) from error


def open_store(place: str, folder: Path) -> Store:
    """Open the keeper at a place, with `folder` as the state directory.

    Raises `StoreError`, or `StateDirectoryError` where the state directory is needed and not safe.
    """
    path = database_path(place, folder)
    if path is None:
        return MemoryStore()
    if place == SQLITE:
        state_dir.prepare_state_dir(folder)
    lock = lock_database(path)
    try:
        secure_location(path)
        return SqliteStore(path, released=lock.release)
    except OSError as error:
        lock.release()
        raise database_error(path, error) from error
    except StoreError:
        lock.release()
        raise


def refuse_foreign_state_dir(folder: Path, place: str) -> None:
    """Raise `StateDirectoryError` where the directory is another registry's: its operator token lies there.

    A registry that does not know that token, because its own state is elsewhere, would write its own over it.
    """
    theirs, ours = folder / FILE, database_path(place, folder)
    if theirs.exists() and (ours is None or not ours.exists() or not ours.samefile(theirs)):
        raise state_dir.StateDirectoryError(
            f"the state directory {folder} is that of the registry whose database is {theirs}, and its "
            "operator token would be lost: name another directory with --state-dir"
        )


def lock_database(path: Path) -> FileLock:
    """Keep every other registry from a database; raises `StoreError` that names the one which has it."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return FileLock(path.with_name(f"{path.name}.lock"))
    except AlreadyLockedError as taken:
        raise StoreError(
            f"the registry's database {path} is in use by process {taken.holder or 'of another registry'}: "
            "only one registry may use it; stop that one, or name another file with --store sqlite:///PATH"
        ) from None
    except OSError as error:
        raise database_error(path, error) from error


def _named(place: str, folder: Path) -> Path | None:
    if place == MEMORY:
        return None
    return (folder / FILE if place == SQLITE else _path(place)).absolute()


def _path(place: str) -> Path:
    if not place.startswith(_PREFIX):
        raise ValueError(f"no such store; {_FORMS}")
    host, slash, rest = place.removeprefix(_PREFIX).partition("/")
    if host or not rest:
        raise ValueError(f"it names no whole path; {_FORMS}")
    if "?" in rest or "#" in rest:
        raise ValueError(f"it has options, and there are none; {_FORMS}")
    text = urllib.parse.unquote(rest)
    path = Path(text) if Path(text).is_absolute() else Path(slash + text)
    if "\0" in text or path.name in ("", "..") or text.endswith("/"):
        raise ValueError(f"it names no file; {_FORMS}")
    return path


# Whether a database that was named by hand lies where nobody but its owner can put, change or read one.
#
# Whoever writes a registry's database makes himself an admin: the tokens stand there as digests. A file
# that others can write is refused, not mended, for what was in it may be theirs by now; so is a directory
# that others can write, where SQLite would take up a log of theirs. One that they can only read is closed.


_MODE = 0o600
_MAY_WRITE, _MAY_READ = 0o022, 0o044


def secure_location(path: Path) -> None:
    """See to it that the database at `path`, there or not yet, is its owner's alone; raises `UnusableError`.

    The directory must be there. Raises `OSError` from the disk.
    """
    if not hasattr(os, "geteuid"):
        return  # Windows keeps users apart by what a folder grants
    for folder in dict.fromkeys((path.parent, path.resolve().parent)):
        _check(path, folder, owners=(os.geteuid(), 0), fix=f"chmod go-w {folder}")
    if path.exists():
        mode = _check(path, path, owners=(os.geteuid(),), fix=f"chmod 600 {path}")
        if mode & _MAY_READ:
            path.chmod(_MODE)  # restored from a backup, say


def _check(path: Path, place: Path, *, owners: tuple[int, ...], fix: str) -> int:
    """Return the mode of a place that is safe for the database at `path`."""
    found = place.stat()
    if found.st_uid not in owners:
        problem, fix = f"belongs to user {found.st_uid}", "run the registry as that user"
    elif found.st_mode & _MAY_WRITE:
        problem = f"can be written by other users (mode {stat.S_IMODE(found.st_mode):04o})"
        fix = f"if you are sure that nobody did, run `{fix}`"
    else:
        return found.st_mode
    raise UnusableError(
        f"the registry's database {path} is refused, for {place} {problem}, and whoever writes there can "
        f"make himself an admin: {fix}, or name a directory that is not there yet, such as "
        f"--store sqlite://{path.parent / 'registry' / path.name}"
    )


# A backup put in the place of a registry's database, while no registry uses it.
#
# Says what is put there and where the database before it is kept. Starts and stops nothing.


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreResult:
    """What was done."""

    path: Path
    """Where the registry finds it now."""
    holds: Contents
    before: Path | None
    """Where the database that lay there is kept; None where there was none."""


class DatabaseExistsError(StoreError):
    """A database lies there already, and nobody said that it may go."""


def restore(backup: Path, place: str, folder: Path, *, replace: bool) -> RestoreResult:
    """Put a copy of `backup` where a registry of this `--store` looks; raises `StoreError`.

    With `replace` a database that is there already is kept beside it; else it stays where it is. A link that
    another user has made is not followed.
    """
    path = database_path(place, folder)
    if path is None:
        raise StoreError(
            "a registry with `--store memory` keeps nothing on disk: name the place of a database with "
            "--store sqlite:///PATH"
        )
    planted = planted_link(place, folder)
    if planted is not None:  # as root, whoever made it would choose which file of the machine's is replaced
        raise StoreError(f"nothing was restored: {planted}, or run this as that user")
    lock = lock_database(path)
    try:
        if not backup.is_file():
            raise StoreError(f"there is no file {backup}")
        if path.exists() and backup.samefile(path):
            raise StoreError(f"{backup} is the registry's database itself: name a backup of it")
        holds = inspect_backup(backup)
        if path.exists() and not replace:
            raise DatabaseExistsError(f"a database lies at {path} already, and was left as it is")
        return RestoreResult(path=path, holds=holds, before=replace_database(backup, path))
    finally:
        lock.release()
