"""The figures of one beat that come from the machine as a whole, out of the newest inventory.

Two figures must be on the wire whatever is known (§3.4), and unknown is never 0. CPU load is measured
between two readings, so for the first beat, and where it cannot be measured, the load average stands
in for it. Memory in use follows from what is available where it is not told; where the host gave
neither, the kernel is asked by system call. A figure that still nobody can tell counts as full: a
machine that does not know how busy it is takes no job on hope, and its registry's reason shows it.
"""

import os

from gpu_agent.wire.beat import Moment
from gpu_agent.wire.inventory import GpuReport, Host, Inventory

_FULL = 100.0


def moment_of(
    inventory: Inventory,
    *,
    job_ids: tuple[str, ...] | None,
    timestamp_ms: int,
    probe_age_seconds: float | None,
) -> Moment:
    """Say how the machine is at the moment of a beat; `job_ids` are None where no worker announces any.

    A beat without ids tells its registry that the number is a guess (§5: it never delays a drain).
    """
    return Moment(
        timestamp_ms=timestamp_ms,
        cpu_percent=_cpu_percent(inventory.host),
        mem_percent=_memory_percent(inventory.host),
        running_jobs=compute_processes(inventory.gpu) if job_ids is None else len(job_ids),
        running_job_ids=job_ids,
        probe_age_seconds=None if probe_age_seconds is None else round(probe_age_seconds, 3),
    )


def compute_processes(report: GpuReport) -> int | None:
    """Count the processes that hold a GPU: the jobs in flight, where no worker announces any.

    None where no GPU tells its processes. Where some do, theirs are counted: at least so many run.
    """
    told = [gpu.processes for gpu in report.gpus if gpu.processes is not None]
    return len({process.pid for processes in told for process in processes}) if told else None


def _cpu_percent(host: Host) -> float:
    if host.cpu_percent is not None:
        return host.cpu_percent
    if host.load_1m is None:
        return _FULL
    return _share(host.load_1m, host.machine_logical_cores or host.cpu_logical_cores)


def _memory_percent(host: Host) -> float:
    available = host.memory_available_mb
    if host.memory_used_mb is not None:
        return _share(host.memory_used_mb, host.memory_total_mb)
    # A control group may hide its use; what is available is the machine's then.
    for total in (host.memory_total_mb, host.machine_memory_total_mb):
        if available is not None and total is not None and available <= total:
            return _share(total - available, total)
    return _memory_percent_by_system_call()


def _memory_percent_by_system_call() -> float:
    """Pages that are not free, caches among them: more than programs need, but never too little."""
    try:
        total, free = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf, macOS no such name
        return _FULL
    return _share(total - free, total) if 0 <= free <= total and total > 0 else _FULL


def _share(used: float, total: float) -> float:
    return round(min(_FULL, max(0.0, 100 * used / total)), 1)
