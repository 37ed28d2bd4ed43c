"""Whether any installed package brings entry points of a group, by a look at the packages' own files.

The standard library's search loads half of it first; a command that must be quick looks here, and
searches only where something may be found. It refuses to say no where it cannot see all packages.
"""

import os
import sys
from collections.abc import Iterable, Iterator

_METADATA = (".dist-info", ".egg-info")
_LISTING = "entry_points.txt"


def may_bring(group: str, *, beside: str, places: Iterable[str] | None = None) -> bool:
    """Say whether a package other than `beside` may bring entry points of a group; `places`: of imports."""
    for place in dict.fromkeys(sys.path if places is None else places):
        if os.path.isfile(place):  # noqa: PTH113 - pathlib weighs
            return True  # a zip, whose packages are not seen from here
        if any(group in listing for listing in _listings(place or ".", beside)):
            return True
    return False


def _listings(place: str, beside: str) -> Iterator[str]:
    try:
        names = os.listdir(place)  # noqa: PTH208 - names are enough
    except OSError:
        return
    for name in names:
        if name.endswith(_METADATA) and not name.startswith(f"{beside}-"):
            yield _text(os.path.join(place, name, _LISTING))  # noqa: PTH118 - pathlib weighs


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - pathlib weighs
            return file.read()
    except OSError:
        return ""
