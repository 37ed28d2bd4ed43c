"""State directories: where the platform puts them, who may enter, and the registry's endpoint file.

The registry's directory holds the operators' first token and the database, so one that others may enter is
refused and not repaired: its content may be known by now. The endpoint file holds the URL of the operator
API, and with TLS the pin of its key, for commands on this machine.
"""

import contextlib
import errno
import json
import os
import secrets
import stat
from pathlib import Path

from gpu_agent.records import dataclass
from gpu_agent.runtime.files import foreign_link
from gpu_agent.runtime.tls.certificate import parse_pin

UNIT_FOLDER = Path("/var/lib/gpu-registry")
"""The directory of the systemd unit."""
OPERATOR_TOKEN_FILE = "operator.token"  # noqa: S105 - a file's name
"""The admin token that the registry makes at its first start."""
ENDPOINT_FILE = "operator.json"
_MODE = 0o700
_OTHERS = 0o077
_FILE_MODE = 0o600
_MAX_BYTES = 4096
_NO_HOME = Path("/nonexistent")
"""Debian's home for a user without one: nothing exists there."""


class StateDirectoryError(Exception):
    """The state directory cannot be used: the machine's fault, a sentence with the next step."""


def default_state_dir() -> Path:
    """Return the registry's state directory for this user."""
    return user_state_dir("gpu-registry")


def user_state_dir(name: str) -> Path:
    """Return the directory where a program of this user stores its state."""
    from platformdirs import user_state_path  # noqa: PLC0415 - services have a folder of their own

    try:
        found = user_state_path(name, appauthor=False)
    except RuntimeError:
        found = Path()
    return found if found.is_absolute() else _NO_HOME / ".local" / "state" / name


def prepare_state_dir(folder: Path) -> None:
    """Make the directory, mode 0700, if it is missing; raises `StateDirectoryError` when it is not safe."""
    try:
        link = foreign_link(folder)
        if link is not None:
            raise StateDirectoryError(
                f"the state directory {folder} cannot be used: {link}, or name another directory with "
                "--state-dir"
            )
        folder.mkdir(mode=_MODE, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        fix = "make room on that disk" if error.errno == errno.ENOSPC else "check its owner and permissions"
        raise StateDirectoryError(
            f"the state directory {folder} cannot be used ({error.strerror or error}); {fix}, "
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


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An operator API's URL, and the pin of its key where it is encrypted."""

    api: str
    pin: str | None = None


def write_endpoint_file(folder: Path, endpoint: Endpoint) -> None:
    """Write it whole or not at all, for the directory's owner alone; raises `OSError`."""
    beside = folder / f".{ENDPOINT_FILE}.{secrets.token_hex(4)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    try:
        with os.fdopen(os.open(beside, flags, _FILE_MODE), "w", encoding="utf-8") as file:
            file.write(json.dumps({"api": endpoint.api, "pin": endpoint.pin}) + "\n")
        beside.replace(folder / ENDPOINT_FILE)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def remove_endpoint_file(folder: Path) -> None:
    """Remove it, if it exists and can be removed."""
    with contextlib.suppress(OSError):
        (folder / ENDPOINT_FILE).unlink()


def read_endpoint_file(folder: Path) -> Endpoint | None:
    """Read it; None where it is missing, unreadable or invalid."""
    try:
        with (folder / ENDPOINT_FILE).open("rb") as file:
            document = json.loads(file.read(_MAX_BYTES))
        api, pin = document["api"], document["pin"]
        return Endpoint(str(api), None if pin is None else parse_pin(str(pin)))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
