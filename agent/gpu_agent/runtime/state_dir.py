"""The registry's state directory: where it is, and that nobody but its owner can get at it.

What it holds (the operators' first token, the database) is as good as the registry itself, so a
directory that others may enter is refused, not mended: what was in it may be known by now.
"""

import errno
import os
import stat
from pathlib import Path

from gpu_agent.runtime.links import strangers_link
from gpu_agent.runtime.places import state_place

UNIT_FOLDER = Path("/var/lib/gpu-registry")
"""Where the systemd unit keeps it."""
OPERATOR_TOKEN_FILE = "operator.token"  # noqa: S105 - a file's name
"""Holds the admin token that the registry makes at its first start."""

_MODE = 0o700
_OTHERS = 0o077


class StateDirectoryError(Exception):
    """The state directory cannot be used: the machine's fault, a sentence with the next step."""


def default_state_dir() -> Path:
    """Return the platform's place for this user's program state."""
    return state_place("gpu-registry")


def prepare(folder: Path) -> None:
    """Make the directory, mode 0700, if it is not there; raises `StateDirectoryError` when it is not safe."""
    try:
        planted = strangers_link(folder)
        if planted is not None:
            raise StateDirectoryError(
                f"the state directory {folder} cannot be used: {planted}, or name another directory with "
                "--state-dir"
            )
        folder.mkdir(mode=_MODE, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        mend = "make room on that disk" if error.errno == errno.ENOSPC else "check its owner and permissions"
        raise StateDirectoryError(
            f"the state directory {folder} cannot be used ({error.strerror or error}); {mend}, "
            "or name another one with --state-dir"
        ) from error
    if not hasattr(os, "geteuid"):
        return  # Windows keeps a user's folders apart by itself
    if found.st_uid != os.geteuid():
        raise StateDirectoryError(
            f"the state directory {folder} belongs to user {found.st_uid}, and this is user {os.geteuid()}: "
            "run the registry as that user, or name another directory with --state-dir"
        )
    if found.st_mode & _OTHERS:
        raise StateDirectoryError(
            f"the state directory {folder} is open to other users (mode {stat.S_IMODE(found.st_mode):04o}): "
            f"run `chmod 700 {folder}`, or name one that is not there yet with --state-dir, such as "
            f"{folder / 'registry'}"
        )
