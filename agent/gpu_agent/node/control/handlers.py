"""What the agent answers to each request on the control socket, once the caller is known.

Nothing here waits for the registry: the session takes a drain or a resume, and `status` shows the outcome.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol, assert_never

from gpu_agent.node.control.access import AccessPolicy, Peer
from gpu_agent.node.control.explain import explain_document
from gpu_agent.node.control.requests import (
    AnnouncedJobs,
    Drain,
    JobFinish,
    JobList,
    JobStart,
    Refresh,
    Refusal,
    Request,
    Resume,
    Status,
    Why,
    process_worker,
)
from gpu_agent.node.control.status import Instant, status_document
from gpu_agent.node.jobs import Jobs, Worker
from gpu_agent.node.snapshot import Snapshot
from gpu_agent.runtime.logs import Logger
from gpu_agent.session.types import DrainRequested, OwnerRequest, ResumeRequested, State
from gpu_agent.wire.codes import NodeStatus

_EMPTYING = frozenset({NodeStatus.DRAINING, NodeStatus.OFFLINE})
_LOG = Logger("node.control")


class ControlledAgent(Protocol):
    """What is needed of the agent."""

    jobs: Jobs

    def snapshot(self) -> Snapshot:
        """The agent as it stands."""

    async def order(self, order: OwnerRequest) -> None:
        """Have the session take an order, and return once it has."""

    async def refresh(self) -> None:
        """Probe again, and return once that has ended."""


class RequestHandler:
    """All answers, for one agent."""

    def __init__(
        self, agent: ControlledAgent, house: AccessPolicy, *, wall: Callable[[], float] = time.time
    ) -> None:
        self._agent = agent
        self._house = house
        self._wall = wall
        self._started_at = wall()
        self.jobs = AnnouncedJobs(agent.jobs, house)

    async def heed(self, question: Request, peer: Peer) -> Refusal | None:
        """Have done what is asked for, as far as it must be waited for; returns why it is not done."""
        match question:
            case Refresh():
                await self._agent.refresh()
            case Drain() | Resume():
                return await self._ordered(question, peer)
            case Status() | Why() | JobStart() | JobFinish() | JobList():
                pass
            case _ as unreachable:
                assert_never(unreachable)
        return None

    def to(self, question: Request, peer: Peer, worker: Worker) -> dict[str, Any] | Refusal:
        """Answer one question of somebody who has been let in, once it is heeded, and wait for nothing.

        `worker` is who he is when he announces.
        """
        match question:
            case Status() | Refresh() | Drain() | Resume():
                return self._status()
            case Why():
                in_flight = self._agent.jobs.ids
                return explain_document(
                    self._agent.snapshot(),
                    None if in_flight is None else len(in_flight),
                    moment=self._moment(),
                )
            case JobStart() | JobFinish() | JobList():
                return self._of_jobs(question, peer, worker)
            case _ as unreachable:
                assert_never(unreachable)

    def _status(self) -> dict[str, Any]:
        listed = self.jobs.listed()
        announced = self._agent.jobs.ids is not None
        snapshot = self._agent.snapshot()
        return status_document(
            snapshot, listed, announced=announced, started_at=self._started_at, moment=self._moment()
        )

    async def _ordered(self, question: Drain | Resume, peer: Peer) -> Refusal | None:
        if not self._house.may_operate(peer):
            return Refusal(
                "forbidden",
                f"user {peer.uid} may look, but not {question.ask}: root and the agent's own user may, "
                "and members of the group that socket_operators names",
            )
        before = self._agent.snapshot()
        if isinstance(question, Resume):
            refusal = _nothing_to_resume(before)
            if refusal is not None:
                return refusal
            await self._agent.order(ResumeRequested())
        else:
            reason = question.reason or "its owner drains it"
            await self._agent.order(DrainRequested(reason, question.deadline_seconds))
        _LOG.info("local_order_accepted", order=question.ask, uid=peer.uid, pid=peer.pid)
        return None

    def _of_jobs(
        self, question: JobStart | JobFinish | JobList, peer: Peer, worker: Worker
    ) -> dict[str, Any] | Refusal:
        refusal: Refusal | None = None
        match question:
            case JobStart():
                refusal = self._start(question, peer, worker)
            case JobFinish():
                refusal = self.jobs.finish(question.job_id, peer)
            case JobList():
                pass
            case _ as unreachable:
                assert_never(unreachable)
        return refusal or {"in_flight": [job.document() for job in self.jobs.listed()]}

    def _start(self, question: JobStart, peer: Peer, worker: Worker) -> Refusal | None:
        holder: Worker | Refusal = worker
        held_by = "connection"
        if question.pid is not None:
            holder, held_by = (
                process_worker(question.pid, peer, self._house, own_pid=question.own_pid),
                "process",
            )
        if isinstance(holder, Refusal):
            return holder
        return self.jobs.start(question.job_id, holder, peer, held_by=held_by, now=self._wall())

    def _moment(self) -> Instant:
        return Instant(monotonic=asyncio.get_running_loop().time(), wall=self._wall())


def _nothing_to_resume(snapshot: Snapshot) -> Refusal | None:
    """A node never lifts an operator's drain (§3.6), and one that works has nothing to be resumed."""
    session, verdict = snapshot.session, snapshot.session.registry_status
    if session.drain_reason is not None or session.state is not State.REGISTERED:
        return None
    if verdict is not None and verdict.status in _EMPTYING:
        return Refusal(
            "operators_drain",
            "an operator of the registry has drained this node, and only he takes it back: "
            f"`gpu-agent registry resume {session.node_id or 'ID'}`",
        )
    return Refusal(
        "nothing_to_resume", "this node is neither drained nor waiting: there is nothing to resume"
    )
