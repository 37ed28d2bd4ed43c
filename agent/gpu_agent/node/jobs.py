"""Jobs in flight, counted from what worker processes announce, and the GPU processes that belong to them.

A worker is a connection, or the process behind it where that is known. Its job ends when the worker says
so, or when the worker is gone. A process that has announced a job stays a worker between its jobs. Before
any worker has announced a job, `ids` is None, and the processes on the GPUs serve as a guess.

A GPU process belongs to a worker if the worker started it, to the owner if `own_programs` names its
program, and is foreign otherwise. Where it cannot be seen in `/proc`, that is unknown.
"""

import json
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Literal

from gpu_agent.probe.host.processes import lineage, process, program
from gpu_agent.records import dataclass, replace
from gpu_agent.runtime.logs import Logger
from gpu_agent.runtime.tasks import in_thread
from gpu_agent.wire.declaration import JOB_IDS_ROOM_BYTES
from gpu_agent.wire.inventory import GpuProcess, GpuReport

MAX_JOB_ID_LENGTH = 1024
"""The longest id that a registry reads, in characters."""


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """Who announces jobs: a connection, or a process that outlives its connections."""

    key: str
    """Unique among workers."""
    pid: int | None = None
    started: int | None = None
    """Start time of that process in the kernel's ticks: the kernel reuses a pid."""
    kind: Literal["connection", "process"] = "connection"


def of_process(pid: int, started: int) -> WorkerProcess:
    """The worker that is a process, whatever its connections."""
    return WorkerProcess(f"process-{pid}-{started}", pid, started, "process")


@dataclass(frozen=True, slots=True)
class AnnouncedJob:
    """One job in flight."""

    job_id: str
    worker: WorkerProcess
    uid: int
    """The user who announced it."""
    since: float
    """Unix time of its first announcement."""


class Jobs:
    """The jobs that were announced and have not ended, oldest first."""

    def __init__(self) -> None:
        self._jobs: dict[str, AnnouncedJob] = {}
        self._workers: dict[str, WorkerProcess] = {}
        self._ever_announced = False

    @property
    def ids(self) -> tuple[str, ...] | None:
        """The jobs in flight; None before any worker has announced one."""
        return tuple(self._jobs) if self._ever_announced else None

    @property
    def in_flight(self) -> tuple[AnnouncedJob, ...]:
        """All jobs, the longest running first."""
        return tuple(self._jobs.values())

    @property
    def workers(self) -> tuple[WorkerProcess, ...]:
        """All workers that have announced a job and still exist, with a job or without."""
        return tuple(self._workers.values())

    def find(self, job_id: str) -> AnnouncedJob | None:
        """Return the job of that id, None where none is in flight."""
        return self._jobs.get(job_id)

    def has_job(self, worker: WorkerProcess) -> bool:
        """Whether a job would end with this worker."""
        return any(job.worker.key == worker.key for job in self._jobs.values())

    def start(self, job_id: str, worker: WorkerProcess, *, uid: int, now: float) -> str | None:
        """Count a job, or assign it to another worker. `now`: Unix time. Returns why it cannot be counted."""
        refusal = self._refuse_id(job_id)
        if refusal is not None:
            return refusal
        self._ever_announced = True
        self._workers[worker.key] = worker
        before = self._jobs.get(job_id)
        self._jobs[job_id] = AnnouncedJob(job_id, worker, uid, now if before is None else before.since)
        return None

    def finish(self, job_id: str) -> bool:
        """End a job; False where no job of that id was in flight."""
        return self._jobs.pop(job_id, None) is not None

    def remove_worker(self, worker: WorkerProcess) -> tuple[str, ...]:
        """Remove a worker whose connection or process has ended, and its jobs. Returns their ids."""
        self._workers.pop(worker.key, None)
        ended = tuple(job.job_id for job in self._jobs.values() if job.worker.key == worker.key)
        for job_id in ended:
            del self._jobs[job_id]
        return ended

    def close_connection(self, worker: WorkerProcess) -> tuple[str, ...]:
        """Remove a worker's connection and its jobs; its process, where known, stays a worker."""
        known = self._workers.get(worker.key)
        if known is not None and known.pid is not None and known.started is not None:
            process = of_process(known.pid, known.started)
            self._workers[process.key] = process
        return self.remove_worker(worker)

    def _refuse_id(self, job_id: str) -> str | None:
        if not 0 < len(job_id) <= MAX_JOB_ID_LENGTH or not job_id.isprintable():
            return f"a job's id has 1 to {MAX_JOB_ID_LENGTH} characters that can be printed"
        ids = json.dumps([*{*self._jobs, job_id}], ensure_ascii=False)
        if len(ids.encode()) > JOB_IDS_ROOM_BYTES:
            return f"{len(self._jobs)} jobs are in flight, and no heartbeat can name more: finish some first"
        return None


