"""What operators request: drain, resume, cordon, removal and commands, whatever the node's status."""

import pytest

from gpu_agent.registry.actions import Refusal, Send, SendStatus
from gpu_agent.registry.events import (
    Command,
    ConnectionLost,
    ControlRequested,
    CordonRequested,
    DrainRequested,
    Event,
    RegistrationReceived,
    ReleaseRequested,
    RemovalRequested,
    ResumeRequested,
    RotationRequested,
    UnregistrationReceived,
)
from gpu_agent.registry.node import LONGEST_DRAIN_SECONDS
from gpu_agent.registry.operations import DRAINED_BY_NODE, NODE_NOT_CONNECTED
from gpu_agent.wire.messages import NodeControl, NodeUnregister
from tests.registry.harness import (
    Registry,
    answer,
    closed,
    codes,
    declaration,
    figures,
    logged,
    of,
    proof,
    statuses,
)


def test_after_an_operators_drain_the_session_stays_open_and_heartbeats_are_recorded() -> None:
    registry = Registry()
    record = registry.ready()
    done = registry.drain()
    assert statuses(done) == ["draining", "offline"]
    assert closed(done) == []
    registry.heartbeats(10)
    assert (record.status, record.connection) == ("offline", 1)
    assert record.liveness.last_heartbeat_at == registry.now
    assert of(SendStatus, done)[-1].clears_when == "an operator resumes the node"


def test_resume_takes_a_drained_node_back_without_a_new_registration() -> None:
    registry = Registry()
    record = registry.ready()
    registry.drain()
    assert statuses(registry.do(ResumeRequested(registry.ref(), "node-1"))) == ["registering"]
    assert (record.reason_code, record.desired.drain) == ("resumed", None)
    registry.heartbeats(2)
    assert record.status == "registering"
    registry.heartbeats(1)
    assert record.status == "ready"


def test_resume_takes_a_draining_node_back_with_its_claims() -> None:
    registry = Registry()
    record = registry.ready()
    registry.claim("job-1")
    registry.drain()
    registry.do(ResumeRequested(registry.ref(), "node-1"))
    assert record.status == "registering"
    assert list(record.claims) == ["job-1"]


def test_resume_lifts_a_drain_that_has_not_started() -> None:
    registry = Registry()
    registry.register()
    registry.drain()
    assert answer(registry.do(ResumeRequested(registry.ref(), "node-1"))) is None
    registry.heartbeats(3)
    assert registry.node().status == "ready"


def test_resume_of_a_drained_node_that_is_gone_lets_it_come_back_by_registering() -> None:
    registry = Registry()
    record = registry.ready()
    registry.drain()
    registry.do(ConnectionLost(1))
    registry.do(ResumeRequested(registry.ref(), "node-1"))
    assert (record.status, record.desired.drain) == ("offline", None)
    registry.come_back(2)
    registry.pass_time(2.0)
    for _ in range(3):
        registry.heartbeat(2, "node-1")
    assert record.status == "ready"


def test_resume_of_a_node_that_its_own_machine_drained_is_refused_with_what_to_run_there() -> None:
    registry = Registry()
    record = registry.ready()
    registry.claim("job-1")
    registry.do(UnregistrationReceived(1, NodeUnregister(node_id="node-1", reason="new fans", drain=True)))
    for status in ("draining", "offline"):
        assert record.status == status
        refused = answer(registry.do(ResumeRequested(registry.ref(), "node-1")))
        assert isinstance(refused, Refusal)
        assert refused.code == DRAINED_BY_NODE
        assert "(new fans)" in refused.message
        assert "`gpu-agent resume` on that machine" in refused.message
        registry.do(ReleaseRequested(registry.ref(), "job-1"))
    registry.come_back(2)
    assert answer(registry.do(ResumeRequested(registry.ref(), "node-1"))) is None


def test_a_drain_requested_while_registering_is_remembered() -> None:
    registry = Registry()
    registry.register()
    assert statuses(registry.drain()) == []
    assert registry.node().status == "registering"
    assert statuses(registry.heartbeats(3)) == ["ready", "draining", "offline"]


def test_a_drain_requested_while_registering_begins_when_the_node_degrades_too() -> None:
    registry = Registry()
    registry.register()
    registry.drain()
    sent = registry.heartbeat(gpus=figures(health="lost"))
    assert statuses(sent) == ["degraded", "draining", "offline"]


def test_a_drained_node_that_registers_again_is_never_schedulable_in_between() -> None:
    registry = Registry()
    record = registry.ready()
    registry.drain()
    registry.do(ConnectionLost(1))
    registry.come_back(2)
    for turn in range(3):
        assert registry.claim(f"job-{turn}").counts == {"status_not_ready": 1}
        registry.heartbeat(2, "node-1")
    assert [step.target.value for step in record.history[-4:]] == [
        "registering",
        "ready",
        "draining",
        "offline",
    ]
    assert registry.claim("job-9").counts == {"status_not_ready": 1}
    assert record.connection == 2


