"""What a collector is, and which ones are installed: whatever finds GPUs that NVML does not.

A package adds one by an entry point of the group `gpu_agent.collectors`; `docs/collectors.md` is
its author's page. NVML itself is none of them: it is always asked, through a child of its own.

It loads no collector and reads none: `attempt` does, at the border behind which anything may happen.
"""

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from gpu_agent.probe.packages import may_bring
from gpu_agent.wire.inventory import GpuReport

GROUP = "gpu_agent.collectors"
INTERFACE = 1
"""The version of what stands in this module. It grows when a collector written before would break."""
OURS = {"amd": "gpu_agent.probe.amd:AmdGpus"}
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
class Installed:
    """A collector that some package brings, not loaded yet."""

    name: str
    load: Callable[[], object]
    """Gives what the entry point names; raises what its package raises."""


def installed(wanted: Iterable[str] | None = None) -> tuple[Installed, ...]:
    """List the collectors of all packages by name, or of those the wanted ones; each name once."""
    found = _found()
    names = sorted(found) if wanted is None else [name for name in dict.fromkeys(wanted) if name != NVML]
    return tuple(Installed(name, found.get(name) or _absent(name, tuple(found))) for name in names)


def _found() -> dict[str, Callable[[], object]]:
    """Search the packages only where another than ours may bring one: the search loads a great deal."""
    if not may_bring(GROUP, beside=_OUR_PACKAGE):
        return {name: partial(_load, value) for name, value in OURS.items()}
    metadata = importlib.import_module("importlib.metadata")
    return {point.name: point.load for point in metadata.entry_points(group=GROUP)}


def _load(value: str) -> object:
    module, _, name = value.partition(":")
    return getattr(importlib.import_module(module), name)


def _absent(name: str, present: tuple[str, ...]) -> Callable[[], object]:
    def load() -> object:
        there = ", ".join(sorted((NVML, *present)))
        raise LookupError(f"no package brings a collector {name!r}; there are: {there}")

    return load
