import json
import os
from pathlib import Path
from typing import Any, get_args

import pytest

from gpu_agent.node.control.access import AccessPolicy, Peer
from gpu_agent.node.control.handlers import (
    ASKS,
    ControlRefusal,
    RequestHandler,
    connection_worker,
    encode_answer,
    encode_refusal,
    parse_request,
    process_worker,
)
from gpu_agent.node.jobs import WorkerProcess, of_process
from gpu_agent.probe.host.processes import process
from gpu_agent.session.types import DrainRequested, ResumeRequested, State
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
from tests.node.control_harness import READY, FakeAgent, snapshot

POLICY = AccessPolicy(uid=900, group=800, operators=700)
MEMBER, OPERATOR = Peer(5, frozenset({800}), None), Peer(6, frozenset({700}), None)
STATUS, DRAIN, RESUME = StatusRequest(ask="status"), DrainRequest(ask="drain"), ResumeRequest(ask="resume")
START = JobStartRequest(ask="job_start", job_id="job-1")


async def asked(
    request: Request,
    peer: Peer = MEMBER,
    *,
    agent: FakeAgent | None = None,
    handler: RequestHandler | None = None,
) -> dict[str, Any] | ControlRefusal:
    handling = handler or (agent or FakeAgent()).handler(POLICY, wall=lambda: 5000.0)
    refusal = await handling.execute(request, peer)
    answer = refusal or handling.answer(request, peer, WorkerProcess("connection-1"))
    return answer if isinstance(answer, ControlRefusal) else dict(json.loads(encode_answer(answer))["answer"])


async def test_a_member_may_read() -> None:
    agent = FakeAgent()
    for request in (
        STATUS,
        ExplainRequest(ask="explain"),
        RefreshRequest(ask="refresh"),
        JobListRequest(ask="job_list"),
    ):
        assert not isinstance(await asked(request, agent=agent), ControlRefusal)
    assert agent.refreshed == 1
    assert agent.requests == []


@pytest.mark.parametrize("order", [DRAIN, RESUME])
async def test_a_member_may_not_drain_or_resume(order: Request) -> None:
    agent = FakeAgent()
    reply = await asked(order, agent=agent)
    assert isinstance(reply, ControlRefusal)
    assert (reply.code, "socket_operators" in reply.message) == ("forbidden", True)
    assert agent.requests == []


async def test_a_drain_reaches_the_session_with_its_reason_and_deadline() -> None:
    agent = FakeAgent()
    request = DrainRequest(ask="drain", reason="new fans", deadline_seconds=60)
    reply = await asked(request, OPERATOR, agent=agent)
    assert agent.requests == [DrainRequested("new fans", 60)]
    assert isinstance(reply, dict)
    assert reply["drain"]["reason"] == "new fans"
    await asked(DRAIN, OPERATOR, agent=agent)
    assert agent.requests[-1] == DrainRequested("its owner drains it", None)


@pytest.mark.parametrize(
    "standing",
    [
        {"drain_reason": "fans", "drain_until": 1e9},
        {"state": State.DRAINED, "drain_reason": "fans"},
        {"state": State.BACKING_OFF},
        {"state": State.YIELDED},
    ],
)
async def test_a_drained_or_waiting_node_resumes(standing: dict[str, object]) -> None:
    agent = FakeAgent()
    agent.state = snapshot(**standing)
    assert isinstance(await asked(RESUME, OPERATOR, agent=agent), dict)
    assert agent.requests == [ResumeRequested()]


@pytest.mark.parametrize("status", ["draining", "offline"])
async def test_the_refusal_to_lift_an_operators_drain_names_the_operators_command(status: str) -> None:
    agent = FakeAgent()
    agent.state = snapshot(registry_status=READY.model_copy(update={"status": status}))
    reply = await asked(RESUME, OPERATOR, agent=agent)
    assert isinstance(reply, ControlRefusal)
    assert reply.code == "operators_drain"
    assert "gpu-agent registry node resume node-A" in reply.message
    assert agent.requests == []


async def test_a_ready_node_has_nothing_to_resume() -> None:
    reply = await asked(RESUME, OPERATOR)
    assert isinstance(reply, ControlRefusal)
    assert reply.code == "nothing_to_resume"


async def test_jobs_are_announced_listed_and_finished() -> None:
    agent = FakeAgent()
    handler = agent.handler(POLICY, wall=lambda: 5000.0)
    in_flight = {
        "in_flight": [{"job_id": "job-1", "uid": 5, "since": 5000.0, "pid": None, "held_by": "connection"}]
    }
    assert await asked(START, handler=handler) == in_flight
    assert await asked(JobListRequest(ask="job_list"), handler=handler) == in_flight
    status = await asked(STATUS, handler=handler)
    assert isinstance(status, dict)
    assert status["jobs"] == {"announced": True, **in_flight}
    finish = JobFinishRequest(ask="job_finish", job_id="job-1")
    assert await asked(finish, handler=handler) == {"in_flight": []}
    assert isinstance(await asked(finish, handler=handler), ControlRefusal)
    assert agent.jobs.ids == ()


async def test_a_process_that_is_not_the_callers_holds_no_job() -> None:
    reply = await asked(
        JobStartRequest(ask="job_start", job_id="j", pid=1), Peer(12345, frozenset({800}), None)
    )
    assert isinstance(reply, ControlRefusal)
    assert reply.code in ("forbidden", "unknown_process")


def line(**fields: object) -> bytes:
    return json.dumps({"protocol": 1, **fields}).encode()