def test_registering_while_an_operators_drain_runs_leaves_the_status() -> None:
    registry = Registry()
    record = registry.ready()
    registry.claim("job-1")
    registry.drain()
    registry.do(ConnectionLost(1))
    sent = registry.do(RegistrationReceived(2, declaration(), "unused", credential=proof("node-1")))
    assert statuses(sent, 2) == ["draining"]
    assert (record.status, record.connection) == ("draining", 2)


def test_a_drain_requested_again_moves_its_deadline() -> None:
    registry = Registry()
    record = registry.ready()
    registry.claim("job-1")
    registry.drain(deadline_seconds=500.0)
    registry.drain(deadline_seconds=0.0)
    assert (record.status, record.reason_code) == ("offline", "drain_deadline")


def test_a_cordon_excludes_a_node_from_new_jobs_and_nothing_else() -> None:
    registry = Registry()
    record = registry.ready()
    assert registry.claim("job-1").grants[0].node_id == "node-1"
    assert statuses(registry.do(CordonRequested(registry.ref(), "node-1", "new fans"))) == []
    assert (record.status, record.desired.cordoned) == ("ready", "new fans")
    assert registry.claim("job-2").counts == {"cordoned": 1}
    registry.do(CordonRequested(registry.ref(), "node-1", None))
    assert registry.claim("job-2").grants[0].node_id == "node-1"


def test_removing_a_live_node_sends_it_away_and_lets_its_record_go() -> None:
    registry = Registry()
    registry.ready()
    registry.claim("job-1")
    removed = registry.do(RemovalRequested(registry.ref(), "node-1"))
    assert statuses(removed) == ["offline"]
    assert of(SendStatus, removed)[0].reason_code == "removed"
    assert closed(removed) == [(1, 1001)]
    assert len(logged(removed, "claim_lost")) == 1
    assert (registry.fleet.nodes(), registry.document_names) == ([], [])
    registry.do(ConnectionLost(1))
    assert codes(registry.register(2, "node-1"), 2) == []


def test_removing_a_drained_node_closes_its_open_session() -> None:
    registry = Registry()
    registry.ready()
    registry.drain()
    removed = registry.do(RemovalRequested(registry.ref(), "node-1"))
    assert closed(removed) == [(1, 1001)]
    assert registry.fleet.nodes() == []


@pytest.mark.parametrize(
    "event",
    [
        DrainRequested(7, "node-9"),
        ResumeRequested(7, "node-9"),
        CordonRequested(7, "node-9", ""),
        RemovalRequested(7, "node-9"),
    ],
    ids=lambda event: type(event).__name__,
)
def test_a_request_for_an_unknown_node_is_refused(event: Event) -> None:
    refused = answer(Registry().do(event))
    assert isinstance(refused, Refusal)
    assert (refused.code, "node-9" in refused.message) == ("UNKNOWN_NODE", True)


def test_no_drain_is_longer_than_any_job_may_take() -> None:
    registry = Registry()
    record = registry.ready()
    registry.heartbeat(running_jobs=("job-1",))
    registry.drain(deadline_seconds=1e15)
    assert record.desired.drain is not None
    assert record.desired.drain.deadline == registry.now + LONGEST_DRAIN_SECONDS


def test_a_draining_node_receives_another_deadline_and_of_another_reason() -> None:
    registry = Registry()
    record = registry.ready()
    registry.claim("job-1")
    registry.drain(deadline_seconds=500.0)
    again = registry.do(DrainRequested(registry.ref(), "node-1", 90.0, "new fans"))
    (sent,) = of(SendStatus, again)
    assert (sent.status, sent.drain_deadline) == ("draining", registry.now + 90.0)
    assert sent.reason == record.reason == "an operator requested a drain: new fans"
    assert [step.target.value for step in record.history].count("draining") == 1
    registry.heartbeats(6, every=10.0, running_jobs=("job-1",))
    assert record.status == "draining"
    registry.heartbeats(4, every=10.0, running_jobs=("job-1",))
    assert (record.status, record.reason_code) == ("offline", "drain_deadline")


def test_an_operator_takes_over_a_drain_that_the_node_requested() -> None:
    registry = Registry()
    record = registry.ready()
    registry.claim("job-1")
    registry.do(UnregistrationReceived(1, NodeUnregister(node_id="node-1", reason="reboot", drain=True)))
    assert record.reason == "the node itself requested a drain: reboot"
    registry.drain()
    assert record.reason == "an operator requested a drain: maintenance"
    registry.do(ReleaseRequested(registry.ref(), "job-1"))
    assert (record.status, record.connection) == ("offline", 1)


