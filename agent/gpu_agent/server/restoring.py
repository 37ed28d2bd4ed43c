"""A backup put in the place of a registry's database, while no registry uses it.

Says what is put there and where the database before it is kept. Starts and stops nothing.
"""

from dataclasses import dataclass
from pathlib import Path

from gpu_agent.server.stores import database_path, lock_of, planted_link
from gpu_agent.store.base import StoreError
from gpu_agent.store.sqlite_restore import Contents, contents, put_in_place


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What was done."""

    path: Path
    """Where the registry finds it now."""
    holds: Contents
    before: Path | None
    """Where the database that lay there is kept; None where there was none."""


class AlreadyThereError(StoreError):
    """A database lies there already, and nobody said that it may go."""


def restore(backup: Path, place: str, folder: Path, *, replace: bool) -> Restored:
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
    lock = lock_of(path)
    try:
        if not backup.is_file():
            raise StoreError(f"there is no file {backup}")
        if path.exists() and backup.samefile(path):
            raise StoreError(f"{backup} is the registry's database itself: name a backup of it")
        holds = contents(backup)
        if path.exists() and not replace:
            raise AlreadyThereError(f"a database lies at {path} already, and was left as it is")
        return Restored(path=path, holds=holds, before=put_in_place(backup, path))
    finally:
        lock.release()
