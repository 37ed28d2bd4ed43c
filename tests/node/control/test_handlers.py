""""""

import json
import os
from pathlib import Path
from typing import Any, get_args

import pytest

from gpu_agent.node.control.access import AccessPolicy, Peer
from gpu_agent.node.control.handlers import RequestHandler
from gpu_agent.node.control.requests import (
    ASKS,
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
    connection_worker,
    encode_answer,
    encode_refusal,
    parse_request,
    process_worker,
)
from gpu_agent.node.jobs import Jobs, Worker
from gpu_agent.probe.host.processes import process
from gpu_agent.session.types import DrainRequested, ResumeRequested, State
from tests.node.control_harness import READY, FakeAgent, snapshot

HOUSE = AccessPolicy(uid=900, group=800, operators=700)
MEMBER, OPERATOR = Peer(5, frozenset({800}), None), Peer(6, frozenset({700}), None)
STATUS, DRAIN, RESUME = Status(ask="status"), Drain(ask="drain"), Resume(ask="resume")
START = JobStart(ask="job_start", job_id="job-1")


async def asked(
    question: Request,
    peer: Peer = MEMBER,
    *,
    agent: FakeAgent | None = None,
    answers: RequestHandler | None = None,
) -> dict[str, Any] | Refusal:
    answering = answers or RequestHandler(agent or FakeAgent(), HOUSE, wall=lambda: 5000.0)
    refusal = await answering.heed(question, peer)
    return refusal or answering.to(question, peer, Worker("connection-1"))


async def test_whoever_is_let_in_may_look() -> None:
    agent = FakeAgent()
    for question in (STATUS, Why(ask="why"), Refresh(ask="refresh"), JobList(ask="job_list")):
        assert not isinstance(await asked(question, agent=agent), Refusal)
    assert agent.refreshed == 1
    assert agent.orders == []


@pytest.mark.parametrize("question", [DRAIN, RESUME])
async def test_who_may_only_look_gives_no_orders(question: Request) -> None:
    agent = FakeAgent()
    reply = await asked(question, agent=agent)
    assert isinstance(reply, Refusal)
    assert (reply.code, "socket_operators" in reply.message) == ("forbidden", True)
    assert agent.orders == []


async def test_a_drain_is_taken_with_its_reason_and_deadline() -> None:
    agent = FakeAgent()
    question = Drain(ask="drain", reason="new fans", deadline_seconds=60)
    reply = await asked(question, OPERATOR, agent=agent)
    assert agent.orders == [DrainRequested("new fans", 60)]
    assert isinstance(reply, dict)
    assert reply["drain"]["reason"] == "new fans"
    await asked(DRAIN, OPERATOR, agent=agent)
    assert agent.orders[-1] == DrainRequested("its owner drains it", None)


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
    agent = FakeAgent()
    agent.stands = snapshot(**standing)
    assert isinstance(await asked(RESUME, OPERATOR, agent=agent), dict)
    assert agent.orders == [ResumeRequested()]


@pytest.mark.parametrize("status", ["draining", "offline"])
async def test_an_operators_drain_is_only_his_to_lift_and_the_refusal_names_the_command(status: str) -> None:
    agent = FakeAgent()
    agent.stands = snapshot(registry_status=READY.model_copy(update={"status": status}))
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
    agent = FakeAgent()
    answers = RequestHandler(agent, HOUSE, wall=lambda: 5000.0)
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


def line(**fields: object) -> bytes:
    return json.dumps({"protocol": 1, **fields}).encode()


def refused(words: bytes) -> Refusal:
    found = parse_request(words)
    assert isinstance(found, Refusal), found
    return found


def test_every_question_is_named_once() -> None:
    asks = [get_args(kind.model_fields["ask"].annotation)[0] for kind in get_args(Request)]
    assert tuple(asks) == ASKS


