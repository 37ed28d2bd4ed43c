"""The figures of `linux_figures` on other systems, through psutil."""

import os
import platform
import socket
import sys
from pathlib import Path

import psutil

from gpu_agent.probe.host.linux_figures import CpuTime, Memory

UNANSWERED = (OSError, psutil.Error, RuntimeError, ValueError, NotImplementedError, AttributeError)
"""What psutil raises where a platform lacks a call, or answers something else."""


def logical_cores() -> int | None:
    """Count the processors that are online."""
    return psutil.cpu_count() or os.cpu_count()


def physical_cores() -> int | None:
    """Count the cores."""
    return psutil.cpu_count(logical=False)


def memory() -> Memory:
    """Read the machine's memory."""
    found = psutil.virtual_memory()
    return Memory(found.total, found.available)


def cpu_time() -> CpuTime:
    """Read how long the processors were busy, and in all."""
    times = psutil.cpu_times()
    total = sum(times)
    return CpuTime(busy=total - times.idle, total=total)


def disk_space(path: Path) -> tuple[int, int]:
    """Read what the file system of a path has left for this user, and in all; bytes."""
    usage = psutil.disk_usage(str(path))
    return usage.free, usage.total


def kernel() -> str:
    """Name the kernel's release."""
    return platform.release()


def hostname() -> str:
    """Name this machine."""
    return socket.gethostname()


def operating_system() -> str:
    """Name the system and its version."""
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]}"
    return f"{platform.system()} {platform.release()}"
