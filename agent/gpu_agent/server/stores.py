"""Which keeper `--store` names, opened for this registry alone.

`memory`, `sqlite` (the file `registry.db` in the state directory), or `sqlite:///PATH` with a whole path.
"""

import urllib.parse
from pathlib import Path

from gpu_agent.runtime import state_dir
from gpu_agent.runtime.links import strangers_link
from gpu_agent.runtime.locking import AlreadyLockedError, Lock
from gpu_agent.server import own_place
from gpu_agent.store.base import Store, StoreError
from gpu_agent.store.memory import MemoryStore
from gpu_agent.store.sqlite import SqliteStore
from gpu_agent.store.sqlite_faults import fault

MEMORY, SQLITE = "memory", "sqlite"
FILE = "registry.db"

_FORMS = f"write {SQLITE} (a file in the state directory), {SQLITE}:///PATH with a whole path, or {MEMORY}"
_PREFIX = f"{SQLITE}://"


def checked(place: str) -> str:
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
        return None if path is None else strangers_link(path)
    except OSError as error:
        raise fault(folder, error) from error


def open_store(place: str, folder: Path) -> Store:
    """Open the keeper at a place, with `folder` as the state directory.

    Raises `StoreError`, or `StateDirectoryError` where the state directory is needed and not safe.
    """
    path = database_path(place, folder)
    if path is None:
        return MemoryStore()
    if place == SQLITE:
        state_dir.prepare(folder)
    lock = lock_of(path)
    try:
        own_place.claim(path)
        return SqliteStore(path, released=lock.release)
    except OSError as error:
        lock.release()
        raise fault(path, error) from error
    except StoreError:
        lock.release()
        raise


def refuse_anothers(folder: Path, place: str) -> None:
    """Raise `StateDirectoryError` where the directory is another registry's: its operator token lies there.

    A registry that does not know that token, because its own state is elsewhere, would write its own over it.
    """
    theirs, ours = folder / FILE, database_path(place, folder)
    if theirs.exists() and (ours is None or not ours.exists() or not ours.samefile(theirs)):
        raise state_dir.StateDirectoryError(
            f"the state directory {folder} is that of the registry whose database is {theirs}, and its "
            "operator token would be lost: name another directory with --state-dir"
        )


def lock_of(path: Path) -> Lock:
    """Keep every other registry from a database; raises `StoreError` that names the one which has it."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Lock(path.with_name(f"{path.name}.lock"))
    except AlreadyLockedError as taken:
        raise StoreError(
            f"the registry's database {path} is in use by process {taken.holder or 'of another registry'}: "
            "only one registry may use it; stop that one, or name another file with --store sqlite:///PATH"
        ) from None
    except OSError as error:
        raise fault(path, error) from error


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
