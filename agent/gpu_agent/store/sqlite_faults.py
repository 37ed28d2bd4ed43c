"""What is wrong with a database, as a sentence that ends in what to do next. Opens and mends nothing."""

import errno
import sqlite3
from pathlib import Path

from gpu_agent.store.base import StoreError, UnusableError

_BACK = "put back a backup with `gpu-agent registry restore FILE`"
_ROOM = "free some space: the registry goes on by itself"
_OWNER = "check the owner and the permissions of the file and of its directory"
_LOCAL = "put it on a disk of this machine: network file systems often cannot lock as a database needs it"

_BY_NAME: tuple[tuple[str, str, str], ...] = (
    ("SQLITE_FULL", "the disk is full", _ROOM),
    ("SQLITE_NOTADB", "it is no database, or is damaged", f"nothing was changed in it: {_BACK}"),
    ("SQLITE_CORRUPT", "it is damaged", f"nothing was changed in it: {_BACK}"),
    ("SQLITE_BUSY", "another process keeps it locked", "end whatever else uses the file"),
    ("SQLITE_LOCKED", "another process keeps it locked", "end whatever else uses the file"),
    ("SQLITE_READONLY", "it may not be written", _OWNER),
    ("SQLITE_CANTOPEN", "it cannot be opened", _OWNER),
    ("SQLITE_PERM", "it may not be used", _OWNER),
    ("SQLITE_AUTH", "it may not be used", _OWNER),
    ("SQLITE_PROTOCOL", "it cannot be locked", _LOCAL),
    ("SQLITE_NOLFS", "the file system takes no file as large as this", _LOCAL),
    ("SQLITE_IOERR_LOCK", "it cannot be locked", _LOCAL),
    ("SQLITE_IOERR", "the disk failed", "look into the system's log and at the disk"),
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


def fault(path: Path, error: Fault) -> StoreError:
    """Say what is wrong with the database at `path`."""
    problem, mend = _told(error)
    kind = UnusableError if _is_damage(error) else StoreError
    return kind(f"the registry's database {path} cannot be used: {problem}; {mend}")


def unwritten(target: Path, error: Fault) -> StoreError:
    """Say why a copy of a database could not be written."""
    problem, mend = _told(error)
    if mend == _ROOM:
        mend = "free some space there, or name another place"
    return StoreError(f"no copy of the registry's database could be written to {target}: {problem}; {mend}")


def damage(path: Path, detail: str) -> UnusableError:
    """Say that what the database holds contradicts itself."""
    told = " ".join(detail.split())
    return UnusableError(
        f"the registry's database {path} cannot be used: it is damaged ({told}); nothing was changed in "
        f"it: {_BACK}, or begin anew without it: move it away, and give each node a join token (with auth "
        "off they come back by themselves)"
    )


def bad_backup(path: Path, error: Fault) -> StoreError:
    """Say why a backup cannot be put back."""
    problem, mend = _told(error)
    if _is_damage(error):
        return damaged_backup(path, problem)
    return StoreError(f"the backup {path} cannot be used: {problem}; {mend}")


def damaged_backup(path: Path, problem: str) -> UnusableError:
    """Say that a backup is none, or holds what contradicts itself."""
    return UnusableError(f"the backup {path} cannot be used: {problem}; name another one")


def _told(error: Fault) -> tuple[str, str]:
    if isinstance(error, OSError):
        return error.strerror or str(error), _BY_NUMBER.get(error.errno or 0, _OWNER)
    name = _name(error)
    for beginning, problem, mend in _BY_NAME:
        if name.startswith(beginning):
            return f"{problem} ({error})", mend
    return f"{type(error).__name__}: {error}", "this is a bug, please report it"


def _is_damage(error: Fault) -> bool:
    return _name(error).startswith(_DAMAGED)


def _name(error: Fault) -> str:
    return str(getattr(error, "sqlite_errorname", ""))
