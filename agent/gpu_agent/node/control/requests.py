"""The requests of the control socket: one line of JSON, read strictly, unknown fields ignored.

Nobody ends or takes over another user's job, except root, the agent's own user and the socket's operators.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from gpu_agent.local.connection import PROTOCOL
from gpu_agent.node.control.access import AccessPolicy, Peer
from gpu_agent.node.jobs import Jobs, Worker, of_process
from gpu_agent.probe.host.processes import counts_as_we_do, process
from gpu_agent.wire.messages import Text

# What may be asked over the local socket: one line of JSON, read strictly, unknown fields ignored.
#
# It decides nothing about who may ask what. A line that is no question comes back as a refusal, in
# words for whoever wrote it.


Pid = Annotated[int, Field(ge=1, le=2**31 - 1)]
LONGEST_DRAIN_SECONDS = 10 * 365 * 86400.0


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)


class Status(_Request):
    """How everything stands."""

    ask: Literal["status"]


class Why(_Request):
    """Which jobs this node would be refused now, as far as the node knows."""

    ask: Literal["why"]


class Refresh(_Request):
    """Probe again, and tell the registry all of it."""

    ask: Literal["refresh"]


class Drain(_Request):
    """Have the machine emptied, and stay so."""

    ask: Literal["drain"]
    reason: Annotated[Text, Field(min_length=1)] | None = None
    deadline_seconds: Annotated[float, Field(ge=0, le=LONGEST_DRAIN_SECONDS)] | None = None


class Resume(_Request):
    """Take the machine back, and have it register."""

    ask: Literal["resume"]


class JobStart(_Request):
    """A job is in flight, until its connection ends, or with `pid` that process."""

    ask: Literal["job_start"]
    job_id: str
    pid: Pid | None = None
    own_pid: Pid | None = None
    """The asker's own number, by which it shows whether it counts processes as the agent does."""


class JobFinish(_Request):
    """A job is not in flight any more."""

    ask: Literal["job_finish"]
    job_id: str


class JobList(_Request):
    """Which jobs are in flight."""

    ask: Literal["job_list"]


Request = Status | Why | Refresh | Drain | Resume | JobStart | JobFinish | JobList


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why something is not done: a code for programs, a sentence for people."""

    code: str
    message: str


ASKS = ("status", "why", "refresh", "drain", "resume", "job_start", "job_finish", "job_list")

_REQUEST: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="ask")])


def parse_request(line: bytes) -> Request | Refusal:
    """Read one line."""
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        return Refusal("malformed", "a question is one line of JSON")
    if not isinstance(document, dict):
        return Refusal("malformed", "a question is a JSON object")
    if document.get("protocol") != PROTOCOL or document["protocol"] is True:
        return Refusal("unsupported_protocol", f"this agent speaks protocol {PROTOCOL}; say so in `protocol`")
    if document.get("ask") not in ASKS:
        return Refusal("unknown_question", f"`ask` is one of {', '.join(ASKS)}")
    return _validate(document)


def encode_answer(document: dict[str, Any]) -> bytes:
    """Write an answer as a line."""
    return _line({"protocol": PROTOCOL, "ok": True, "answer": document})


def encode_refusal(refusal: Refusal) -> bytes:
    """Write a refusal as a line."""
    return _line({"protocol": PROTOCOL, "ok": False, "code": refusal.code, "message": refusal.message})


def _validate(document: dict[str, Any]) -> Request | Refusal:
    try:
        return _REQUEST.validate_python(document)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(str(step) for step in fault["loc"][1:]) or "it"
        return Refusal("malformed", f"{where}: {fault['msg']}")


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


# Jobs as programs on this machine announce them: whose each is, since when, and what ends it.
#
# A job ends when it is said to be finished, and with what holds it: the connection that announced it,
# or the process that was named. It counts nothing (`jobs` does) and believes no number of a process
# that it cannot look at. Nobody ends or takes over a job of another user, unless he may give orders here.


@dataclass(frozen=True, slots=True)
class AnnouncedJob:
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

    def __init__(self, jobs: Jobs, house: AccessPolicy) -> None:
        self._jobs = jobs
        self._house = house
        self._announced: dict[str, AnnouncedJob] = {}

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
        self._announced[job_id] = AnnouncedJob(
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

    def listed(self) -> list[AnnouncedJob]:
        """List those in flight, the longest first; forgets those that ended otherwise."""
        living = self._jobs.ids or ()
        self._announced = {job_id: self._announced[job_id] for job_id in living if job_id in self._announced}
        return list(self._announced.values())

    def _others(self, job_id: str, peer: Peer) -> Refusal | None:
        self.listed()
        announced = self._announced.get(job_id)
        if announced is None or announced.uid == peer.uid or self._house.may_operate(peer):
            return None
        return Refusal("forbidden", f"job {job_id!r} is of user {announced.uid}: ask him, or root")


def connection_worker(number: int, peer: Peer, root: Path = Path("/")) -> Worker:
    """The worker behind a connection; its process where that can be seen. Reads `/proc`."""
    found = None if peer.pid is None else process(peer.pid, root)
    if found is None:
        return Worker(f"connection-{number}")
    return Worker(f"connection-{number}", found.pid, found.started)


def process_worker(
    pid: int, peer: Peer, house: AccessPolicy, *, own_pid: int | None = None, root: Path = Path("/")
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
    if owner != peer.uid and not house.may_operate(peer):
        return Refusal("forbidden", f"process {pid} is of user {owner}: name one of your own")
    return of_process(found.pid, found.started)


def _owner(pid: int, root: Path) -> int | None:
    try:
        return (root / "proc" / str(pid)).stat().st_uid
    except OSError:
        return None
