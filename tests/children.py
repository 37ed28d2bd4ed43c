"""A process's children by what they are called, of which some may live for a moment only."""

from collections.abc import Iterable

import psutil


def called(name: str, children: Iterable[psutil.Process]) -> psutil.Process | None:
    """The first of that name; one that has ended since it was listed has none any more."""
    for child in children:
        try:
            if child.name() == name:
                return child
        except psutil.NoSuchProcess:
            continue
    return None
