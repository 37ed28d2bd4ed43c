"""What the owner of the machine asks of it: to be emptied, taken back, looked at again (§3.6, §4)."""

import math
from dataclasses import replace
from typing import Any

import pytest

from gpu_agent.session.drain import OwnerDrain
from gpu_agent.session.types import (
    Connect,
    Connected,
    ConnectFailed,
    Credential,
    Declared,
    Disconnect,
    Disconnected,
    DrainRequested,
    Exit,
    OwnerChanged,
    Probe,
    RefreshRequested,
    ResumeRequested,
    Send,
    SendHeartbeat,
    SessionSettings,
    Started,
    State,
    StopRequested,
    StoreIdentity,
)
from gpu_agent.wire.declaration import Declaration, Owner
from gpu_agent.wire.messages import NodeControl, NodeStatusMessage, NodeUnregister
from tests.playbook import After
from tests.session.harness import (
    ACK,
    ADDRESS,
    CONNECT,
    WITH_GPU,
    WITHOUT_GPU,
    Play,
    awaiting,
    connecting,
    error,
    logged,
    play,
    ready,
    received,
    registered,
    registers,
    status,
)

FANS = DrainRequested("new fans", 60)
REFUSED = ConnectFailed("connection refused")


def asks_to_drain(deadline: float | None) -> Send:
    return Send(NodeUnregister(node_id="node-A", reason="new fans", drain=True, deadline_seconds=deadline))


def draining() -> Play:
    """A ready machine that its owner drains, which its registry has confirmed."""
    session = ready()
    assert session >> FANS << SendHeartbeat << asks_to_drain(60)
    assert session >> status("draining", timestamp=1000, details={"drain_deadline": 1060})
    return session


def drained() -> Play:
    session = draining()
    assert session >> status("offline", reason_code="drain_complete") << Disconnect(1000, "drained")
    assert session.machine.state is State.DRAINED
    return session


def test_a_drain_goes_on_with_heartbeats_and_ends_disconnected_without_an_exit() -> None:
    session = draining()
    assert (session.machine.snapshot.drain_reason, session.machine.snapshot.drain_until) == ("new fans", 60)
    assert session >> After(15) << SendHeartbeat
    assert session >> status("offline", reason_code="drain_complete") << Disconnect
    assert logged(session)[-2:] == ["node_status_changed", "node_drained"]
    assert session >> After(3600)
    assert session.machine.snapshot.last_refusal == "the drain that its owner asked for is complete"


def test_a_resume_of_a_drained_machine_connects_and_registers() -> None:
    session = drained()
    assert session >> ResumeRequested() << CONNECT >> Connected() << registers(node_id="node-A")
    assert session >> received(ACK) << StoreIdentity << SendHeartbeat
    assert session.machine.snapshot.drain_reason is None


def test_a_resumed_machine_presents_the_token_that_its_join_token_brought() -> None:
    session = connecting(node_id="node-A", has_token=True)
    refused = ConnectFailed("HTTP 401", http_status=401)
    assert session >> refused << Connect(Credential.JOIN, address=ADDRESS)
    assert session >> Connected() << registers(node_id="node-A")
    acknowledged = received(ACK.model_copy(update={"node_token": "gpun_0123abcd_new"}))
    assert session >> acknowledged << StoreIdentity << SendHeartbeat
    assert session >> FANS << SendHeartbeat << asks_to_drain(60)
    assert session >> status("offline", reason_code="drain_complete") << Disconnect(1000, "drained")
    assert session >> ResumeRequested() << CONNECT


def test_a_resume_while_draining_registers_on_the_same_socket() -> None:
    session = draining()
    assert session >> ResumeRequested() << registers(node_id="node-A")
    assert session >> received(ACK) << StoreIdentity << SendHeartbeat
    assert session.machine.state is State.REGISTERED


def test_a_node_never_lifts_an_operators_drain() -> None:
    session = ready()
    assert session >> status("draining", reason_code="drain_requested") >> ResumeRequested()
    assert session >> status("offline", reason_code="drain_complete") >> ResumeRequested()
    assert session.machine.state is State.REGISTERED


