"""The contract for packages that find GPUs which NVML does not: collectors (docs/howto/collectors.md).

NVML itself is no collector: it is always read, through a child process of its own.

To add a collector, a package names its class in an entry point of the group `gpu_agent.collectors`; ours are
in `pyproject.toml`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from gpu_agent.records import dataclass
from gpu_agent.wire.inventory import GpuReport

INTERFACE = 1
"""The version of this contract. It grows when a collector written before would break."""


class Collector(Protocol):
    """One way to find GPUs and to read them. Made once, read again and again, by one thread at a time."""

    interface: int
    """The `INTERFACE` that it was written for."""

    def read(self, deadline_seconds: float) -> GpuReport:
        """Read every GPU that it knows, within so long. What it cannot read is unknown, with a reason."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a collector is made with."""

    sys_dir: Path = Path("/sys")
    """Where sysfs is: a container may have the machine's at another path."""
    machine_id: Path = Path("/etc/machine-id")
    """The file with an id that no other machine has: slots are numbered alike in all."""
    offer_integrated_gpus: bool = False
    """Whether graphics that are part of a processor are offered to the registry."""


@dataclass(frozen=True, slots=True)
class InstalledCollector:
    """A collector that some package brings, not loaded yet."""

    name: str
    load: Callable[[], object]
    """Returns what the entry point names; raises what its package raises."""
