from typing import Any

import pytest

from gpu_agent.node.jobs import Worker
from gpu_agent.node.socket.answers import Answers
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
from gpu_agent.session.events import DrainAsked, ResumeAsked
from gpu_agent.session.story import State
from tests.node.an_agent import READY, AnAgent, picture

HOUSE = House(uid=900, group=800, operators=700)
MEMBER, OPERATOR = Peer(5, frozenset({800}), None), Peer(6, frozenset({700}), None)
STATUS, DRAIN, RESUME = Status(ask="status"), Drain(ask="drain"), Resume(ask="resume")
START = JobStart(ask="job_start", job_id="job-1")


async def asked(
    question: Question, peer: Peer = MEMBER, *, agent: AnAgent | None = None, answers: Answers | None = None
) -> dict[str, Any] | Refusal:
    answering = answers or Answers(agent or AnAgent(), HOUSE, wall=lambda: 5000.0)
    refusal = await answering.heed(question, peer)
    return refusal or answering.to(question, peer, Worker("connection-1"))


async def test_whoever_is_let_in_may_look() -> None:
    agent = AnAgent()
    for question in (STATUS, Why(ask="why"), Refresh(ask="refresh"), JobList(ask="job_list")):
        assert not isinstance(await asked(question, agent=agent), Refusal)
    assert agent.refreshed == 1
    assert agent.orders == []


@pytest.mark.parametrize("question", [DRAIN, RESUME])
async def test_who_may_only_look_gives_no_orders(question: Question) -> None:
    agent = AnAgent()
    reply = await asked(question, agent=agent)
    assert isinstance(reply, Refusal)
    assert (reply.code, "socket_operators" in reply.message) == ("forbidden", True)
    assert agent.orders == []


async def test_a_drain_is_taken_with_its_reason_and_deadline() -> None:
    agent = AnAgent()
    question = Drain(ask="drain", reason="new fans", deadline_seconds=60)
    reply = await asked(question, OPERATOR, agent=agent)
    assert agent.orders == [DrainAsked("new fans", 60)]
    assert isinstance(reply, dict)
    assert reply["drain"]["reason"] == "new fans"
    await asked(DRAIN, OPERATOR, agent=agent)
    assert agent.orders[-1] == DrainAsked("its owner drains it", None)


@pytest.mark.parametrize(
    "standing",
    [
        {"drain_reason": "fans", "drain_until": 1e9},
        {"state": State.DRAINED, "drain_reason": "fans"},
        {"state": State.BACKING_OFF},
        {"state": State.YIELDED},
    ],
)
async def test_what_can_be_resumed_is(standing: dict[str, object]) -> None:
    agent = AnAgent()
    agent.stands = picture(**standing)
    assert isinstance(await asked(RESUME, OPERATOR, agent=agent), dict)
    assert agent.orders == [ResumeAsked()]


@pytest.mark.parametrize("status", ["draining", "offline"])
async def test_an_operators_drain_is_only_his_to_lift_and_the_refusal_names_the_command(status: str) -> None:
    agent = AnAgent()
    agent.stands = picture(verdict=READY.model_copy(update={"status": status}))
    reply = await asked(RESUME, OPERATOR, agent=agent)
    assert isinstance(reply, Refusal)
    assert reply.code == "operators_drain"
    assert "gpu-agent registry resume node-A" in reply.message
    assert agent.orders == []


async def test_a_node_that_works_has_nothing_to_be_resumed() -> None:
    reply = await asked(RESUME, OPERATOR)
    assert isinstance(reply, Refusal)
    assert reply.code == "nothing_to_resume"


async def test_jobs_are_announced_listed_and_finished() -> None:
    agent = AnAgent()
    answers = Answers(agent, HOUSE, wall=lambda: 5000.0)
    in_flight = {
        "in_flight": [{"job_id": "job-1", "uid": 5, "since": 5000.0, "pid": None, "held_by": "connection"}]
    }
    assert await asked(START, answers=answers) == in_flight
    assert await asked(JobList(ask="job_list"), answers=answers) == in_flight
    told = await asked(STATUS, answers=answers)
    assert isinstance(told, dict)
    assert told["jobs"] == {"announced": True, **in_flight}
    finish = JobFinish(ask="job_finish", job_id="job-1")
    assert await asked(finish, answers=answers) == {"in_flight": []}
    assert isinstance(await asked(finish, answers=answers), Refusal)
    assert agent.jobs.ids == ()


async def test_a_process_that_is_not_the_callers_holds_no_job() -> None:
    reply = await asked(JobStart(ask="job_start", job_id="j", pid=1), Peer(12345, frozenset({800}), None))
    assert isinstance(reply, Refusal)
    assert reply.code in ("forbidden", "unknown_process")