PROC_SECONDS = 1.0
"""How long `/proc` may take before the report goes on without owners."""
_COMM_BYTES = 15
"""Bytes of a program's name that the kernel stores: it may end within a letter."""

_LOG = Logger("node.jobs")


async def mark_owned(report: GpuReport, jobs: Jobs) -> GpuReport:
    """Mark which GPU processes belong to workers, and end the jobs of workers whose process has ended."""
    workers = jobs.workers
    if not workers:
        return report
    try:
        scan = await in_thread(
            "owners", lambda: match_workers(report, workers), deadline_seconds=PROC_SECONDS
        )
    except TimeoutError:
        return report
    for worker in scan.ended:
        if unfinished := jobs.remove_worker(worker):
            _LOG.warning("worker_ended", pid=worker.pid, jobs=unfinished)
    return scan.report


@dataclass(frozen=True, slots=True)
class OwnershipScan:
    """The report with each process marked, and the workers whose process has ended."""

    report: GpuReport
    ended: tuple[WorkerProcess, ...]


def match_workers(
    report: GpuReport, workers: Iterable[WorkerProcess], root: Path = Path("/")
) -> OwnershipScan:
    """Mark each GPU process as a worker's or foreign, and find the workers that have ended."""
    living: set[tuple[int, int]] = set()
    ended: list[WorkerProcess] = []
    for worker in workers:
        if worker.pid is None or worker.started is None:
            continue
        now = process(worker.pid, root)
        if now is None or now.started != worker.started:
            ended.append(worker)
        else:
            living.add((worker.pid, worker.started))

    def mark(one: GpuProcess) -> GpuProcess:
        line = lineage(one.pid, root)
        return replace(one, ours=any((each.pid, each.started) in living for each in line)) if line else one

    return OwnershipScan(_mark_each(report, mark) if living else report, tuple(ended))


async def mark_own_programs(report: GpuReport, programs: Collection[str]) -> GpuReport:
    """Mark the GPU processes that run one of the owner's programs; unchanged where `/proc` is too slow."""
    if not programs or not any(gpu.processes for gpu in report.gpus):
        return report
    try:
        return await in_thread(
            "programs", lambda: match_programs(report, programs), deadline_seconds=PROC_SECONDS
        )
    except TimeoutError:
        return report


def match_programs(report: GpuReport, programs: Collection[str], root: Path = Path("/")) -> GpuReport:
    """Mark the processes that run one of these programs, and all that they started."""
    names = {name.encode()[:_COMM_BYTES].decode("utf-8", "replace") for name in programs}

    def mark(one: GpuProcess) -> GpuProcess:
        own = any(program(each.pid, root) in names for each in lineage(one.pid, root))
        return replace(one, ours=True) if own else one

    return _mark_each(report, mark)


def _mark_each(report: GpuReport, mark: Callable[[GpuProcess], GpuProcess]) -> GpuReport:
    gpus = (
        replace(gpu, processes=tuple(map(mark, gpu.processes))) if gpu.processes else gpu
        for gpu in report.gpus
    )
    return replace(report, gpus=tuple(gpus))
