"""What the agent answers to each question over the local socket, once it is clear who asks.

It lets nobody in (`peer` says whom) and reads no socket. Nothing here waits for the registry:
an order is taken, and what comes of it is seen in `status`.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol, assert_never

from gpu_agent.node.jobs import Jobs, Worker
from gpu_agent.node.picture import Picture
from gpu_agent.node.socket.jobs import AnnouncedJobs, named
from gpu_agent.node.socket.peer import House, Peer
from gpu_agent.node.socket.requests import (
    Drain,
    JobFinish,
    JobList,
    JobStart,
    Question,
    Refresh,
    Refusal,
    Resume,
    Status,
    Why,
)
from gpu_agent.node.socket.status import Moment, status
from gpu_agent.node.socket.why import why
from gpu_agent.runtime.logs import EventLog
from gpu_agent.session.events import DrainAsked, Order, ResumeAsked
from gpu_agent.session.story import State
from gpu_agent.wire.codes import NodeStatus

_EMPTYING = frozenset({NodeStatus.DRAINING, NodeStatus.OFFLINE})
_LOG = EventLog("node.local")


class Asked(Protocol):
    """What is needed of the agent."""

    jobs: Jobs

    def picture(self) -> Picture:
        """The agent as it stands."""

    async def order(self, order: Order) -> None:
        """Have the session take an order, and return once it has."""

    async def refresh(self) -> None:
        """Probe again, and return once that has ended."""


class Answers:
    """All answers, for one agent."""

    def __init__(self, agent: Asked, house: House, *, wall: Callable[[], float] = time.time) -> None:
        self._agent = agent
        self._house = house
        self._wall = wall
        self._started_at = wall()
        self.jobs = AnnouncedJobs(agent.jobs, house)

    async def heed(self, question: Question, peer: Peer) -> Refusal | None:
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

    def to(self, question: Question, peer: Peer, worker: Worker) -> dict[str, Any] | Refusal:
        """Answer one question of somebody who has been let in, once it is heeded, and wait for nothing.

        `worker` is who he is when he announces.
        """
        match question:
            case Status() | Refresh() | Drain() | Resume():
                return self._status()
            case Why():
                in_flight = self._agent.jobs.ids
                return why(
                    self._agent.picture(),
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
        picture = self._agent.picture()
        return status(
            picture, listed, announced=announced, started_at=self._started_at, moment=self._moment()
        )

    async def _ordered(self, question: Drain | Resume, peer: Peer) -> Refusal | None:
        if not self._house.may_order(peer):
            return Refusal(
                "forbidden",
                f"user {peer.uid} may look, but not {question.ask}: root and the agent's own user may, "
                "and members of the group that socket_operators names",
            )
        before = self._agent.picture()
        if isinstance(question, Resume):
            refusal = _nothing_to_resume(before)
            if refusal is not None:
                return refusal
            await self._agent.order(ResumeAsked())
        else:
            reason = question.reason or "its owner drains it"
            await self._agent.order(DrainAsked(reason, question.deadline_seconds))
        _LOG.info("order_taken", order=question.ask, uid=peer.uid, pid=peer.pid)
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
            holder, held_by = named(question.pid, peer, self._house, own_pid=question.own_pid), "process"
        if isinstance(holder, Refusal):
            return holder
        return self.jobs.start(question.job_id, holder, peer, held_by=held_by, now=self._wall())

    def _moment(self) -> Moment:
        return Moment(monotonic=asyncio.get_running_loop().time(), wall=self._wall())


def _nothing_to_resume(picture: Picture) -> Refusal | None:
    """A node never lifts an operator's drain (§3.6), and one that works has nothing to be resumed."""
    session, verdict = picture.session, picture.session.verdict
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
