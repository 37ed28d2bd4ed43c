"""The machine around the GPUs: cores, memory, load, and the disks of model caches.

Figures come twice: as this process's control group may use them, and (`machine_*`) as the machine
has them. A reading that fails is data: `None` with its reason in `unknowns`, never an exception and
never zero. CPU load is the mean since the reading before, so nothing blocks for a measurement. A disk
that hangs must not block the host's reading, so the model scanner reads disks.

Where psutil cannot read cores and memory (no `/proc`), a system call does. Cores alone have no unknown:
where even that fails there is one, on which this runs.
"""

import os
import platform
import socket
import sys
import time
from collections.abc import Callable, Iterable
from math import ceil
from pathlib import Path
from typing import TypeVar

import psutil

from gpu_agent.probe.host import virtualization
from gpu_agent.probe.host.cgroup import Cgroup, CgroupProbe
from gpu_agent.records import dataclass, replace
from gpu_agent.wire.inventory import CacheDisk, Host

_MIB = 1 << 20
_PLATFORM = {"win32": "windows", "darwin": "macos"}.get(sys.platform, str(sys.platform))
_UNANSWERED = (OSError, psutil.Error, RuntimeError, ValueError, NotImplementedError, AttributeError)
"""psutil raises the last four on a `/proc` that it cannot parse, or where a platform lacks a call."""
_BOOT_ID = "proc/sys/kernel/random/boot_id"
_Read = TypeVar("_Read")


@dataclass(frozen=True, slots=True)
class _Facts:
    """What stays the same until the next boot; read once."""

    physical_cores: int | None
    boot_id: str | None
    kernel: str | None
    os: str | None
    virtualization: str | None
    unknowns: dict[str, str]


@dataclass(frozen=True, slots=True)
class _CpuMark:
    """CPU time counted up to one moment, in seconds."""

    at: float
    busy: float
    total: float
    ours: float | None


class HostProbe:
    """Reads the host. Keep one per process: it remembers the reading before for `cpu_percent`."""

    def __init__(
        self,
        *,
        root: Path = Path("/"),
        monotonic: Callable[[], float] = time.monotonic,
        hostname: str | None = None,
    ) -> None:
        """`root` is where `proc`, `sys` and `run` are found; `hostname` replaces the machine's own."""
        self._root = root
        self._hostname = hostname
        self._monotonic = monotonic
        self._cgroup = CgroupProbe(root)
        self._facts: _Facts | None = None
        self._mark: _CpuMark | None = None

    def read(self) -> Host:
        """Read the host now."""
        attempts = _Attempts()
        if self._facts is None:
            self._facts = _read_facts(self._root)
        cgroup = self._cgroup.read()
        host = _cores_and_memory(cgroup, attempts)
        return replace(
            host,
            cpu_percent=self._cpu_percent(cgroup, attempts),
            load_1m=attempts.read("load_1m", lambda: os.getloadavg()[0]),
            hostname=self._hostname or attempts.read("hostname", socket.gethostname),
            cpu_physical_cores=self._facts.physical_cores,
            boot_id=self._facts.boot_id,
            kernel=self._facts.kernel,
            os=self._facts.os,
            virtualization=self._facts.virtualization,
            unknowns={**self._facts.unknowns, **cgroup.unknowns, **attempts.unknowns},
        )

    def _cpu_percent(self, cgroup: Cgroup, attempts: "_Attempts") -> float | None:
        """The busier of the machine and, where its CPU time is limited, our group; 0-100."""
        before = self._mark
        mark = attempts.read("cpu_percent", lambda: _cpu_mark(self._monotonic(), cgroup))
        if mark is None:
            return None
        if before is None:
            self._mark = mark
            attempts.unknowns["cpu_percent"] = "measured between two readings; this is the first"
            return None
        if mark.total <= before.total or mark.at <= before.at:
            attempts.unknowns["cpu_percent"] = "no CPU time was counted since the reading before"
            return None
        self._mark = mark
        shares = [(mark.busy - before.busy) / (mark.total - before.total)]
        if cgroup.cpu_cores and mark.ours is not None and before.ours is not None:
            shares.append((mark.ours - before.ours) / ((mark.at - before.at) * cgroup.cpu_cores))
        return round(min(max(*shares, 0.0), 1.0) * 100, 1)


def read_by_system_calls(why: str) -> Host:
    """What the kernel answers without a file, where reading the files hangs, as those of a dead lxcfs do."""
    attempts = _Attempts()
    total = attempts.read("memory_total_mb", _memory_by_system_call)
    unread = ("memory_used_mb", "memory_available_mb", "cpu_percent", "cpu_physical_cores", "boot_id")
    return Host(
        cpu_logical_cores=len(os.sched_getaffinity(0)) if _PLATFORM == "linux" else os.cpu_count() or 1,
        cpu_physical_cores=None,
        memory_total_mb=_size_mib(total),
        memory_used_mb=None,
        memory_available_mb=None,
        platform=_PLATFORM,
        hostname=attempts.read("hostname", socket.gethostname),
        unknowns={**dict.fromkeys(unread, why), **attempts.unknowns},
    )