def test_a_drain_requested_for_an_offline_node_is_remembered_until_it_is_back() -> None:
    registry = Registry()
    record = registry.ready()
    registry.pass_time(46.0)
    registry.do(ConnectionLost(1))
    assert statuses(registry.drain()) == []
    registry.come_back(2)
    for _ in range(3):
        registry.pass_time(2.0)
        registry.heartbeat(2, "node-1")
    assert (record.status, record.reason_code, record.connection) == ("offline", "drain_complete", 2)


def test_a_drained_node_that_registers_on_its_open_session_is_emptied_again() -> None:
    registry = Registry()
    record = registry.ready()
    registry.drain()
    registry.come_back(1)
    assert record.status == "registering"
    assert statuses(registry.heartbeats(3)) == ["ready", "draining", "offline"]


def test_a_drain_outlives_silence() -> None:
    registry = Registry()
    record = registry.ready()
    registry.claim("job-1")
    registry.drain()
    registry.pass_time(46.0)
    assert (record.status, record.reason_code) == ("offline", "heartbeat_timeout")
    assert record.desired.drain is not None
    registry.come_back(2)
    for _ in range(3):
        registry.pass_time(2.0)
        registry.heartbeat(2, "node-1")
    assert record.status == "offline"
    assert registry.claim("job-2").counts == {"status_not_ready": 1}


def test_resume_of_a_node_that_is_not_drained_changes_nothing() -> None:
    registry = Registry()
    record = registry.ready()
    assert statuses(registry.do(ResumeRequested(registry.ref(), "node-1"))) == []
    assert (record.status, record.liveness.healthy_heartbeats) == ("ready", 3)


def test_a_cordon_stays_over_changes_of_status_and_registrations() -> None:
    registry = Registry()
    record = registry.ready()
    registry.do(CordonRequested(registry.ref(), "node-1", "new fans"))
    registry.drain()
    registry.do(ResumeRequested(registry.ref(), "node-1"))
    registry.come_back(2)
    for _ in range(3):
        registry.pass_time(2.0)
        registry.heartbeat(2, "node-1")
    assert (record.status, record.desired.cordoned) == ("ready", "new fans")
    assert registry.claim("job-1").counts == {"cordoned": 1}


@pytest.mark.parametrize("command", list(Command))
def test_a_command_is_sent_on_the_connection_of_the_node_and_logged(command: Command) -> None:
    registry = Registry()
    record = registry.ready()
    registry.stored.clear()
    done = registry.do(ControlRequested(registry.ref(), "node-1", command, "a new fan", "ada"))
    assert [(one.connection, one.message) for one in of(Send, done)] == [
        (1, NodeControl(command=command.value, reason="an operator requested it"))
    ]
    assert answer(done) is None
    (entry,) = logged(done, "node_control_sent")
    why = {"reason": "a new fan", "by": "ada"}
    assert entry.fields == {"node_id": "node-1", "command": command.value, **why}
    assert (registry.stored, record.status) == ([], "ready")


def test_a_command_to_a_node_without_an_open_session_is_refused_with_what_to_expect() -> None:
    registry = Registry()
    registry.ready()
    registry.do(ConnectionLost(1))
    refused = answer(registry.do(ControlRequested(registry.ref(), "node-1", Command.REFRESH)))
    assert isinstance(refused, Refusal)
    assert refused.code == NODE_NOT_CONNECTED
    assert refused.message == (
        "node 'node-1' has no open session, so it cannot receive this: "
        "it registers by itself once its agent runs and reaches the registry"
    )


@pytest.mark.parametrize(
    ("auth_off", "way"), [(False, "`gpu-agent registry node readmit node-1`"), (True, "by itself")]
)
def test_a_command_to_a_node_whose_token_was_ended_names_its_way_back(*, auth_off: bool, way: str) -> None:
    registry = Registry(auth_off=auth_off)
    registry.ready()
    registry.do(RotationRequested(registry.ref(), "node-1", revoke_now=True))
    registry.do(ConnectionLost(1))
    refused = answer(registry.do(ControlRequested(registry.ref(), "node-1", Command.REFRESH)))
    assert isinstance(refused, Refusal)
    assert way in refused.message
    assert ("readmit" in refused.message) != auth_off


def test_a_drained_node_whose_session_is_open_receives_commands() -> None:
    registry = Registry()
    registry.ready()
    registry.drain()
    assert answer(registry.do(ControlRequested(registry.ref(), "node-1", Command.REREGISTER))) is None


def test_a_command_to_a_node_that_is_not_known_is_refused() -> None:
    refused = answer(Registry().do(ControlRequested(7, "node-9", Command.REFRESH)))
    assert isinstance(refused, Refusal)
    assert (refused.code, "node-9" in refused.message) == ("UNKNOWN_NODE", True)