def test_a_question_is_read_and_what_a_newer_program_adds_is_ignored() -> None:
    assert parse_request(line(ask="status", colour="blue")) == Status(ask="status")
    assert parse_request(line(ask="job_start", job_id="j", pid=7)) == JobStart(
        ask="job_start", job_id="j", pid=7
    )
    assert parse_request(line(ask="drain", deadline_seconds=60)) == Drain(ask="drain", deadline_seconds=60)


@pytest.mark.parametrize(
    "words",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"[" * 10_000,
        b'{"a":' * 3000,
        line(ask="job_start"),
        line(ask="job_start", job_id=7),
        line(ask="job_start", job_id="j", pid=0),
        line(ask="job_start", job_id="j", pid=True),
        line(ask="job_start", job_id="j", pid=2**31),
        line(ask="drain", deadline_seconds=-1),
        line(ask="drain", deadline_seconds="soon"),
        line(ask="drain", reason=""),
        line(ask="drain", reason="x" * 5000),
        b'{"protocol": 1, "ask": "drain", "deadline_seconds": NaN}',
        b'{"protocol": 1, "ask": "drain", "deadline_seconds": 1e999}',
    ],
)
def test_what_is_no_question_is_refused_in_words(words: bytes) -> None:
    assert refused(words).code == "malformed"


@pytest.mark.parametrize("protocol", [0, 2, "1", True, None, [1]])
def test_another_protocol_is_refused_with_the_one_that_is_spoken(protocol: object) -> None:
    found = refused(line(protocol=protocol, ask="status"))
    assert (found.code, "protocol 1" in found.message) == ("unsupported_protocol", True)


@pytest.mark.parametrize("ask", ["dance", None, 7, ["status"], {}])
def test_an_unknown_question_is_answered_with_those_that_there_are(ask: object) -> None:
    found = refused(line(ask=ask))
    assert found.code == "unknown_question"
    assert all(one in found.message for one in ASKS)


def test_answers_and_refusals_are_one_line_each() -> None:
    assert json.loads(encode_answer({"x": "a\nb"})) == {"protocol": 1, "ok": True, "answer": {"x": "a\nb"}}
    assert json.loads(encode_refusal(Refusal("forbidden", "no\nway"))) == {
        "protocol": 1,
        "ok": False,
        "code": "forbidden",
        "message": "no\nway",
    }
    assert encode_answer({"x": "a\nb"}).count(b"\n") == encode_refusal(Refusal("c", "a\nb")).count(b"\n") == 1


JOBS_HOUSE = AccessPolicy(uid=900, group=800)
ANN, BOB, ROOT = (Peer(uid, frozenset({800}), pid=None) for uid in (5, 6, 0))
ONE, OTHER = Worker("connection-1"), Worker("process-7-70", 7, 70)


def announced(*jobs: tuple[str, Worker, Peer]) -> tuple[AnnouncedJobs, Jobs]:
    counted = Jobs()
    told = AnnouncedJobs(counted, JOBS_HOUSE)
    for job_id, worker, peer in jobs:
        assert told.start(job_id, worker, peer, held_by="connection", now=100.0) is None
    return told, counted


def code(refusal: object) -> str | None:
    return refusal.code if isinstance(refusal, Refusal) else None


def test_what_is_announced_is_counted_and_told_with_whose_it_is() -> None:
    told, counted = announced(("a", ONE, ANN))
    assert counted.ids == ("a",)
    assert [job.document() for job in told.listed()] == [
        {"job_id": "a", "uid": 5, "since": 100.0, "pid": None, "held_by": "connection"}
    ]


def test_a_connection_that_ends_takes_its_jobs_and_no_others() -> None:
    told, counted = announced(("a", ONE, ANN), ("b", OTHER, ANN))
    assert told.holds(ONE)
    told.gone(ONE)
    assert counted.ids == ("b",)
    assert (told.holds(ONE), told.holds(OTHER)) == (False, True)


def test_a_job_that_ended_otherwise_is_forgotten() -> None:
    told, counted = announced(("a", OTHER, ANN))
    counted.gone(OTHER)  # its process is no more
    assert told.listed() == []
    assert told.start("a", ONE, BOB, held_by="connection", now=200.0) is None


