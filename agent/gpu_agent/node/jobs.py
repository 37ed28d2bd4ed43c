"""Jobs in flight: counted from what worker processes announce, each job as long as its worker is there.

A worker is whoever announces: a connection, and the process behind it where that is known. What it
announced ends when it says so, and all of it when it is gone. A process that has announced stays a
worker between its jobs. Until any worker has announced
something, nobody tells, and `ids` is None: then the processes on the GPUs stand in as a guess.

It opens no socket, looks at no process and reads no clock: it is told.
"""

import json
from dataclasses import dataclass

from gpu_agent.wire.declaration import JOB_IDS_ROOM_BYTES

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
