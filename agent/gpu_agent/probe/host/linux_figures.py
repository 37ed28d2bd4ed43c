"""Cores, memory, processor time and disks as Linux's own files have them.

The same figures as psutil's, which `portable_figures` takes elsewhere: loading psutil would cost a command,
and an idle agent's memory, more than all the rest of the host.
"""

import os
from pathlib import Path

from gpu_agent.records import dataclass

PROC = Path("/proc")
CPUS = Path("/sys/devices/system/cpu")
OS_RELEASE = (Path("/etc/os-release"), Path("/usr/lib/os-release"))

UNANSWERED = (OSError, ValueError, LookupError)
"""What these functions raise where a file is missing, or holds something else."""

_SIBLINGS = ("core_cpus_list", "thread_siblings_list")
"""Of one core, by its newer name and the one before: the logical processors that share it."""
_IDLE, _IOWAIT, _GUEST = 3, 4, 8
"""Columns of `/proc/stat`; guest and what follows it are counted in user and nice too."""


@dataclass(frozen=True, slots=True)
class Memory:
    """The machine's, in bytes."""

    total: int
    available: int


@dataclass(frozen=True, slots=True)
class CpuTime:
    """All processors' time since the boot, in seconds."""

    busy: float
    total: float


def logical_cores() -> int | None:
    """Count the processors that are online."""
    return os.sysconf("SC_NPROCESSORS_ONLN")


def physical_cores() -> int | None:
    """Count the cores, each once however many processors share it; None where the kernel does not say."""
    for name in _SIBLINGS:
        cores = {path.read_text().strip() for path in CPUS.glob(f"cpu[0-9]*/topology/{name}")}
        if cores:
            return len(cores)
    return _cores_of_sockets() or None


def _cores_of_sockets() -> int:
    """Count by `/proc/cpuinfo`, where old kernels have the cores of each socket."""
    sockets: dict[str, int] = {}
    for section in (PROC / "cpuinfo").read_text().split("\n\n"):
        lines = (line.partition(":") for line in section.splitlines())
        facts = {key.strip(): value.strip() for key, _, value in lines}
        if "physical id" in facts and "cpu cores" in facts:
            sockets[facts["physical id"]] = int(facts["cpu cores"])
    return sum(sockets.values())


def memory() -> Memory:
    """Read the machine's memory."""
    sizes: dict[bytes, int] = {}
    for line in (PROC / "meminfo").read_bytes().splitlines():
        name, kib = line.split()[:2]
        sizes[name] = int(kib) * 1024
    total, free = sizes[b"MemTotal:"], sizes[b"MemFree:"]
    available = sizes[b"MemAvailable:"]  # in containers it may be the machine's, and in some kernels 0
    return Memory(total, available if 0 < available <= total else free)


def cpu_time() -> CpuTime:
    """Read how long the processors were busy, and in all."""
    with (PROC / "stat").open("rb") as file:
        ticks = [int(word) for word in file.readline().split()[1:]]
    total, idle = sum(ticks[:_GUEST]), ticks[_IDLE] + ticks[_IOWAIT]
    second = os.sysconf("SC_CLK_TCK")
    return CpuTime(busy=(total - idle) / second, total=total / second)


def disk_space(path: Path) -> tuple[int, int]:
    """Read what the file system of a path has left for this user, and in all; bytes."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize


def kernel() -> str:
    """Name the kernel's release."""
    return os.uname().release


def hostname() -> str:
    """Name this machine."""
    return os.uname().nodename


def operating_system() -> str:
    """Name the distribution, as os-release(5) has it."""
    for path in OS_RELEASE:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            continue
        facts = dict(line.partition("=")[::2] for line in lines if not line.startswith("#"))
        return _unquoted(facts.get("PRETTY_NAME", "Linux"))
    raise FileNotFoundError("this machine has no os-release file")


def _unquoted(value: str) -> str:
    """Read a value as a shell does: in quotes or without, a backslash before what would mean something."""
    text = value.strip()
    if text[:1] in ("'", '"') and text[-1:] == text[:1]:
        text = text[1:-1]
    plain, escaped = "", False
    for letter in text:
        escaped = letter == "\\" and not escaped
        plain += "" if escaped else letter
    return plain
