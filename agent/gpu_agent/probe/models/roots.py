"""The folders that are searched for models: opened once per scan, listed one level deep.

A root that is not there holds no models and is no problem: caches come and go. One that may not be
looked at is a problem with a reason. A root named twice, also through a link, is listed once.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from pathlib import Path

from gpu_agent.probe.models.source import Listing, Root, Unit
from gpu_agent.probe.models.tree import MAX_ENTRIES, Refused, open_root, reason


def list_units(
    roots: Iterable[Path], units_of: Callable[[Root], Iterable[Unit]], *, cross_file_systems: bool = False
) -> Listing:
    """The units of each root; `units_of` may raise what listing a folder raises.

    `cross_file_systems`: what is mounted below a root counts as part of it.
    """
    units: list[Unit] = []
    problems: dict[str, str] = {}
    seen: dict[str, None] = {}
    for path in roots:
        try:
            root = open_root(path, cross_file_systems=cross_file_systems)
            if root.path not in seen:
                seen[root.path] = None
                for unit in units_of(root):
                    units.append(unit)  # noqa: PERF402  those before a fault count
        except FileNotFoundError:
            continue
        except OSError as error:
            problems[str(path)] = reason(error)
    return Listing(tuple(units), problems, tuple(seen))


@dataclass(frozen=True, slots=True)
class Entries:
    """What lies in a root that is not hidden, by name, and no more than the bound of a listing."""

    shown: Sequence[os.DirEntry[str]]
    beyond: bool
    """There are more."""

    def check(self) -> None:
        """Say so, once those that are shown were made units."""
        if self.beyond:
            raise Refused(f"it has more than {MAX_ENTRIES} entries; the rest was not looked at")


def entries_of(root: Root) -> Entries:
    """List a root; may raise what listing a folder raises."""
    with os.scandir(root.path) as entries:
        shown = (entry for entry in entries if not entry.name.startswith("."))
        listed = list(islice(shown, MAX_ENTRIES + 1))
    listed.sort(key=attrgetter("name"))
    return Entries(listed[:MAX_ENTRIES], len(listed) > MAX_ENTRIES)