def refused(words: bytes) -> ControlRefusal:
    found = parse_request(words)
    assert isinstance(found, ControlRefusal), found
    return found


def test_every_request_is_named_once() -> None:
    asks = [get_args(kind.model_fields["ask"].annotation)[0] for kind in get_args(Request)]
    assert tuple(asks) == ASKS


def test_fields_that_a_newer_program_adds_are_ignored() -> None:
    assert parse_request(line(ask="status", colour="blue")) == StatusRequest(ask="status")
    assert parse_request(line(ask="job_start", job_id="j", pid=7)) == JobStartRequest(
        ask="job_start", job_id="j", pid=7
    )
    assert parse_request(line(ask="drain", deadline_seconds=60)) == DrainRequest(
        ask="drain", deadline_seconds=60
    )


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
def test_a_line_that_is_no_request_is_refused(words: bytes) -> None:
    assert refused(words).code == "malformed"


@pytest.mark.parametrize("protocol", [0, 2, "1", True, None, [1]])
def test_another_protocol_is_refused_with_the_supported_one(protocol: object) -> None:
    found = refused(line(protocol=protocol, ask="status"))
    assert (found.code, "protocol 1" in found.message) == ("unsupported_protocol", True)


@pytest.mark.parametrize("ask", ["dance", None, 7, ["status"], {}])
def test_an_unknown_request_is_refused_with_the_known_ones(ask: object) -> None:
    found = refused(line(ask=ask))
    assert found.code == "unknown_question"
    assert all(one in found.message for one in ASKS)


ANSWER = JobsDocument(in_flight=())


def test_answers_and_refusals_are_one_line_each() -> None:
    assert json.loads(encode_answer(ANSWER)) == {
        "protocol": 1,
        "ok": True,
        "answer": {"in_flight": []},
    }
    assert json.loads(encode_refusal(ControlRefusal("forbidden", "no\nway"))) == {
        "protocol": 1,
        "ok": False,
        "code": "forbidden",
        "message": "no\nway",
    }
    assert encode_answer(ANSWER).count(b"\n") == encode_refusal(ControlRefusal("c", "a\nb")).count(b"\n") == 1


ANN, BOB, ROOT = (Peer(uid, frozenset({800}), pid=None) for uid in (5, 6, 0))
ONE, OTHER = WorkerProcess("connection-1"), of_process(7, 70)


def code(reply: object) -> str | None:
    return reply.code if isinstance(reply, ControlRefusal) else None


async def test_a_user_ends_or_takes_over_only_own_jobs_and_an_operator_all() -> None:
    agent = FakeAgent()
    assert agent.jobs.start("job-1", ONE, uid=ANN.uid, now=100.0) is None
    finish = JobFinishRequest(ask="job_finish", job_id="job-1")
    assert code(await asked(finish, BOB, agent=agent)) == "forbidden"
    assert code(await asked(START, BOB, agent=agent)) == "forbidden"
    assert [job.uid for job in agent.jobs.in_flight] == [ANN.uid]
    assert code(await asked(finish, ROOT, agent=agent)) is None
    assert agent.jobs.ids == ()


async def test_a_job_whose_worker_ended_may_be_started_by_another_user() -> None:
    agent = FakeAgent()
    assert agent.jobs.start("job-1", OTHER, uid=ANN.uid, now=100.0) is None
    agent.jobs.remove_worker(OTHER)
    assert code(await asked(START, BOB, agent=agent)) is None


async def test_a_job_that_cannot_be_counted_is_refused() -> None:
    agent = FakeAgent()
    request = JobStartRequest(ask="job_start", job_id="a\nb")
    assert code(await asked(request, agent=agent)) == "not_counted"
    assert agent.jobs.in_flight == ()


def test_a_connections_worker_has_its_process_where_proc_shows_it(tmp_path: Path) -> None:
    here = Peer(0, frozenset(), os.getpid())
    ours = process(os.getpid())
    assert ours is not None
    assert connection_worker(3, here) == WorkerProcess("connection-3", os.getpid(), ours.started)
    assert connection_worker(3, here, tmp_path) == WorkerProcess("connection-3")
    assert connection_worker(3, ANN) == WorkerProcess("connection-3")


@pytest.mark.parametrize("uid", [os.getuid(), 900, 0])
def test_a_process_may_be_named_by_its_owner_and_by_operators(uid: int) -> None:
    worker = process_worker(os.getpid(), Peer(uid, frozenset(), os.getpid()), POLICY)
    ours = process(os.getpid())
    assert ours is not None
    assert worker == of_process(os.getpid(), ours.started)


def test_another_users_process_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    other, root = (Peer(uid, frozenset({800}), os.getpid()) for uid in (os.getuid() + 12345, 0))
    assert code(process_worker(os.getpid(), other, POLICY)) == "forbidden"
    assert code(process_worker(os.getpid(), root, POLICY, root=tmp_path)) == "unknown_process"


def test_process_ids_of_another_container_are_refused() -> None:
    here = Peer(0, frozenset(), os.getpid())
    assert isinstance(process_worker(os.getpid(), here, POLICY, own_pid=os.getpid()), WorkerProcess)
    elsewhere = process_worker(os.getpid(), here, POLICY, own_pid=os.getpid() + 1)
    assert isinstance(elsewhere, ControlRefusal)
    assert (elsewhere.code, "job run" in elsewhere.message) == ("unknown_process", True)
    assert code(process_worker(os.getpid(), ROOT, POLICY, own_pid=1)) == "unknown_process"
    assert code(process_worker(os.getpid(), ROOT, POLICY)) == "unknown_process"
