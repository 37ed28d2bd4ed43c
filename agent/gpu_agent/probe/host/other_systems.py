"""What `linux` reads, on other systems, through psutil.

Each raises one of `UNANSWERED` for what the system does not say.
"""

import os
import platform
import socket
import sys

import psutil

UNANSWERED = (OSError, psutil.Error, RuntimeError, ValueError, NotImplementedError, AttributeError)
"""The last four come where psutil lacks a call, or does not understand its system."""


def logical_cores() -> int | None:
    """Count the cores that are online, of all processors."""
    return psutil.cpu_count()


def physical_cores() -> int | None:
    """Count the cores without their threads; None where the system does not know the layout."""
    return psutil.cpu_count(logical=False)


def memory() -> tuple[int, int]:
    """Return the machine's memory and what of it is available, in bytes."""
    found = psutil.virtual_memory()
    return found.total, found.available


def processor_seconds() -> tuple[float, float]:
    """Return the time that the processors were busy, and all their time, since the boot."""
    times = psutil.cpu_times()._asdict()
    total = sum(times.values())
    return total - times["idle"], total


def load_1m() -> float:
    """Return the mean number of programs that ran, or waited to, in the last minute."""
    return os.getloadavg()[0]


def disk_bytes(path: str) -> tuple[int, int]:
    """Return what is free for this user on the file system of a path, and its size."""
    usage = psutil.disk_usage(path)
    return usage.free, usage.total


def hostname() -> str:
    """Return the name of this machine."""
    return socket.gethostname()


def kernel() -> str:
    """Return the kernel's version."""
    return platform.release()


def os_name() -> str:
    """Return the system's name for people."""
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]}"
    return f"{platform.system()} {platform.release()}"
