"""A Linux machine's cores, memory, processor time and names, from `/proc`, `/sys` and system calls.

`other_systems` has the same functions for the others, through psutil, which takes longer to load than a whole
reading takes here. Each raises one of `UNANSWERED` for what the kernel does not say.
"""

import os

UNANSWERED = (OSError, ValueError, LookupError)
PROC = "/proc"
CPUS = "/sys/devices/system/cpu"
_OS_RELEASES = ("/etc/os-release", "/usr/lib/os-release")
"""os-release(5)"""
_KIB = 1024
_TIMES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
"""Of the first line of `stat`; what follows, guests' time, is counted in the first two already (proc(5))."""
_SIBLINGS = ("core_cpus_list", "thread_siblings_list")


def logical_cores() -> int | None:
    """Count the cores that are online, of all processors."""
    return os.cpu_count()


def physical_cores() -> int | None:
    """Count the cores without their threads; None where the kernel does not know the layout."""
    names = [name for name in os.listdir(CPUS) if name[:3] == "cpu" and name[3:].isdigit()]  # noqa: PTH208 - names
    for siblings in _SIBLINGS:
        found = {_text_if_there(f"{CPUS}/{name}/topology/{siblings}") for name in names} - {None}
        if found:
            return len(found)
    return None


def memory() -> tuple[int, int]:
    """Return the machine's memory and what of it is available, in bytes."""
    known = {}
    for line in _text(f"{PROC}/meminfo").splitlines():
        name, _, rest = line.partition(":")
        known[name] = rest
    total, free = _bytes(known["MemTotal"]), _bytes(known.get("MemFree", "0"))
    if "MemAvailable" in known:
        available = _bytes(known["MemAvailable"])
    else:  # before Linux 3.14
        available = free + _bytes(known.get("Buffers", "0")) + _bytes(known.get("Cached", "0"))
    return total, available if available <= total else free  # some containers distort it


def processor_seconds() -> tuple[float, float]:
    """Return the time that the processors were busy, and all their time, since the boot."""
    first = _text(f"{PROC}/stat").partition("\n")[0].split()
    ticks = dict(zip(_TIMES, map(int, first[1:]), strict=False))
    total = sum(ticks.values())
    idle = ticks["idle"] + ticks.get("iowait", 0)
    per_second = os.sysconf("SC_CLK_TCK")
    return (total - idle) / per_second, total / per_second


def load_1m() -> float:
    """Return the mean number of programs that ran, or waited to, in the last minute."""
    return os.getloadavg()[0]


def disk_bytes(path: str) -> tuple[int, int]:
    """Return what is free for this user on the file system of a path, and its size."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize


def hostname() -> str:
    """Return the name of this machine."""
    return os.uname().nodename


def kernel() -> str:
    """Return the kernel's version."""
    return os.uname().release


def os_name() -> str:
    """Return the distribution's name for people."""
    for path in _OS_RELEASES:
        for line in (_text_if_there(path) or "").splitlines():
            name, _, value = line.partition("=")
            if name.strip() == "PRETTY_NAME":
                return _unquoted(value.strip())
    raise FileNotFoundError("no os-release has a PRETTY_NAME")


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - pathlib weighs
        return file.read()


def _text_if_there(path: str) -> str | None:
    try:
        return _text(path).strip()
    except OSError:
        return None


def _bytes(value: str) -> int:
    """`  24673300 kB` in bytes."""
    return int(value.split(maxsplit=1)[0]) * _KIB


def _unquoted(value: str) -> str:
    """The value of an assignment of the shell's: quotes around it, a backslash before what is special."""
    if value[:1] in ('"', "'") and value[-1:] == value[:1]:
        value = value[1:-1]
    plain, escaped = [], False
    for letter in value:
        if letter == "\\" and not escaped:
            escaped = True
            continue
        plain.append(letter)
        escaped = False
    return "".join(plain)