class _Attempts:
    """Reads one figure at a time, and records the reason where there is none."""

    def __init__(self) -> None:
        self.unknowns: dict[str, str] = {}

    def read(self, name: str, read: Callable[[], _Read]) -> _Read | None:
        try:
            return read()
        except _UNANSWERED as error:
            self.unknowns[name] = f"{type(error).__name__}: {error}"
            return None


def _read_facts(root: Path) -> _Facts:
    attempts = _Attempts()
    physical = attempts.read("cpu_physical_cores", lambda: psutil.cpu_count(logical=False))
    if physical is None:
        attempts.unknowns.setdefault("cpu_physical_cores", "this machine does not report its cores' layout")
    boot_id = hint = None
    if _PLATFORM == "linux":
        boot_id = attempts.read("boot_id", lambda: (root / _BOOT_ID).read_text().strip())
        hint = virtualization.detect(root)
        if hint is None:
            attempts.unknowns["virtualization"] = "neither the firmware nor the processor says"
    else:
        attempts.unknowns["boot_id"] = attempts.unknowns["virtualization"] = "read on Linux only"
    return _Facts(
        physical_cores=physical,
        boot_id=boot_id or None,
        kernel=attempts.read("kernel", platform.release),
        os=attempts.read("os", _os_name),
        virtualization=hint,
        unknowns=attempts.unknowns,
    )


def _os_name() -> str:
    if _PLATFORM == "linux":
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    if _PLATFORM == "macos":
        return f"macOS {platform.mac_ver()[0]}"
    return f"{platform.system()} {platform.release()}"


def _cores_and_memory(cgroup: Cgroup, attempts: _Attempts) -> Host:
    """Cores and memory, the machine's cut to what the control group may use."""
    cores = attempts.read("machine_logical_cores", psutil.cpu_count) or os.cpu_count()
    memory = attempts.read("machine_memory_total_mb", psutil.virtual_memory)
    total = memory.total if memory else attempts.read("memory_total_mb", _memory_by_system_call)
    limit, used = cgroup.memory_limit_bytes, memory.total - memory.available if memory else None
    available = memory.available if memory else None
    ours_total: int | None
    if limit is not None and (total is None or limit < total):
        ours_total, ours_used = limit, cgroup.memory_used_bytes
        free_here = None if ours_used is None else max(limit - ours_used, 0)
        ours_available = min((n for n in (free_here, available) if n is not None), default=None)
    else:
        ours_total, ours_used, ours_available = total, used, available
    return Host(
        cpu_logical_cores=_usable_cores(cores, cgroup),
        cpu_physical_cores=None,
        machine_logical_cores=cores,
        memory_total_mb=_size_mib(ours_total),
        memory_used_mb=_mib(ours_used),
        memory_available_mb=_mib(ours_available),
        machine_memory_total_mb=_mib(total),
        platform=_PLATFORM,
    )


def _usable_cores(machine: int | None, cgroup: Cgroup) -> int:
    """Whole cores that we may use: a quota of 1.5 is two cores at three quarters each."""
    bounds = [machine or 1]
    if _PLATFORM == "linux":
        bounds.append(len(os.sched_getaffinity(0)))
    if cgroup.cpu_cores:
        bounds.append(ceil(cgroup.cpu_cores))
    if cgroup.cpus:
        bounds.append(cgroup.cpus)
    return max(min(bounds), 1)


def _memory_by_system_call() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _mib(count: int | None) -> int | None:
    return None if count is None else count // _MIB


def _size_mib(count: int | None) -> int | None:
    """A whole memory in MiB: what is known is at least 1, and no machine has 0 bytes."""
    return max(count // _MIB, 1) if count else None


def _cpu_mark(at: float, cgroup: Cgroup) -> _CpuMark:
    times = psutil.cpu_times()._asdict()
    counted_twice = times.get("guest", 0.0) + times.get("guest_nice", 0.0)  # Linux has them in user and nice
    total = sum(times.values()) - counted_twice
    idle = times["idle"] + times.get("iowait", 0.0)
    return _CpuMark(at=at, busy=total - idle, total=total, ours=cgroup.cpu_used_seconds)


# ---- disks: read by the model scanner, in a thread that can be left behind


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """What one file system has left."""

    device: int
    """Its device number."""
    disk: CacheDisk


def disk_space_at(cache: Path) -> DiskSpace | str:
    """The space at a cache, or the reason why it is unknown; blocks as long as the disk hangs.

    A cache that does not exist yet counts where it would be made.
    """
    for path in (cache, *cache.parents):
        try:
            device = path.stat().st_dev
            usage = psutil.disk_usage(str(path))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        return DiskSpace(device, CacheDisk(path=str(cache), free_bytes=usage.free, total_bytes=usage.total))
    return "no folder above it is there"


def distinct_disks(spaces: Iterable[DiskSpace]) -> tuple[CacheDisk, ...]:
    """Each file system once, under the name of the first cache on it."""
    first: dict[int, CacheDisk] = {}
    for space in spaces:
        first.setdefault(space.device, space.disk)
    return tuple(first.values())
