"""Whose the processes on the GPUs are: a worker's that announces its jobs, a child's of one, or foreign.

Where no worker has told its process, or a process cannot be seen from here, that is unknown. A worker
whose process has ended takes its jobs with it. It never waits for long, and touches no process.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from gpu_agent.node.jobs import Jobs, Worker
from gpu_agent.probe.processes import lineage, process
from gpu_agent.runtime.logs import EventLog
from gpu_agent.runtime.tasks import in_thread
from gpu_agent.wire.inventory import Gpu, GpuProcess, GpuReport

LOOK_SECONDS = 1.0
"""How long `/proc` may take before the report goes on without owners."""

_LOG = EventLog("node.ownership")


async def owned(report: GpuReport, jobs: Jobs) -> GpuReport:
    """Tell each process' owner where workers are known; end the jobs of workers that are no more."""
    workers = jobs.workers
    if not workers:
        return report
    try:
        seen = await in_thread("owners", lambda: look(report, workers), deadline_seconds=LOOK_SECONDS)
    except TimeoutError:
        return report
    for worker in seen.ended:
        if unfinished := jobs.gone(worker):
            _LOG.warning("worker_ended", pid=worker.pid, jobs=unfinished)
    return seen.report


@dataclass(frozen=True, slots=True)
class Seen:
    """One look: the report with each process' owner, and the workers whose process has ended."""

    report: GpuReport
    ended: tuple[Worker, ...]


def look(report: GpuReport, workers: Iterable[Worker], root: Path = Path("/")) -> Seen:
    """Tell ours from foreign ones, and find out which workers are no more."""
    living: set[tuple[int, int]] = set()
    ended: list[Worker] = []
    for worker in workers:
        if worker.pid is None or worker.started is None:
            continue
        now = process(worker.pid, root)
        if now is None or now.started != worker.started:
            ended.append(worker)
        else:
            living.add((worker.pid, worker.started))
    if not living:
        return Seen(report, tuple(ended))
    gpus = tuple(_owned(gpu, living, root) for gpu in report.gpus)
    return Seen(replace(report, gpus=gpus), tuple(ended))


def _owned(gpu: Gpu, living: set[tuple[int, int]], root: Path) -> Gpu:
    if not gpu.processes:
        return gpu
    return replace(gpu, processes=tuple(_told(one, living, root) for one in gpu.processes))


def _told(one: GpuProcess, living: set[tuple[int, int]], root: Path) -> GpuProcess:
    line = lineage(one.pid, root)
    if not line:
        return one
    return replace(one, ours=any((each.pid, each.started) in living for each in line))
