"""What the agent reports of its machine beside the declaration: a heartbeat's figures, and faults.

A heartbeat always carries CPU load and memory use (§3.4), and unknown is never 0. The prober measures CPU
load between two readings, so the load average replaces it in the first heartbeat, and where the load cannot
be measured. Memory use follows from the available memory where the host does not report it, else a system
call asks the kernel. A figure that is still unknown counts as full: a machine that does not know how busy
it is takes no job, and the registry's reason shows it.

A fault goes to the registry once, for the node's history (§3.3): the GPUs that were lost since the last
probe, or what keeps all of them from being read.
"""

import os

from gpu_agent.probe.health.reasons import gpu_steps
from gpu_agent.session.types import FaultFound
from gpu_agent.wire.declaration import HeartbeatFigures
from gpu_agent.wire.inventory import Gpu, GpuReport, Health, Host, Inventory

_FULL = 100.0
_MAX_NAMED = 4
_MAX_LENGTH = 4000
"""The most characters of a fault's sentences: a message holds 4096, and a driver's text any number."""
_OF_ALL_GPUS = ("nvml_hung", "nvml_child_died", "driver_broken", "no_driver")
"""Reasons that all GPUs of the machine share, whose sentence describes them all."""


def measure(
    inventory: Inventory,
    *,
    job_ids: tuple[str, ...] | None,
    timestamp_ms: int,
    probe_age_seconds: float | None,
) -> HeartbeatFigures:
    """Measure the machine for a heartbeat; `job_ids` is None where no worker announces jobs.

    A heartbeat without ids marks the number of jobs as a guess (§5: it never delays a drain).
    """
    return HeartbeatFigures(
        timestamp_ms=timestamp_ms,
        cpu_percent=_cpu_percent(inventory.host),
        mem_percent=_memory_percent(inventory.host),
        running_jobs=count_compute_processes(inventory.gpu) if job_ids is None else len(job_ids),
        running_job_ids=job_ids,
        probe_age_seconds=None if probe_age_seconds is None else round(probe_age_seconds, 3),
    )


def count_compute_processes(report: GpuReport) -> int | None:
    """Count the processes that hold a GPU: the jobs in flight, where no worker announces any.

    None where no GPU reports its processes. Where some do, only theirs are counted.
    """
    known = [gpu.processes for gpu in report.offered if gpu.processes is not None]
    return len({process.pid for processes in known for process in processes}) if known else None


def _cpu_percent(host: Host) -> float:
    if host.cpu_percent is not None:
        return host.cpu_percent
    if host.load_1m is None:
        return _FULL
    return _share(host.load_1m, host.machine_logical_cores or host.cpu_logical_cores)


def _memory_percent(host: Host) -> float:
    available = host.memory_available_mb
    if host.memory_used_mb is not None and host.memory_total_mb is not None:
        return _share(host.memory_used_mb, host.memory_total_mb)
    # A control group may hide its use; the available memory is the machine's then.
    for total in (host.memory_total_mb, host.machine_memory_total_mb):
        if available is not None and total is not None and available <= total:
            return _share(total - available, total)
    return _memory_percent_by_system_call()


def _memory_percent_by_system_call() -> float:
    """Pages that are not free, including caches: more than programs use, never less."""
    try:
        total, free = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf, macOS no such name
        return _FULL
    return _share(total - free, total) if 0 <= free <= total and total > 0 else _FULL


def _share(used: float, total: float) -> float:
    return round(min(_FULL, max(0.0, 100 * used / total)), 1)


class FaultDetector:
    """Finds the faults that are new since the last report."""

    def __init__(self) -> None:
        self._lost: frozenset[str] = frozenset()
        self._unread: str | None = None

    def found_in(self, report: GpuReport) -> tuple[FaultFound, ...]:
        """Return the faults that are new in this report."""
        lost = [gpu for gpu in report.gpus if gpu.health is Health.LOST and gpu.parent_uuid is None]
        newly = [gpu for gpu in lost if gpu.uuid not in self._lost]
        self._lost = frozenset(gpu.uuid for gpu in lost)
        faults = (FaultFound("GPU_LOST", _cut(_of_lost(newly))),) if newly else ()
        return (*faults, *self._of_all(report))

    def _of_all(self, report: GpuReport) -> tuple[FaultFound, ...]:
        details = {each.code: each.detail for gpu in report.gpus for each in gpu.reasons}
        unread = next((code for code in _OF_ALL_GPUS if code in details), None)
        before, self._unread = self._unread, unread
        return (FaultFound(unread.upper(), _cut(details[unread])),) if unread and unread != before else ()


def _of_lost(gpus: list[Gpu]) -> str:
    named = [f"GPU {gpu.index} ({gpu.uuid}): {_why(gpu)}" for gpu in gpus[:_MAX_NAMED]]
    more = len(gpus) - len(named)
    return " ".join([*named, f"And {more} more."] if more else named)


def _why(gpu: Gpu) -> str:
    return f"{'; '.join(each.detail for each in gpu.reasons)}. Next: {'; '.join(gpu_steps((gpu,)))}."


def _cut(words: str) -> str:
    return words if len(words) <= _MAX_LENGTH else f"{words[:_MAX_LENGTH]}…"
