"""What a collector is, and which collectors are installed: packages that find GPUs which NVML does not.

A package adds one by an entry point of the group `gpu_agent.collectors` (docs/collectors.md). NVML itself is
no collector: it is always read, through a child process of its own. Nothing is loaded here: the runner does
that.
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from gpu_agent.wire.inventory import GpuReport

# What a collector is, and which ones are installed: whatever finds GPUs that NVML does not.
#
# A package adds one by an entry point of the group `gpu_agent.collectors`; `docs/collectors.md` is
# its author's page. NVML itself is none of them: it is always asked, through a child of its own.
#
# It loads no collector and reads none: `attempt` does, at the border behind which anything may happen.


GROUP = "gpu_agent.collectors"
INTERFACE = 1
"""The version of what stands in this module. It grows when a collector written before would break."""
OURS = {"amd": "gpu_agent.probe.collectors.amd:AmdGpus"}
"""What this package itself brings, as its entry points say."""
_OUR_PACKAGE = "gpu_agent"
NVML = "nvml"
"""The name under which the agent's own reading appears among the collectors'."""


class Collector(Protocol):
    """One way to find GPUs and to read them. Made once, asked again and again, by one thread at a time."""

    interface: int
    """The `INTERFACE` that it was written for."""

    def read(self, deadline_seconds: float) -> GpuReport:
        """Read every GPU that it knows, within so long. What it cannot read is unknown, with a reason."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a collector is told when it is made."""

    sys_dir: Path = Path("/sys")
    """Where sysfs is: a container may have the machine's in another place."""


@dataclass(frozen=True, slots=True)
class InstalledCollector:
    """A collector that some package brings, not loaded yet."""

    name: str
    load: Callable[[], object]
    """Gives what the entry point names; raises what its package raises."""


def find_collectors(wanted: Iterable[str] | None = None) -> tuple[InstalledCollector, ...]:
    """List the collectors of all packages by name, or of those the wanted ones; each name once."""
    found = _entry_points()
    names = sorted(found) if wanted is None else [name for name in dict.fromkeys(wanted) if name != NVML]
    return tuple(
        InstalledCollector(name, found.get(name) or _missing_collector(name, tuple(found))) for name in names
    )


def _entry_points() -> dict[str, Callable[[], object]]:
    """Search the packages only where another than ours may bring one: the search loads a great deal."""
    if not may_provide(GROUP, beside=_OUR_PACKAGE):
        return {name: partial(_load, value) for name, value in OURS.items()}
    metadata = importlib.import_module("importlib.metadata")
    return {point.name: point.load for point in metadata.entry_points(group=GROUP)}


def _load(value: str) -> object:
    module, _, name = value.partition(":")
    return getattr(importlib.import_module(module), name)


def _missing_collector(name: str, present: tuple[str, ...]) -> Callable[[], object]:
    def load() -> object:
        there = ", ".join(sorted((NVML, *present)))
        raise LookupError(f"no package brings a collector {name!r}; there are: {there}")

    return load


# Whether any installed package brings entry points of a group, by a look at the packages' own files.
#
# The standard library's search loads half of it first; a command that must be quick looks here, and
# searches only where something may be found. It refuses to say no where it cannot see all packages.


_METADATA = (".dist-info", ".egg-info")
_LISTING = "entry_points.txt"


def may_provide(group: str, *, beside: str, places: Iterable[str] | None = None) -> bool:
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
