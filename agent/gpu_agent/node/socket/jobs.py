"""Jobs as programs on this machine announce them: whose each is, since when, and what ends it.

A job ends when it is said to be finished, and with what holds it: the connection that announced it,
or the process that was named. It counts nothing (`jobs` does) and believes no number of a process
that it cannot look at. Nobody ends or takes over a job of another user, unless he may give orders here.
"""

from dataclasses import dataclass
from pathlib import Path

from gpu_agent.node.jobs import Jobs, Worker, of_process
from gpu_agent.node.socket.peer import House, Peer
from gpu_agent.node.socket.requests import Refusal
from gpu_agent.probe.processes import counts_as_we_do, process


@dataclass(frozen=True, slots=True)
class Announced:
    """One job in flight."""

    job_id: str
    uid: int
    since: float
    """Unix time."""
    pid: int | None
    held_by: str
    """`connection` or `process`: what ends it when it ends."""
    holder: str
    """That one, by its worker's key."""

    def document(self) -> dict[str, object]:
        """What others are told of it."""
        return {
            "job_id": self.job_id,
            "uid": self.uid,
            "since": round(self.since, 3),
            "pid": self.pid,
            "held_by": self.held_by,
        }


class AnnouncedJobs:
    """What the local socket's users announce. Times are wall time."""

    def __init__(self, jobs: Jobs, house: House) -> None:
        self._jobs = jobs
        self._house = house
        self._announced: dict[str, Announced] = {}

    def start(self, job_id: str, worker: Worker, peer: Peer, *, held_by: str, now: float) -> Refusal | None:
        """Count a job, or have another worker hold it; returns why it is not done."""
        refusal = self._others(job_id, peer)
        if refusal is not None:
            return refusal
        why = self._jobs.announced(job_id, worker)
        if why is not None:
            return Refusal("not_counted", why)
        before = self._announced.get(job_id)
        since = now if before is None else before.since
        self._announced[job_id] = Announced(
            job_id, peer.uid, since, pid=worker.pid, held_by=held_by, holder=worker.key
        )
        return None

    def finish(self, job_id: str, peer: Peer) -> Refusal | None:
        """End a job; returns why it is not."""
        refusal = self._others(job_id, peer)
        if refusal is not None:
            return refusal
        self._announced.pop(job_id, None)
        if not self._jobs.finished(job_id):
            return Refusal(
                "unknown_job", f"no job {job_id!r} is in flight here; `gpu-agent job list` shows all"
            )
        return None

    def gone(self, worker: Worker) -> None:
        """A connection has ended; so do the jobs that it holds."""
        self._jobs.left(worker)
        self.listed()

    def holds(self, worker: Worker) -> bool:
        """Whether a job would end with this worker."""
        return any(job.holder == worker.key for job in self.listed())

    def listed(self) -> list[Announced]:
        """List those in flight, the longest first; forgets those that ended otherwise."""
        living = self._jobs.ids or ()
        self._announced = {job_id: self._announced[job_id] for job_id in living if job_id in self._announced}
        return list(self._announced.values())

    def _others(self, job_id: str, peer: Peer) -> Refusal | None:
        self.listed()
        announced = self._announced.get(job_id)
        if announced is None or announced.uid == peer.uid or self._house.may_order(peer):
            return None
        return Refusal("forbidden", f"job {job_id!r} is of user {announced.uid}: ask him, or root")


def connected(number: int, peer: Peer, root: Path = Path("/")) -> Worker:
    """The worker behind a connection; its process where that can be seen. Reads `/proc`."""
    found = None if peer.pid is None else process(peer.pid, root)
    if found is None:
        return Worker(f"connection-{number}")
    return Worker(f"connection-{number}", found.pid, found.started)


def named(
    pid: int, peer: Peer, house: House, *, own_pid: int | None = None, root: Path = Path("/")
) -> Worker | Refusal:
    """The worker that is a process by its number, which must be one of the asker's own. Reads `/proc`.

    Where the asker tells `own_pid`, and the kernel another number of his, his numbers are not ours; nor where
    the kernel shows him in a container of his own, whatever he tells.
    """
    if own_pid not in (None, peer.pid) or peer.pid is None or not counts_as_we_do(peer.pid, root):
        return Refusal(
            "unknown_process",
            f"{pid} is a number of another container's, where the agent counts otherwise: "
            "use `gpu-agent job run`, which needs no number",
        )
    found, owner = process(pid, root), _owner(pid, root)
    if found is None or owner is None:
        return Refusal(
            "unknown_process",
            f"the agent sees no process {pid}: in another container, or where there is no /proc, "
            "use `gpu-agent job run`, which needs no number",
        )
    if owner != peer.uid and not house.may_order(peer):
        return Refusal("forbidden", f"process {pid} is of user {owner}: name one of your own")
    return of_process(found.pid, found.started)


def _owner(pid: int, root: Path) -> int | None:
    try:
        return (root / "proc" / str(pid)).stat().st_uid
    except OSError:
        return None
