"""What the agent answers to each request on the control socket, once the caller is known.

A request is one line of JSON, read strictly; unknown fields are ignored. Nothing here waits for the
registry: the session takes a drain or a resume, and `status` shows the outcome. No user ends or takes over
another user's job, except root, the agent's own user and the socket's operators.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, assert_never

from pydantic import Field, TypeAdapter, ValidationError

from gpu_agent.local.connection import PROTOCOL
from gpu_agent.node.control.access import AccessPolicy, Peer
from gpu_agent.node.control.status import Instant, job_info, status_document
from gpu_agent.node.jobs import Jobs, WorkerProcess, of_process
from gpu_agent.node.snapshot import Snapshot
from gpu_agent.probe.host.processes import counts_as_we_do, process
from gpu_agent.records import dataclass
from gpu_agent.runtime.logs import Logger
from gpu_agent.session.types import DrainRequested, OwnerRequest, ResumeRequested, State
from gpu_agent.wire.codes import NodeStatus
from gpu_agent.wire.control import (
    DrainRequest,
    ExplainRequest,
    JobFinishRequest,
    JobListRequest,
    JobsDocument,
    JobStartRequest,
    RefreshRequest,
    Request,
    ResumeRequest,
    StatusRequest,
)
from gpu_agent.wire.probe_document import Document

ASKS = ("status", "explain", "refresh", "drain", "resume", "job_start", "job_finish", "job_list")
"""What `ask` may be."""

Answer = Document

_DRAINED = frozenset({NodeStatus.DRAINING, NodeStatus.OFFLINE})
_REQUEST: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="ask")])
_LOG = Logger("node.control")


@dataclass(frozen=True, slots=True)
class ControlRefusal:
    """Why a request is refused: a code for programs, a sentence for people."""

    code: str
    message: str


class RequestHandler:
    """Handles the requests to one agent, whose parts it calls: its jobs, its snapshot, and two actions."""

    def __init__(
        self,
        jobs: Jobs,
        policy: AccessPolicy,
        *,
        snapshot: Callable[[], Snapshot],
        submit: Callable[[OwnerRequest], Awaitable[None]],
        refresh: Callable[[], Awaitable[None]],
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`submit` returns once the session has handled the request, `refresh` once a probe has ended."""
        self.jobs = jobs
        self._policy = policy
        self._snapshot = snapshot
        self._submit = submit
        self._refresh = refresh
        self._wall = wall
        self._started_at = wall()

    async def execute(self, request: Request, peer: Peer) -> ControlRefusal | None:
        """Do the part of a request that takes time; returns why it is refused."""
        match request:
            case RefreshRequest():
                await self._refresh()
            case DrainRequest() | ResumeRequest():
                return await self._drain_or_resume(request, peer)
            case (
                StatusRequest() | ExplainRequest() | JobStartRequest() | JobFinishRequest() | JobListRequest()
            ):
                pass
            case _ as unreachable:
                assert_never(unreachable)
        return None

    def answer(self, request: Request, peer: Peer, worker: WorkerProcess) -> Answer | ControlRefusal:
        """Answer an executed request without waiting; `worker` is the caller where it announces a job."""
        refusal: ControlRefusal | None = None
        match request:
            case StatusRequest() | RefreshRequest() | DrainRequest() | ResumeRequest():
                return status_document(
                    self._snapshot(), self.jobs, started_at=self._started_at, instant=self._instant()
                )
            case ExplainRequest():
                from gpu_agent.node.control.explain import explain  # noqa: PLC0415 - it loads the API's models

                return explain(self._snapshot(), self.jobs, instant=self._instant())
            case JobStartRequest():
                refusal = self._start_job(request, peer, worker)
            case JobFinishRequest():
                refusal = self._finish_job(request, peer)
            case JobListRequest():
                pass
            case _ as unreachable:
                assert_never(unreachable)
        return refusal or JobsDocument(in_flight=tuple(map(job_info, self.jobs.in_flight)))

    async def _drain_or_resume(
        self, request: DrainRequest | ResumeRequest, peer: Peer
    ) -> ControlRefusal | None:
        if not self._policy.may_operate(peer):
            return ControlRefusal(
                "forbidden",
                f"user {peer.uid} may read the state, but not {request.ask}: root and the agent's own user "
                "may, and members of the group that socket_operators names",
            )
        if isinstance(request, ResumeRequest):
            refusal = _refuse_resume(self._snapshot())
            if refusal is not None:
                return refusal
            await self._submit(ResumeRequested())
        else:
            reason = request.reason or "its owner drains it"
            await self._submit(DrainRequested(reason, request.deadline_seconds))
        _LOG.info("local_order_accepted", order=request.ask, uid=peer.uid, pid=peer.pid)
        return None

    def _start_job(
        self, request: JobStartRequest, peer: Peer, worker: WorkerProcess
    ) -> ControlRefusal | None:
        refusal = self._refuse_foreign_job(request.job_id, peer)
        if refusal is not None:
            return refusal
        holder: WorkerProcess | ControlRefusal = worker
        if request.pid is not None:
            holder = process_worker(request.pid, peer, self._policy, own_pid=request.own_pid)
        if isinstance(holder, ControlRefusal):
            return holder
        problem = self.jobs.start(request.job_id, holder, uid=peer.uid, now=self._wall())
        return None if problem is None else ControlRefusal("not_counted", problem)

    def _finish_job(self, request: JobFinishRequest, peer: Peer) -> ControlRefusal | None:
        refusal = self._refuse_foreign_job(request.job_id, peer)
        if refusal is None and not self.jobs.finish(request.job_id):
            return ControlRefusal(
                "unknown_job",
                f"no job {request.job_id!r} is in flight here; `gpu-agent job list` shows all",
            )
        return refusal

    def _refuse_foreign_job(self, job_id: str, peer: Peer) -> ControlRefusal | None:
        job = self.jobs.find(job_id)
        if job is None or job.uid == peer.uid or self._policy.may_operate(peer):
            return None
        return ControlRefusal("forbidden", f"job {job_id!r} is of user {job.uid}: ask that user, or root")

    def _instant(self) -> Instant:
        return Instant(monotonic=asyncio.get_running_loop().time(), wall=self._wall())


