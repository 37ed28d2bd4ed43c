"""Jobs in flight, counted from what worker processes announce, and the GPU processes that belong to them.

A worker is a connection, or the process behind it where that is known. Its job ends when the worker says
so, or when the worker is gone. A process that has announced a job stays a worker between its jobs. Before
any worker has announced a job, `ids` is None, and the processes on the GPUs serve as a guess.

A GPU process belongs to a worker if the worker started it, to the owner if `own_programs` names its
program, and is foreign otherwise. Where it cannot be seen in `/proc`, that is unknown.
"""

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from gpu_agent.probe.host.processes import lineage, process, program
from gpu_agent.runtime.logs import Logger
from gpu_agent.runtime.tasks import in_thread
from gpu_agent.wire.declaration import JOB_IDS_ROOM_BYTES
from gpu_agent.wire.inventory import Gpu, GpuProcess, GpuReport

# Jobs in flight: counted from what worker processes announce, each job as long as its worker is there.
#
# A worker is whoever announces: a connection, and the process behind it where that is known. What it
# announced ends when it says so, and all of it when it is gone. A process that has announced stays a
# worker between its jobs. Until any worker has announced
# something, nobody tells, and `ids` is None: then the processes on the GPUs stand in as a guess.
#
# It opens no socket, looks at no process and reads no clock: it is told.


LONGEST_ID = 1024
"""Characters; a registry reads no longer one."""


@dataclass(frozen=True, slots=True)
class Worker:
    """Who announces: one connection, or one process that outlives its connections."""

    key: str
    """Tells it from every other; the shell that hears it makes it."""
    pid: int | None = None
    started: int | None = None
    """When that process was started, in its machine's own ticks: a pid is given out again."""


def of_process(pid: int, started: int) -> Worker:
    """The worker that is a process, whatever its connections."""
    return Worker(f"process-{pid}-{started}", pid, started)


class Jobs:
    """What is announced and not ended, oldest first."""

    def __init__(self) -> None:
        self._jobs: dict[str, Worker] = {}
        self._workers: dict[str, Worker] = {}
        self._ever = False

    @property
    def ids(self) -> tuple[str, ...] | None:
        """The jobs in flight; None while no worker has ever announced one."""
        return tuple(self._jobs) if self._ever else None

    @property
    def workers(self) -> tuple[Worker, ...]:
        """All that announced and are not gone, at work or not."""
        return tuple(self._workers.values())

    def announced(self, job_id: str, worker: Worker) -> str | None:
        """A worker began a job, or took it over from another. Returns why it cannot be counted, if so."""
        refusal = self._refusal(job_id)
        if refusal is not None:
            return refusal
        self._ever = True
        self._workers[worker.key] = worker
        self._jobs[job_id] = worker
        return None

    def finished(self, job_id: str) -> bool:
        """A job ended; False where none of that id was in flight. Whoever says so is believed."""
        return self._jobs.pop(job_id, None) is not None

    def gone(self, worker: Worker) -> tuple[str, ...]:
        """A worker's connection or process ended: so do its jobs. Returns their ids."""
        self._workers.pop(worker.key, None)
        ended = tuple(job_id for job_id, by in self._jobs.items() if by.key == worker.key)
        for job_id in ended:
            del self._jobs[job_id]
        return ended

    def left(self, worker: Worker) -> tuple[str, ...]:
        """A worker's connection ended, and so do its jobs; its process, where known, is a worker still."""
        known = self._workers.get(worker.key)
        if known is not None and known.pid is not None and known.started is not None:
            process = of_process(known.pid, known.started)
            self._workers[process.key] = process
        return self.gone(worker)

    def _refusal(self, job_id: str) -> str | None:
        if not 0 < len(job_id) <= LONGEST_ID or not job_id.isprintable():
            return f"a job's id has 1 to {LONGEST_ID} characters that can be printed"
        told = json.dumps([*{*self._jobs, job_id}], ensure_ascii=False)
        if len(told.encode()) > JOB_IDS_ROOM_BYTES:
            return f"{len(self._jobs)} jobs are in flight, and no beat can name more: finish some first"
        return None


# Whose the processes on the GPUs are: a worker's that announces its jobs, a child's of one, or foreign.
#
# Where no worker has told its process, or a process cannot be seen from here, that is unknown. A worker
# whose process has ended takes its jobs with it. It never waits for long, and touches no process.


LOOK_SECONDS = 1.0
"""How long `/proc` may take before the report goes on without owners."""

_LOG = Logger("node.jobs")


async def mark_owned(report: GpuReport, jobs: Jobs) -> GpuReport:
    """Tell each process' owner where workers are known; end the jobs of workers that are no more."""
    workers = jobs.workers
    if not workers:
        return report
    try:
        seen = await in_thread(
            "owners", lambda: match_workers(report, workers), deadline_seconds=LOOK_SECONDS
        )
    except TimeoutError:
        return report
    for worker in seen.ended:
        if unfinished := jobs.gone(worker):
            _LOG.warning("worker_ended", pid=worker.pid, jobs=unfinished)
    return seen.report


@dataclass(frozen=True, slots=True)
class OwnershipScan:
    """One look: the report with each process' owner, and the workers whose process has ended."""

    report: GpuReport
    ended: tuple[Worker, ...]


def match_workers(report: GpuReport, workers: Iterable[Worker], root: Path = Path("/")) -> OwnershipScan:
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
        return OwnershipScan(report, tuple(ended))
    gpus = tuple(_mark_gpu(gpu, living, root) for gpu in report.gpus)
    return OwnershipScan(replace(report, gpus=gpus), tuple(ended))


def _mark_gpu(gpu: Gpu, living: set[tuple[int, int]], root: Path) -> Gpu:
    if not gpu.processes:
        return gpu
    return replace(gpu, processes=tuple(_mark_process(one, living, root) for one in gpu.processes))


def _mark_process(one: GpuProcess, living: set[tuple[int, int]], root: Path) -> GpuProcess:
    line = lineage(one.pid, root)
    if not line:
        return one
    return replace(one, ours=any((each.pid, each.started) in living for each in line))


# Processes on the GPUs that the owner calls his own by the name of their program, and what they start.
#
# It looks names up in `/proc` with a deadline, and touches no process. One that cannot be seen stays as it
# is.


PROGRAM_LOOKUP_SECONDS = 1.0
_LONGEST = 15
"""Bytes of a program's name that the kernel keeps: so it may end within a letter."""


async def mark_own_programs(report: GpuReport, programs: Collection[str]) -> GpuReport:
    """Tell which processes are the owner's own by their names; as they were, where `/proc` is too slow."""
    if not programs or not any(gpu.processes for gpu in report.gpus):
        return report
    try:
        return await in_thread(
            "programs", lambda: match_programs(report, programs), deadline_seconds=PROGRAM_LOOKUP_SECONDS
        )
    except TimeoutError:
        return report


def match_programs(report: GpuReport, programs: Collection[str], root: Path = Path("/")) -> GpuReport:
    """Look once."""
    names = {name.encode()[:_LONGEST].decode("utf-8", "replace") for name in programs}
    return replace(report, gpus=tuple(_match_gpu(gpu, names, root) for gpu in report.gpus))


def _match_gpu(gpu: Gpu, names: Collection[str], root: Path) -> Gpu:
    if not gpu.processes:
        return gpu
    return replace(gpu, processes=tuple(_match_process(one, names, root) for one in gpu.processes))


def _match_process(one: GpuProcess, names: Collection[str], root: Path) -> GpuProcess:
    own = any(program(each.pid, root) in names for each in lineage(one.pid, root))
    return replace(one, ours=True) if own else one
