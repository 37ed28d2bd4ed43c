"""Small files of sysfs: each holds one value, and any of them may be missing, empty or refused.

What cannot be read is `None`; `why_not` says why, for those who must give a reason. It never reads
without a bound, and never writes.
"""

import os
from pathlib import Path

_LONGEST_BYTES = 65_536


def text(path: Path, *, longest_bytes: int = _LONGEST_BYTES) -> str | None:
    """What the file says, without the space around it; None where that is nothing."""
    try:
        with path.open("rb") as file:
            return file.read(longest_bytes).decode("utf-8", "replace").strip() or None
    except (OSError, ValueError):
        return None


def number(path: Path, *, base: int = 10) -> int | None:
    """The whole number that the file holds."""
    digits = text(path, longest_bytes=64)
    if digits is None:
        return None
    try:
        return int(digits, base)
    except ValueError:
        return None


def linked_name(path: Path) -> str | None:
    """The last step of where a link leads: a device's driver, by its name."""
    try:
        return Path(path.readlink()).name or None
    except (OSError, ValueError):
        return None


def why_not(path: Path) -> str:
    """Say why a file gave nothing, for a person."""
    try:
        with path.open("rb") as file:
            said = file.read(40)
    except OSError as error:
        return f"{path.name}: {os.strerror(error.errno) if error.errno else error}"
    return (
        f"{path.name} says {said.decode('utf-8', 'replace').strip()!r}" if said else f"{path.name} is empty"
    )
