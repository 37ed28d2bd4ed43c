from dataclasses import replace
from typing import Any

import pytest

from gpu_agent.session.errors import FINAL_REACTIONS, OUTCOME_OF_REACTION, ErrorCounter
from gpu_agent.session.machine import MAX_PENDING_FAULTS
from gpu_agent.session.types import (
    Connected,
    Declared,
    Disconnect,
    Disconnected,
    Exit,
    FaultFound,
    Probe,
    RunChecks,
    Send,
    SendHeartbeat,
    State,
    StopRequested,
    StoreIdentity,
)
from gpu_agent.wire.codes import Reaction
from gpu_agent.wire.declaration import DeclarationChanges
from gpu_agent.wire.messages import NodeCheck, NodeControl, NodeError, NodeRegister, NodeUnregister
from tests.playbook import After
from tests.session.harness import (
    ACK,
    BARE_ACK,
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

PASSED = NodeCheck(name="hook", ok=True, at=1795517678.5)


def _goodbye(*, drain: bool, deadline: float | None = None) -> Send:
    return Send(NodeUnregister(node_id="node-A", reason="bye", drain=drain, deadline_seconds=deadline))


def _control(command: str) -> Any:  # noqa: ANN401 - an event
    return received(NodeControl(command=command))


# Registered


def test_s01_heartbeats_come_at_the_warmup_interval_until_ready_then_at_the_steady_one() -> None:
    play = registered()
    assert play >> After(2) << SendHeartbeat >> After(2) << SendHeartbeat
    assert play >> status("ready") >> After(14.9) >> After(0.1) << SendHeartbeat >> After(15) << SendHeartbeat


def test_heartbeats_number_themselves_without_a_gap() -> None:
    play = registered()
    play >> After(20)
    assert [action.sequence for action in play.pending] == list(range(2, 12))


def test_a_bare_ack_means_a_heartbeat_every_ten_seconds() -> None:
    play = registered(BARE_ACK)
    assert play >> After(10) << SendHeartbeat
    assert play >> status("ready", node_id="node-A") >> After(10) << SendHeartbeat


def test_a_status_for_another_node_is_ignored() -> None:
    play = registered()
    assert play >> status("offline", node_id="node-B")
    assert play.machine.snapshot.registry_status is not None
    assert play.machine.snapshot.registry_status.status == "registering"
    assert "message_ignored" in logged(play)


def test_an_offline_status_alone_does_not_end_the_session() -> None:
    play = ready()
    assert play >> status("offline", reason_code="drain_complete") >> After(15) << SendHeartbeat
    assert play >> status("registering", reason_code="resumed") >> After(2) << SendHeartbeat


def test_s03_a_model_that_breaks_is_sent_at_once() -> None:
    play = ready()
    play.now += 5
    broken = replace(WITH_GPU, capability_state={"whisper": "error"})
    assert (
        play
        >> Declared(broken)
        << SendHeartbeat("node-A", 2, DeclarationChanges(capability_state={"whisper": "error"}))
    )
    assert play.machine.deadline == play.now + 15


def test_changes_in_a_row_are_sent_within_two_seconds_but_not_in_a_burst() -> None:
    play = ready()
    play.now += 5
    for state, heartbeats in (("error", 1), ("ready", 0), ("downloading", 0)):
        play >> Declared(replace(WITH_GPU, capability_state={"whisper": state}))
        assert len(play.pending) == heartbeats
        play.pending.clear()
    assert (
        play
        >> After(1)
        << SendHeartbeat("node-A", 3, DeclarationChanges(capability_state={"whisper": "downloading"}))
    )


def test_a_gpu_that_vanishes_is_sent_by_a_heartbeat_and_does_not_disconnect() -> None:
    play = ready()
    play.now += 5
    assert (
        play
        >> Declared(WITHOUT_GPU)
        << SendHeartbeat("node-A", 2, DeclarationChanges(hardware=WITHOUT_GPU.hardware))
    )
    assert play.machine.state is State.REGISTERED


def test_an_unknown_node_registers_again_at_once_on_the_same_socket() -> None:
    assert ready() >> error("UNKNOWN_NODE") << registers(node_id="node-A")


def test_late_answers_to_earlier_heartbeats_do_not_disturb_a_registration() -> None:
    play = ready()
    assert play >> error("UNKNOWN_NODE") << Send >> error("UNKNOWN_NODE") >> error("UNKNOWN_NODE")
    assert play >> received(ACK) << StoreIdentity << SendHeartbeat


def test_unknown_node_twice_in_a_short_time_backs_off() -> None:
    play = ready()
    assert play >> error("UNKNOWN_NODE") << Send >> received(ACK) << StoreIdentity << SendHeartbeat
    assert play >> error("UNKNOWN_NODE") << Disconnect
    assert play.machine.state is State.BACKING_OFF


def test_unknown_node_again_after_a_while_registers_again() -> None:
    play = ready()
    assert play >> error("UNKNOWN_NODE") << Send >> received(ACK) << StoreIdentity << SendHeartbeat
    play.now += 11
    assert play >> error("UNKNOWN_NODE") << Send


_ABOUT_HEARTBEATS = ["RATE_LIMITED", "REGISTRY_BUSY", "INTERNAL_ERROR", "NODE_ID_CONFLICT", "NEW"]


@pytest.mark.parametrize("code", [*_ABOUT_HEARTBEATS, "INVALID_MESSAGE", "INVALID_CAPABILITY_SCHEMA"])
def test_an_error_about_a_single_heartbeat_is_logged_and_changes_nothing(code: str) -> None:
    play = ready()
    for _ in range(5):
        assert play >> error(code) >> error(code) >> After(15) << SendHeartbeat >> error(code)
        assert play >> After(30) << SendHeartbeat << SendHeartbeat
    assert play.machine.state is State.REGISTERED
    assert "registry_error" in logged(play)


def test_malformed_heartbeats_in_a_row_end_at_the_ceiling_and_not_in_a_circle_of_timeouts() -> None:
    play = ready()
    assert play >> error("INVALID_MESSAGE") >> After(15) << SendHeartbeat >> error("INVALID_MESSAGE")
    assert play >> After(15) << SendHeartbeat >> error("INVALID_MESSAGE") << Disconnect
    assert play.machine.deadline == play.now + 60
    assert play.machine.snapshot.last_refusal == "INVALID_MESSAGE! (INVALID_MESSAGE)"


@pytest.mark.parametrize("code", [*_ABOUT_HEARTBEATS, "INVALID_CAPABILITY_SCHEMA"])
def test_heartbeats_in_a_row_that_are_refused_back_off_and_honour_retry_after(code: str) -> None:
    play = ready()
    for _ in range(2):
        assert play >> error(code, retry_after_seconds=600) >> After(15) << SendHeartbeat
    assert play >> error(code, retry_after_seconds=7) << Disconnect
    assert play.machine.deadline == play.now + 7.5


def test_a_status_between_refused_heartbeats_does_not_reset_the_error_counter() -> None:
    play = ready()
    for _ in range(2):
        assert (
            play >> error("INVALID_MESSAGE") >> status("ready", periodic=True) >> After(15) << SendHeartbeat
        )
    assert play >> error("INVALID_MESSAGE") << Disconnect


def test_gpu_required_while_registered_waits_for_another_gpu() -> None:
    play = ready()
    assert play >> error("GPU_REQUIRED") << Disconnect
    assert play.machine.state is State.WAITING_GPU


def test_an_ack_or_a_control_at_the_wrong_time_is_ignored() -> None:
    assert ready() >> received(ACK)
    assert awaiting() >> _control("reregister") >> _control("refresh")


def test_reregister_sends_node_register_again() -> None:
    play = ready()
    assert play >> _control("reregister") << registers(node_id="node-A")
    assert play >> received(ACK) << StoreIdentity << SendHeartbeat


def test_reregister_in_a_loop_backs_off() -> None:
    play = ready()
    assert play >> _control("reregister") << Send >> received(ACK) << StoreIdentity << SendHeartbeat
    assert play >> _control("reregister") << Disconnect


def test_refresh_probes_and_sends_a_full_heartbeat_when_the_probe_is_in() -> None:
    play = ready()
    assert play >> _control("refresh") << Probe() >> _control("refresh")
    assert play >> Declared(WITH_GPU) << (lambda sent: sent.changed.hardware == WITH_GPU.hardware)
    assert play >> Declared(WITH_GPU)


def test_refresh_sends_a_full_heartbeat_after_five_seconds_even_without_a_probe() -> None:
    play = ready()
    assert play >> _control("refresh") << Probe()
    assert play >> After(4.9)
    assert play >> After(0.1) << (lambda sent: sent.changed.installed_models == WITH_GPU.installed_models)


def test_check_runs_the_checks_and_sends_their_results_once_they_are_declared() -> None:
    play = ready()
    assert play >> _control("check") << RunChecks()
    checked = replace(WITH_GPU, checks=(PASSED,))
    assert play >> Declared(checked) >> After(1) << (lambda sent: sent.changed.checks == (PASSED,))
    assert play >> Declared(checked) >> After(5)


def test_the_first_heartbeat_of_every_registration_carries_all_results() -> None:
    play = ready()
    assert play >> Declared(replace(WITH_GPU, checks=(PASSED,)))
    assert play >> After(1) << SendHeartbeat
    assert play >> _control("reregister") << Send
    assert play >> received(ACK) << StoreIdentity << (lambda sent: sent.changed.checks == (PASSED,))


def test_an_unknown_command_is_logged_and_ignored() -> None:
    play = ready()
    assert play >> _control("format_disk")
    assert "control_unknown" in logged(play)


# Leaving


def test_a_stop_unregisters_closes_and_exits() -> None:
    play = ready()
    assert play >> StopRequested("bye") << _goodbye(drain=False) << Disconnect(1000, "leave") << Exit("bye")
    assert play.machine.state is State.STOPPED


def test_a_stop_while_the_ack_is_awaited_unregisters_a_known_id() -> None:
    known = awaiting(node_id="node-A")
    assert known >> StopRequested("bye") << _goodbye(drain=False) << Disconnect << Exit
    assert awaiting() >> StopRequested("bye") << Disconnect << Exit


def test_a7_a_stop_with_a_drain_sends_heartbeats_until_the_status_is_offline() -> None:
    play = ready()
    assert (
        play
        >> StopRequested("bye", drain=True, deadline_seconds=60)
        << SendHeartbeat
        << _goodbye(drain=True, deadline=60)
    )
    assert play.machine.state is State.LEAVING
    assert play >> status("draining") >> After(15) << SendHeartbeat
    assert play >> status("offline", reason_code="drain_complete") << Disconnect << Exit("drained")


def test_a7_a_drain_leaves_when_its_deadline_passed_without_a_status() -> None:
    play = ready()
    assert play >> StopRequested("bye", drain=True, deadline_seconds=5) << SendHeartbeat << Send
    assert play >> After(10) << Disconnect << Exit("the drain's deadline passed")


def test_a_drain_without_a_deadline_takes_the_protocol_s() -> None:
    play = ready()
    play >> StopRequested("bye", drain=True)
    play.pending.clear()
    play >> After(604.9)
    assert {type(action) for action in play.pending} == {SendHeartbeat}
    play.pending.clear()
    assert play >> After(0.1) << Disconnect << Exit


def test_a_second_stop_leaves_at_once() -> None:
    play = ready()
    assert play >> StopRequested("bye", drain=True) << SendHeartbeat << Send
    assert play >> StopRequested("bye", drain=True) << _goodbye(drain=False) << Disconnect << Exit


def test_a_refusal_or_a_lost_connection_while_leaving_ends_it() -> None:
    for event in (error("UNKNOWN_NODE"), Disconnected(1006, "gone")):
        play = ready()
        assert play >> StopRequested("bye", drain=True) << SendHeartbeat << Send
        play >> event
        assert isinstance(play.pending[-1], Exit)


def test_reregister_is_ignored_while_leaving() -> None:
    play = ready()
    assert play >> StopRequested("bye", drain=True) << SendHeartbeat << Send
    assert play >> _control("reregister")


def test_while_connecting_the_registry_has_given_no_status() -> None:
    assert connecting().machine.snapshot.registry_status is None


# Faults that belong to no job are sent to the registry (§3.3).


NAMED = ACK.model_copy(update={"capability_schema_version": "1.1"})
LOST = FaultFound("GPU_LOST", "GPU 3 is lost")


def _fault_sent(message: str = LOST.message) -> Send:
    return Send(NodeError(node_id="node-A", code="GPU_LOST", message=message))


def _registers(action: Any) -> bool:  # noqa: ANN401 - a question for the playbook
    return isinstance(action, Send) and isinstance(action.message, NodeRegister)


def _acknowledged(playing: Play) -> Play:
    return playing >> Connected() << _registers >> received(NAMED) << StoreIdentity << SendHeartbeat


def test_a_fault_is_sent_at_once_while_registered() -> None:
    assert registered(NAMED) >> LOST << _fault_sent()


def test_faults_found_before_there_is_a_registration_follow_the_first_heartbeat_and_are_sent_once() -> None:
    playing = connecting()
    assert playing >> LOST >> FaultFound("GPU_LOST", "another")
    assert _acknowledged(playing) << _fault_sent() << _fault_sent("another")
    assert playing >> After(2) << SendHeartbeat


def test_a_fault_found_while_the_registry_is_away_is_sent_when_it_is_back() -> None:
    playing = registered(NAMED) >> Disconnected(1006, "gone")
    assert playing >> LOST
    while playing.machine.state is not State.CONNECTING:
        playing >> After(1)
        playing.pending.clear()
    assert _acknowledged(playing) << _fault_sent()


def test_an_older_scheduler_receives_no_faults() -> None:
    assert registered(BARE_ACK) >> LOST >> After(10) << SendHeartbeat


def test_a_fault_found_before_anything_began_waits() -> None:
    assert play() >> LOST


def test_of_too_many_pending_faults_the_newest_remain() -> None:
    playing = connecting()
    for number in range(MAX_PENDING_FAULTS + 3):
        assert playing >> FaultFound("GPU_LOST", str(number))
    _acknowledged(playing)
    for number in range(3, MAX_PENDING_FAULTS + 3):
        playing << _fault_sent(str(number))
    assert playing


def test_the_third_heartbeat_in_a_row_with_an_error_exceeds_the_limit() -> None:
    counter, exceeded = ErrorCounter(), []
    for _ in range(3):
        counter.heartbeat_sent()
        exceeded.append(counter.exceeded_by_error())
    assert exceeded == [False, False, True]


def test_a_heartbeat_without_an_error_resets_the_counter() -> None:
    counter = ErrorCounter()
    for _ in range(5):
        counter.heartbeat_sent()
        assert not counter.exceeded_by_error()
        counter.heartbeat_sent()
        assert not counter.exceeded_by_error()
        counter.heartbeat_sent()


def test_many_errors_about_one_heartbeat_count_once() -> None:
    counter = ErrorCounter()
    counter.heartbeat_sent()
    assert not any(counter.exceeded_by_error() for _ in range(100))


def test_a_new_registration_resets_the_counter() -> None:
    counter = ErrorCounter()
    for _ in range(2):
        counter.heartbeat_sent()
        counter.exceeded_by_error()
    counter.registered()
    counter.heartbeat_sent()
    assert not counter.exceeded_by_error()


def test_every_reaction_leads_somewhere() -> None:
    assert set(OUTCOME_OF_REACTION) == set(Reaction)


def test_what_is_final_at_any_time_never_just_tries_again() -> None:
    assert {OUTCOME_OF_REACTION[reaction].value for reaction in FINAL_REACTIONS} == {
        "await_gpu",
        "yield",
        "fail",
    }
