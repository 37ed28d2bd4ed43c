"""The figures of one beat that come from the machine as a whole, out of the newest inventory.

Reads nothing itself. Two figures must be on the wire whatever is known (§3.4): where the host gives
no CPU load, the load average stands in for it; where it gives no memory, nothing is claimed to be in use.
"""

from gpu_agent.wire.declaration import Moment
from gpu_agent.wire.inventory import GpuReport, Host, Inventory

_HIGHEST_PERCENT = 100.0


def moment_of(inventory: Inventory, *, timestamp_ms: int, probe_age_seconds: float | None) -> Moment:
    """Say how the machine is at the moment of a beat."""
    return Moment(
        timestamp_ms=timestamp_ms,
        cpu_percent=_cpu_percent(inventory.host),
        mem_percent=_memory_percent(inventory.host),
        running_jobs=compute_processes(inventory.gpu),
        running_job_ids=None,
        probe_age_seconds=None if probe_age_seconds is None else round(probe_age_seconds, 3),
    )


def compute_processes(report: GpuReport) -> int:
    """Count the processes that hold a GPU: the jobs in flight, where no worker announces any."""
    return len({process.pid for gpu in report.gpus for process in gpu.processes or ()})


def _cpu_percent(host: Host) -> float:
    if host.cpu_percent is not None:
        return host.cpu_percent
    load = host.load_1m or 0.0
    cores = host.machine_logical_cores or host.cpu_logical_cores
    return round(min(_HIGHEST_PERCENT, 100 * load / cores), 1)


def _memory_percent(host: Host) -> float:
    used = host.memory_used_mb
    if used is None and host.memory_available_mb is not None:
        used = host.memory_total_mb - host.memory_available_mb
    return round(min(_HIGHEST_PERCENT, max(0.0, 100 * (used or 0) / host.memory_total_mb)), 1)