def test_a_drain_outlives_a_lost_connection_and_is_sent_again_after_the_ack() -> None:
    session = draining()
    assert session >> Disconnected(1006, "gone") >> After(0.5) << CONNECT >> Connected() << Send
    assert session >> received(ACK) << StoreIdentity << SendHeartbeat << asks_to_drain(59.5)
    assert session >> status("registering", reason_code="resumed", details={})
    assert session.machine.snapshot.drain_reason == "new fans"


def test_a_drain_requested_while_no_registry_is_reached_is_sent_to_the_first_that_is() -> None:
    session = connecting()
    assert session >> REFUSED >> FANS >> After(0.5) << CONNECT >> Connected() << Send
    assert session >> received(ACK) << StoreIdentity << SendHeartbeat << asks_to_drain(59.5)


def test_a_drain_requested_while_the_ack_is_awaited_is_sent_after_it() -> None:
    session = awaiting()
    assert session >> FANS >> received(ACK) << StoreIdentity << SendHeartbeat << asks_to_drain(60)


def test_a_drain_whose_time_is_over_before_a_registry_is_reached_connects_no_more() -> None:
    session = connecting()
    assert session >> REFUSED >> DrainRequested("new fans", 0.2) >> After(3600)
    assert session.machine.state is State.DRAINED
    assert "no registry was reached" in (session.machine.snapshot.last_refusal or "")


def test_a_registry_that_gives_no_verdict_is_waited_for_until_the_deadline_and_a_little() -> None:
    session = ready()
    assert session >> DrainRequested("new fans", 5) << SendHeartbeat << asks_to_drain(5)
    assert session >> After(9.9) >> After(0.1) << Disconnect(1000, "drained")
    assert session.machine.state is State.DRAINED


def test_an_operator_who_resumes_the_node_ends_the_drain_of_its_owner() -> None:
    session = draining()
    assert session >> status("registering", reason_code="resumed", details={})
    assert session.machine.snapshot.drain_reason is None
    session >> After(600)
    assert {type(action) for action in session.pending} == {SendHeartbeat}


def test_reregister_is_accepted_while_draining_and_the_drain_is_sent_again() -> None:
    session = draining()
    assert session >> received(NodeControl(command="reregister")) << registers(node_id="node-A")
    assert session >> received(ACK) << StoreIdentity << SendHeartbeat << asks_to_drain(60)


def test_a_stop_goes_before_a_drain() -> None:
    session = draining()
    assert session >> StopRequested("bye") << Send << Disconnect << Exit("bye")
    session = draining()
    assert session >> StopRequested("bye", drain=True, deadline_seconds=600) << SendHeartbeat << Send
    session >> After(65)
    assert session.machine.state is State.LEAVING


def test_a_drained_machine_leaves_when_it_is_stopped() -> None:
    assert drained() >> StopRequested("bye") << Exit("bye")


def test_a_resume_is_the_word_that_a_session_which_yielded_waits_for() -> None:
    session = ready()
    assert session >> error("SESSION_SUPERSEDED") << Disconnect
    assert session.machine.state is State.YIELDED
    assert session >> ResumeRequested() << CONNECT


def test_a_resume_ends_the_waiting_for_the_next_attempt() -> None:
    session = connecting()
    assert session >> REFUSED >> ResumeRequested() << CONNECT


@pytest.mark.parametrize("session", [play(), connecting(), awaiting(), ready()])
def test_a_resume_where_nothing_is_to_be_resumed_does_nothing(session: Play) -> None:
    assert session >> ResumeRequested()


def test_a_resume_without_a_gpu_waits_for_one() -> None:
    session = drained()
    assert session >> Declared(WITHOUT_GPU) >> ResumeRequested()
    assert session.machine.state is State.WAITING_GPU


def test_a_refresh_probes_and_sends_everything_with_the_next_heartbeat() -> None:
    session = ready()

    def is_full(action: Any) -> bool:  # noqa: ANN401 - a question for the playbook
        return isinstance(action, SendHeartbeat) and action.changed.hardware is not None

    assert session >> RefreshRequested() << Probe() >> Declared(WITH_GPU) << is_full


@pytest.mark.parametrize("session", [play(), connecting(), awaiting()])
def test_a_refresh_without_a_session_only_probes(session: Play) -> None:
    assert session >> RefreshRequested() << Probe()


