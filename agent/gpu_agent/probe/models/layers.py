"""Which file systems are made of layers, as the kernel lists its mounts.

Where the layers of an overlay lie on different file systems, as in a container whose image is fetched
piece by piece, a file there bears the number of its layer's, not that of the overlay. It looks at no
file but that list; where there is none, nothing is layered.
"""

import os
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
_KIND = "overlay"


def is_layered(device: int, mounts: Path = MOUNTS) -> bool:
    """Tell whether the file system of this number is an overlay."""
    try:
        listed = mounts.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    number = f"{os.major(device)}:{os.minor(device)}"
    return any(_is_overlay(line, number) for line in listed.splitlines())


def _is_overlay(line: str, number: str) -> bool:
    """Read `id parent major:minor root place options … - kind source options`."""
    place, _, file_system = line.partition(" - ")
    return place.split(" ")[2:3] == [number] and file_system.split(" ")[0] == _KIND