def test_a_job_that_is_announced_again_keeps_its_beginning_and_changes_its_holder() -> None:
    told, _ = announced(("a", ONE, ANN))
    told.start("a", OTHER, ANN, held_by="process", now=200.0)
    (job,) = told.listed()
    assert (job.since, job.held_by, job.pid) == (100.0, "process", 7)
    told.gone(ONE)
    assert told.listed() == [job]


def test_nobody_ends_or_takes_over_anothers_job_but_who_may_give_orders() -> None:
    told, counted = announced(("a", ONE, ANN))
    assert code(told.finish("a", BOB)) == "forbidden"
    assert code(told.start("a", OTHER, BOB, held_by="process", now=1.0)) == "forbidden"
    assert [job.uid for job in told.listed()] == [ANN.uid]
    assert told.finish("a", ROOT) is None
    assert counted.ids == ()


def test_a_job_that_is_not_in_flight_cannot_be_finished() -> None:
    told, _ = announced(("a", ONE, ANN))
    assert told.finish("a", ANN) is None
    assert code(told.finish("a", ANN)) == "unknown_job"


def test_what_cannot_be_counted_is_refused() -> None:
    told, _ = announced()
    assert code(told.start("a\nb", ONE, ANN, held_by="connection", now=1.0)) == "not_counted"
    assert told.listed() == []


def test_a_worker_is_known_by_its_process_where_that_can_be_seen(tmp_path: Path) -> None:
    here = Peer(0, frozenset(), os.getpid())
    ours = process(os.getpid())
    assert ours is not None
    assert connection_worker(3, here) == Worker("connection-3", os.getpid(), ours.started)
    assert connection_worker(3, here, tmp_path) == Worker("connection-3")
    assert connection_worker(3, ANN) == Worker("connection-3")


@pytest.mark.parametrize("uid", [os.getuid(), 900, 0])
def test_a_process_may_be_named_by_its_owner_and_by_who_gives_orders(uid: int) -> None:
    worker = process_worker(os.getpid(), Peer(uid, frozenset(), os.getpid()), JOBS_HOUSE)
    ours = process(os.getpid())
    assert ours is not None
    assert worker == Worker(f"process-{os.getpid()}-{ours.started}", os.getpid(), ours.started)


def test_a_process_of_somebody_else_or_none_is_refused(tmp_path: Path) -> None:
    stranger, root = (Peer(uid, frozenset({800}), os.getpid()) for uid in (os.getuid() + 12345, 0))
    assert code(process_worker(os.getpid(), stranger, JOBS_HOUSE)) == "forbidden"
    assert code(process_worker(os.getpid(), root, JOBS_HOUSE, root=tmp_path)) == "unknown_process"


def test_the_numbers_of_another_container_name_nobody_here() -> None:
    here = Peer(0, frozenset(), os.getpid())
    assert isinstance(process_worker(os.getpid(), here, JOBS_HOUSE, own_pid=os.getpid()), Worker)
    elsewhere = process_worker(os.getpid(), here, JOBS_HOUSE, own_pid=os.getpid() + 1)
    assert isinstance(elsewhere, Refusal)
    assert (elsewhere.code, "job run" in elsewhere.message) == ("unknown_process", True)
    assert code(process_worker(os.getpid(), ROOT, JOBS_HOUSE, own_pid=1)) == "unknown_process"
    assert code(process_worker(os.getpid(), ROOT, JOBS_HOUSE)) == "unknown_process"


def test_a_connection_that_ends_leaves_its_process_a_worker_until_that_ends_too() -> None:
    told, counted = announced(("a", Worker("connection-1", 7, 70), ANN))
    told.gone(Worker("connection-1", 7, 70))
    assert (counted.ids, counted.workers) == ((), (Worker("process-7-70", 7, 70),))
    told.gone(Worker("connection-2", 8, 80))  # has announced nothing
    assert counted.workers == (Worker("process-7-70", 7, 70),)