def test_an_order_before_the_start_is_remembered() -> None:
    session = play()
    assert session >> Declared(WITH_GPU) >> FANS >> Started() << CONNECT >> Connected() << Send
    assert session >> received(ACK) << StoreIdentity << SendHeartbeat << asks_to_drain(60)


def test_a_drain_that_is_asked_for_while_the_agent_leaves_shortens_no_job() -> None:
    session = ready()
    assert session >> StopRequested("bye", drain=True, deadline_seconds=600) << SendHeartbeat << Send
    assert session >> DrainRequested("new fans", 0)
    assert session >> After(15) << SendHeartbeat
    assert session.machine.state is State.LEAVING
    assert session.machine.snapshot.drain_reason is None


# What an owner changes during a session goes out with a heartbeat, or with a registration where no heartbeat
# carries it.


MODERN = ACK.model_copy(update={"capability_schema_version": "1.1"})
ELSEWHERE = replace(WITH_GPU, owner=Owner(endpoint="10.0.0.7:9000"))
CHANGES = [
    pytest.param(ELSEWHERE, id="endpoint"),
    pytest.param(replace(WITH_GPU, features_supported={"speech_rate_control": True}), id="features"),
    pytest.param(replace(WITH_GPU, advanced_features=("kv_cache",)), id="advanced features"),
]


@pytest.mark.parametrize("declaration", CHANGES)
def test_what_no_heartbeat_carries_is_registered_again_on_the_same_socket(declaration: Declaration) -> None:
    play = ready(MODERN)
    assert play >> OwnerChanged() >> Declared(declaration) << registers(node_id="node-A")
    assert play >> received(MODERN) << StoreIdentity << SendHeartbeat
    assert play >> Declared(declaration) >> After(1.9)


def test_a_declaration_that_follows_later_is_waited_for() -> None:
    play = ready(MODERN)
    assert play >> OwnerChanged() >> Declared(WITH_GPU) >> After(5)
    assert play >> Declared(ELSEWHERE) << registers(endpoint="10.0.0.7:9000")


def test_what_a_heartbeat_carries_needs_no_registration() -> None:
    play = ready(MODERN)
    labelled = replace(WITH_GPU, owner=Owner(labels={"zone": "b"}))
    assert play >> OwnerChanged() >> After(5)
    assert play >> Declared(labelled) << (lambda action: action.changed.labels == {"zone": "b"})


def test_without_the_owners_word_a_feature_that_comes_and_goes_registers_nothing() -> None:
    play = ready(MODERN)
    assert play >> Declared(replace(WITH_GPU, features_supported={"emotion_detection": True})) >> After(5)


def test_a_change_while_the_registry_still_answers_is_registered_after_its_answer() -> None:
    play = awaiting()
    assert play >> OwnerChanged() >> Declared(ELSEWHERE)
    assert play >> received(MODERN) << StoreIdentity << registers(endpoint="10.0.0.7:9000")


def test_a_change_while_nothing_is_connected_goes_with_the_next_registration_and_no_other() -> None:
    play = registered(MODERN)
    play >> Disconnected(1006, "gone")
    play >> OwnerChanged() >> Declared(ELSEWHERE) >> After(2)
    play.pending.clear()
    assert play >> Connected() << registers(endpoint="10.0.0.7:9000")
    assert play >> received(MODERN) << StoreIdentity << SendHeartbeat


def test_an_older_scheduler_that_would_hold_the_id_against_us_is_left_in_peace() -> None:
    play = ready()
    assert play >> OwnerChanged() >> Declared(ELSEWHERE) >> After(5)


def test_a_node_that_leaves_registers_no_more() -> None:
    play = ready(MODERN)
    play >> StopRequested("bye", drain=True)
    play.pending.clear()
    assert play >> OwnerChanged() >> Declared(ELSEWHERE)
    assert play.machine.state is State.LEAVING


def test_an_owner_s_drain_outlives_registrations_that_follow_each_other() -> None:
    play = ready(MODERN)
    drain = DrainRequested("new fans", 60)
    assert play >> drain << SendHeartbeat << Send
    assert play >> status("draining", timestamp=1000, details={"drain_deadline": 1060})
    assert play >> OwnerChanged() >> Declared(ELSEWHERE) << registers(endpoint="10.0.0.7:9000")
    assert play >> OwnerChanged() >> Declared(WITH_GPU)
    assert play >> received(MODERN) << StoreIdentity << registers()
    assert play >> status("registering", details={})  # of the first of the two, which lifted the drain (§4)
    assert play.machine.snapshot.drain_reason == "new fans"
    assert play >> received(MODERN) << StoreIdentity << SendHeartbeat << (lambda action: action.message.drain)


