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
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_state_path

from gpu_agent.runtime.files import foreign_link
from gpu_agent.runtime.tls.certificate import parse_pin

# The registry's state directory: where it is, and that nobody but its owner can get at it.
#
# What it holds (the operators' first token, the database) is as good as the registry itself, so a
# directory that others may enter is refused, not mended: what was in it may be known by now.


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
    return user_state_dir("gpu-registry")


def prepare_state_dir(folder: Path) -> None:
    """Make the directory, mode 0700, if it is not there; raises `StateDirectoryError` when it is not safe."""
    try:
        planted = foreign_link(folder)
        if planted is not None:
            raise StateDirectoryError(
                f"the state directory {folder} cannot be used: {planted}, or name another directory with "
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


# Where a registry's operator API is on its own machine: left in its state directory for commands there.
#
# With TLS its key's pin stands beside it, for no certificate is issued for 127.0.0.1 as a rule. Whoever
# may
# read the file may also read the operator token beside it, and trusts it as much. Judges nothing.


ENDPOINT_FILE = "operator.json"
_LARGEST_BYTES = 4096
_LEFT_ADDRESS_MODE = 0o600


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An operator API's URL, and the pin of its key where it is encrypted."""

    api: str
    pin: str | None = None


def write_endpoint_file(folder: Path, left: Endpoint) -> None:
    """Write it whole or not at all, for the directory's owner alone; raises `OSError`."""
    beside = folder / f".{ENDPOINT_FILE}.{secrets.token_hex(4)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    try:
        with os.fdopen(os.open(beside, flags, _LEFT_ADDRESS_MODE), "w", encoding="utf-8") as file:
            file.write(json.dumps({"api": left.api, "pin": left.pin}) + "\n")
        beside.replace(folder / ENDPOINT_FILE)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def remove_endpoint_file(folder: Path) -> None:
    """Remove it, if it is there and can be."""
    with contextlib.suppress(OSError):
        (folder / ENDPOINT_FILE).unlink()


def read_endpoint_file(folder: Path) -> Endpoint | None:
    """Read it; None where there is none, where we may not read it, and where it is none."""
    try:
        with (folder / ENDPOINT_FILE).open("rb") as file:
            document = json.loads(file.read(_LARGEST_BYTES))
        api, pin = document["api"], document["pin"]
        return Endpoint(str(api), None if pin is None else parse_pin(str(pin)))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


# Places that the platform gives a process, where it gives one.


_NO_HOME = Path("/nonexistent")
"""What Debian writes down as the home of who has none: what is looked for there is not there."""


def user_state_dir(name: str) -> Path:
    """Where this user's programs keep their state, each by its name."""
    try:
        found = user_state_path(name, appauthor=False)
    except RuntimeError:
        found = Path()
    return found if found.is_absolute() else _NO_HOME / ".local" / "state" / name
