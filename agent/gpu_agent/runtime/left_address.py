"""Where a registry's operator API is on its own machine: left in its state directory for commands there.

With TLS its key's pin stands beside it, for no certificate is issued for 127.0.0.1 as a rule. Whoever may
read the file may also read the operator token beside it, and trusts it as much. Judges nothing.
"""

import contextlib
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from gpu_agent.runtime.pins import parse

FILE = "operator.json"
_LARGEST_BYTES = 4096
_MODE = 0o600


@dataclass(frozen=True, slots=True)
class LeftAddress:
    """An operator API's URL, and the pin of its key where it is encrypted."""

    api: str
    pin: str | None = None


def leave(folder: Path, left: LeftAddress) -> None:
    """Write it whole or not at all, for the directory's owner alone; raises `OSError`."""
    beside = folder / f".{FILE}.{secrets.token_hex(4)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    try:
        with os.fdopen(os.open(beside, flags, _MODE), "w", encoding="utf-8") as file:
            file.write(json.dumps({"api": left.api, "pin": left.pin}) + "\n")
        beside.replace(folder / FILE)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def take_back(folder: Path) -> None:
    """Remove it, if it is there and can be."""
    with contextlib.suppress(OSError):
        (folder / FILE).unlink()


def found_in(folder: Path) -> LeftAddress | None:
    """Read it; None where there is none, where we may not read it, and where it is none."""
    try:
        with (folder / FILE).open("rb") as file:
            document = json.loads(file.read(_LARGEST_BYTES))
        api, pin = document["api"], document["pin"]
        return LeftAddress(str(api), None if pin is None else parse(str(pin)))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