def parse_request(line: bytes) -> Request | ControlRefusal:
    """Read one line."""
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        return ControlRefusal("malformed", "a question is one line of JSON")
    if not isinstance(document, dict):
        return ControlRefusal("malformed", "a question is a JSON object")
    if document.get("protocol") != PROTOCOL or document["protocol"] is True:
        return ControlRefusal(
            "unsupported_protocol", f"this agent speaks protocol {PROTOCOL}; say so in `protocol`"
        )
    if document.get("ask") not in ASKS:
        return ControlRefusal("unknown_question", f"`ask` is one of {', '.join(ASKS)}")
    try:
        return _REQUEST.validate_python(document)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(step) for step in problem["loc"][1:]) or "it"
        return ControlRefusal("malformed", f"{where}: {problem['msg']}")


def encode_answer(answer: Answer) -> bytes:
    """Write an answer as a line."""
    return _line({"protocol": PROTOCOL, "ok": True, "answer": answer.model_dump(by_alias=True)})


def encode_refusal(refusal: ControlRefusal) -> bytes:
    """Write a refusal as a line."""
    return _line({"protocol": PROTOCOL, "ok": False, "code": refusal.code, "message": refusal.message})


def connection_worker(number: int, peer: Peer, root: Path = Path("/")) -> WorkerProcess:
    """The worker behind a connection, with its process where `/proc` shows it."""
    found = None if peer.pid is None else process(peer.pid, root)
    if found is None:
        return WorkerProcess(f"connection-{number}")
    return WorkerProcess(f"connection-{number}", found.pid, found.started)


def process_worker(
    pid: int, peer: Peer, policy: AccessPolicy, *, own_pid: int | None = None, root: Path = Path("/")
) -> WorkerProcess | ControlRefusal:
    """The worker that is one of the caller's own processes, by its pid. Reads `/proc`.

    The pid is refused where the caller's `own_pid` differs from the kernel's, or where the kernel shows the
    caller in another container: then the caller's pids are not the agent's.
    """
    if own_pid not in (None, peer.pid) or peer.pid is None or not counts_as_we_do(peer.pid, root):
        return ControlRefusal(
            "unknown_process",
            f"{pid} is a process id of another container, which means nothing to the agent: "
            "use `gpu-agent job run`, which needs no number",
        )
    found, owner = process(pid, root), _owner(pid, root)
    if found is None or owner is None:
        return ControlRefusal(
            "unknown_process",
            f"the agent sees no process {pid}: in another container, or where there is no /proc, "
            "use `gpu-agent job run`, which needs no number",
        )
    if owner != peer.uid and not policy.may_operate(peer):
        return ControlRefusal("forbidden", f"process {pid} is of user {owner}: name one of your own")
    return of_process(found.pid, found.started)


def _refuse_resume(snapshot: Snapshot) -> ControlRefusal | None:
    """A node never lifts an operator's drain (§3.6), and a ready one has nothing to resume."""
    session, status = snapshot.session, snapshot.session.registry_status
    if session.drain_reason is not None or session.state is not State.REGISTERED:
        return None
    if status is not None and status.status in _DRAINED:
        return ControlRefusal(
            "operators_drain",
            "an operator of the registry has drained this node, and only an operator can resume it: "
            f"`gpu-agent registry node resume {session.node_id or 'ID'}`",
        )
    return ControlRefusal(
        "nothing_to_resume", "this node is neither drained nor waiting: there is nothing to resume"
    )


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def _owner(pid: int, root: Path) -> int | None:
    try:
        return (root / "proc" / str(pid)).stat().st_uid
    except OSError:
        return None