def test_the_end_of_a_job_is_sent_at_once_while_the_node_drains() -> None:
    play = ready()
    busy, idle = Declared(WITH_GPU, running_jobs=("job-1",)), Declared(WITH_GPU, running_jobs=())
    assert play >> busy >> After(15) << SendHeartbeat
    assert play >> status("draining") >> busy >> After(5)
    assert play >> idle << SendHeartbeat
    assert play >> idle >> After(5)


def test_the_end_of_a_job_waits_for_the_next_heartbeat_else() -> None:
    play = ready()
    assert play >> Declared(WITH_GPU, running_jobs=("job-1",)) >> After(15) << SendHeartbeat
    assert play >> Declared(WITH_GPU, running_jobs=()) >> After(14)


def reported(status: str, **more: Any) -> NodeStatusMessage:  # noqa: ANN401 - fields of the message
    return NodeStatusMessage.model_validate({"node_id": "n", "status": status, **more})


def asked(deadline_seconds: float | None = None) -> OwnerDrain:
    """A drain asked for at 100."""
    drain = OwnerDrain(SessionSettings())
    drain.begin(DrainRequested("new fans", deadline_seconds), 100.0)
    return drain


def deadline_of(drain: OwnerDrain, now: float) -> float | None:
    request = drain.message("n", now)
    assert request is not None
    return request.deadline_seconds


def test_without_a_drain_nothing_is_sent_and_nothing_is_complete() -> None:
    drain = OwnerDrain(SessionSettings())
    assert (drain.reason, drain.message("n", 1.0), drain.overdue_at) == (None, None, math.inf)
    assert not drain.ended_by(reported("offline"), 1.0)
    assert not drain.end()


def test_a_drain_is_sent_with_the_rest_of_its_deadline() -> None:
    drain = asked(60)
    request = drain.message("n", 100.0)
    assert request == NodeUnregister(node_id="n", reason="new fans", drain=True, deadline_seconds=60)
    assert deadline_of(drain, 150.0) == 10
    assert deadline_of(drain, 500.0) == 0


def test_without_a_deadline_the_registry_is_left_to_say_and_its_word_counts_from_then_on() -> None:
    drain = asked()
    assert deadline_of(drain, 100.0) is None
    assert drain.until == 700
    assert not drain.ended_by(reported("draining", timestamp=5000, details={"drain_deadline": 5030}), 110.0)
    assert drain.until == 140
    assert deadline_of(drain, 120.0) == 20


def test_a_newer_drain_replaces_the_older() -> None:
    drain = asked(60)
    drain.begin(DrainRequested("newer", 5), 110.0)
    assert (drain.reason, drain.until) == ("newer", 115)


def test_an_offline_verdict_is_its_end() -> None:
    assert asked(60).ended_by(reported("offline"), 101.0)


def test_a_registry_that_knows_of_it_no_more_has_lifted_it() -> None:
    drain = asked(60)
    drain.ended_by(reported("draining", timestamp=1, details={"drain_deadline": 61}), 101.0)
    assert not drain.ended_by(reported("registering", reason_code="resumed", details={}), 102.0)
    assert drain.reason is None


def test_a_status_from_before_the_drain_reached_the_registry_ends_nothing() -> None:
    drain = asked(60)
    drain.ended_by(reported("draining", timestamp=1, details={"drain_deadline": 61}), 101.0)
    drain.message("n", 110.0)  # over a new connection, where the ack comes with a status of its own
    assert not drain.ended_by(reported("registering", reason_code="resumed", details={}), 110.1)
    assert drain.reason == "new fans"


@pytest.mark.parametrize("status", ["draining", "ready"])
def test_a_scheduler_without_details_ends_no_drain(status: str) -> None:
    drain = asked(60)
    assert not drain.ended_by(reported(status), 101.0)
    assert (drain.reason, drain.until) == ("new fans", 160)
