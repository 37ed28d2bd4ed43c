"""Whether a database that was named by hand lies where nobody but its owner can put, change or read one.

Whoever writes a registry's database makes himself an admin: the tokens stand there as digests. A file
that others can write is refused, not mended, for what was in it may be theirs by now; so is a directory
that others can write, where SQLite would take up a log of theirs. One that they can only read is closed.
"""

import os
import stat
from pathlib import Path

from gpu_agent.store.base import UnusableError

_MODE = 0o600
_MAY_WRITE, _MAY_READ = 0o022, 0o044


def claim(path: Path) -> None:
    """See to it that the database at `path`, there or not yet, is its owner's alone; raises `UnusableError`.

    The directory must be there. Raises `OSError` from the disk.
    """
    if not hasattr(os, "geteuid"):
        return  # Windows keeps users apart by what a folder grants
    for folder in dict.fromkeys((path.parent, path.resolve().parent)):
        _check(path, folder, owners=(os.geteuid(), 0), mend=f"chmod go-w {folder}")
    if path.exists():
        mode = _check(path, path, owners=(os.geteuid(),), mend=f"chmod 600 {path}")
        if mode & _MAY_READ:
            path.chmod(_MODE)  # restored from a backup, say


def _check(path: Path, place: Path, *, owners: tuple[int, ...], mend: str) -> int:
    """Return the mode of a place that is safe for the database at `path`."""
    found = place.stat()
    if found.st_uid not in owners:
        problem, mend = f"belongs to user {found.st_uid}", "run the registry as that user"
    elif found.st_mode & _MAY_WRITE:
        problem = f"can be written by other users (mode {stat.S_IMODE(found.st_mode):04o})"
        mend = f"if you are sure that nobody did, run `{mend}`"
    else:
        return found.st_mode
    raise UnusableError(
        f"the registry's database {path} is refused, for {place} {problem}, and whoever writes there can "
        f"make himself an admin: {mend}, or name a directory that is not there yet, such as "
        f"--store sqlite://{path.parent / 'registry' / path.name}"
    )
