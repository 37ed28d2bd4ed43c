from dataclasses import replace
from typing import Any

import pytest

from gpu_agent.session.actions import (
    Disconnect,
    Exit,
    Probe,
    SaveIdentity,
    Send,
    SendBeat,
)
from gpu_agent.session.events import Declared, Disconnected, StopRequested
from gpu_agent.session.story import State
from gpu_agent.wire.beat import BeatChanges
from gpu_agent.wire.messages import NodeControl, NodeUnregister
from tests.playbook import After
from tests.session.played import (
    ACK,
    BARE_ACK,
    WITH_GPU,
    WITHOUT_GPU,
    awaiting,
    connecting,
    error,
    heard,
    notes,
    ready,
    registered,
    registers,
    status,
)


def _goodbye(*, drain: bool, deadline: float | None = None) -> Send:
    return Send(NodeUnregister(node_id="node-A", reason="bye", drain=drain, deadline_seconds=deadline))


def _control(command: str) -> Any:  # noqa: ANN401 - an event
    return heard(NodeControl(command=command))


# Registered


def test_s01_beats_come_at_the_warmup_interval_until_ready_then_at_the_steady_one() -> None:
    play = registered()
    assert play >> After(2) << SendBeat >> After(2) << SendBeat
    assert play >> status("ready") >> After(14.9) >> After(0.1) << SendBeat >> After(15) << SendBeat


def test_beats_number_themselves_without_a_gap() -> None:
    play = registered()
    play >> After(20)
    assert [action.sequence for action in play.pending] == list(range(2, 12))


def test_a_bare_ack_means_a_beat_every_ten_seconds() -> None:
    play = registered(BARE_ACK)
    assert play >> After(10) << SendBeat
    assert play >> status("ready", node_id="node-A") >> After(10) << SendBeat


def test_a_status_for_another_node_is_ignored() -> None:
    play = registered()
    assert play >> status("offline", node_id="node-B")
    assert play.machine.view.verdict is not None
    assert play.machine.view.verdict.status == "registering"
    assert "message_ignored" in notes(play)


def test_an_offline_verdict_alone_does_not_end_the_conversation() -> None:
    play = ready()
    assert play >> status("offline", reason_code="drain_complete") >> After(15) << SendBeat
    assert play >> status("registering", reason_code="resumed") >> After(2) << SendBeat


def test_s03_a_model_that_breaks_is_told_at_once() -> None:
    play = ready()
    play.now += 5
    broken = replace(WITH_GPU, capability_state={"whisper": "error"})
    assert (
        play >> Declared(broken) << SendBeat("node-A", 2, BeatChanges(capability_state={"whisper": "error"}))
    )
    assert play.machine.deadline == play.now + 15


def test_changes_in_a_row_are_told_within_two_seconds_but_not_in_a_burst() -> None:
    play = ready()
    play.now += 5
    for state, beats in (("error", 1), ("ready", 0), ("downloading", 0)):
        play >> Declared(replace(WITH_GPU, capability_state={"whisper": state}))
        assert len(play.pending) == beats
        play.pending.clear()
    assert play >> After(1) << SendBeat("node-A", 3, BeatChanges(capability_state={"whisper": "downloading"}))


def test_a_gpu_that_vanishes_is_told_by_a_beat_and_does_not_disconnect() -> None:
    play = ready()
    play.now += 5
    assert play >> Declared(WITHOUT_GPU) << SendBeat("node-A", 2, BeatChanges(hardware=WITHOUT_GPU.hardware))
    assert play.machine.state is State.REGISTERED


def test_an_unknown_node_registers_again_at_once_on_the_same_socket() -> None:
    assert ready() >> error("UNKNOWN_NODE") << registers(node_id="node-A")


def test_late_answers_to_earlier_beats_do_not_disturb_a_registration() -> None:
    play = ready()
    assert play >> error("UNKNOWN_NODE") << Send >> error("UNKNOWN_NODE") >> error("UNKNOWN_NODE")
    assert play >> heard(ACK) << SaveIdentity << SendBeat


def test_unknown_node_twice_in_a_short_time_backs_off() -> None:
    play = ready()
    assert play >> error("UNKNOWN_NODE") << Send >> heard(ACK) << SaveIdentity << SendBeat
    assert play >> error("UNKNOWN_NODE") << Disconnect
    assert play.machine.state is State.BACKING_OFF


def test_unknown_node_again_after_a_while_registers_again() -> None:
    play = ready()
    assert play >> error("UNKNOWN_NODE") << Send >> heard(ACK) << SaveIdentity << SendBeat
    play.now += 11
    assert play >> error("UNKNOWN_NODE") << Send


_ABOUT_BEATS = ["RATE_LIMITED", "REGISTRY_BUSY", "INTERNAL_ERROR", "NODE_ID_CONFLICT", "NEW"]


@pytest.mark.parametrize("code", [*_ABOUT_BEATS, "INVALID_MESSAGE", "INVALID_CAPABILITY_SCHEMA"])
def test_an_error_about_a_single_beat_is_noted_and_changes_nothing(code: str) -> None:
    play = ready()
    for _ in range(5):
        assert play >> error(code) >> error(code) >> After(15) << SendBeat >> error(code)
        assert play >> After(30) << SendBeat << SendBeat
    assert play.machine.state is State.REGISTERED
    assert "registry_error" in notes(play)


def test_malformed_beats_in_a_row_end_at_the_ceiling_and_not_in_a_circle_of_timeouts() -> None:
    play = ready()
    assert play >> error("INVALID_MESSAGE") >> After(15) << SendBeat >> error("INVALID_MESSAGE")
    assert play >> After(15) << SendBeat >> error("INVALID_MESSAGE") << Disconnect
    assert play.machine.deadline == play.now + 60
    assert play.machine.view.last_refusal == "INVALID_MESSAGE! (INVALID_MESSAGE)"


@pytest.mark.parametrize("code", [*_ABOUT_BEATS, "INVALID_CAPABILITY_SCHEMA"])
def test_beats_in_a_row_that_are_refused_back_off_and_honour_retry_after(code: str) -> None:
    play = ready()
    for _ in range(2):
        assert play >> error(code, retry_after_seconds=600) >> After(15) << SendBeat
    assert play >> error(code, retry_after_seconds=7) << Disconnect
    assert play.machine.deadline == play.now + 7.5


def test_a_status_between_them_does_not_prove_beats_that_are_refused() -> None:
    play = ready()
    for _ in range(2):
        assert play >> error("INVALID_MESSAGE") >> status("ready", periodic=True) >> After(15) << SendBeat
    assert play >> error("INVALID_MESSAGE") << Disconnect


def test_gpu_required_while_registered_waits_for_another_gpu() -> None:
    play = ready()
    assert play >> error("GPU_REQUIRED") << Disconnect
    assert play.machine.state is State.WAITING_GPU


def test_an_ack_or_a_control_at_the_wrong_time_is_ignored() -> None:
    assert ready() >> heard(ACK)
    assert awaiting() >> _control("reregister") >> _control("refresh")


def test_reregister_sends_node_register_again() -> None:
    play = ready()
    assert play >> _control("reregister") << registers(node_id="node-A")
    assert play >> heard(ACK) << SaveIdentity << SendBeat


def test_reregister_in_a_loop_backs_off() -> None:
    play = ready()
    assert play >> _control("reregister") << Send >> heard(ACK) << SaveIdentity << SendBeat
    assert play >> _control("reregister") << Disconnect


def test_refresh_probes_and_sends_a_full_beat_when_the_probe_is_in() -> None:
    play = ready()
    assert play >> _control("refresh") << Probe() >> _control("refresh")
    assert play >> Declared(WITH_GPU) << (lambda beat: beat.changed.hardware == WITH_GPU.hardware)
    assert play >> Declared(WITH_GPU)


def test_refresh_sends_a_full_beat_after_five_seconds_even_without_a_probe() -> None:
    play = ready()
    assert play >> _control("refresh") << Probe()
    assert play >> After(4.9)
    assert play >> After(0.1) << (lambda beat: beat.changed.installed_models == WITH_GPU.installed_models)


def test_an_unknown_command_is_noted_not_obeyed() -> None:
    play = ready()
    assert play >> _control("format_disk")
    assert "control_unknown" in notes(play)


# Leaving


def test_a_stop_says_goodbye_closes_and_exits() -> None:
    play = ready()
    assert play >> StopRequested("bye") << _goodbye(drain=False) << Disconnect(1000, "leave") << Exit("bye")
    assert play.machine.state is State.STOPPED


def test_a_stop_while_the_answer_is_awaited_says_goodbye_for_an_id_it_knows() -> None:
    known = awaiting(node_id="node-A")
    assert known >> StopRequested("bye") << _goodbye(drain=False) << Disconnect << Exit
    assert awaiting() >> StopRequested("bye") << Disconnect << Exit


def test_a7_a_drain_keeps_beating_until_it_is_told_offline() -> None:
    play = ready()
    assert (
        play
        >> StopRequested("bye", drain=True, deadline_seconds=60)
        << SendBeat
        << _goodbye(drain=True, deadline=60)
    )
    assert play.machine.state is State.LEAVING
    assert play >> status("draining") >> After(15) << SendBeat
    assert play >> status("offline", reason_code="drain_complete") << Disconnect << Exit("drained")


def test_a7_a_drain_leaves_when_its_deadline_passed_without_a_verdict() -> None:
    play = ready()
    assert play >> StopRequested("bye", drain=True, deadline_seconds=5) << SendBeat << Send
    assert play >> After(10) << Disconnect << Exit("the drain's deadline passed")


def test_a_drain_without_a_deadline_takes_the_protocol_s() -> None:
    play = ready()
    play >> StopRequested("bye", drain=True)
    play.pending.clear()
    play >> After(604.9)
    assert {type(action) for action in play.pending} == {SendBeat}
    play.pending.clear()
    assert play >> After(0.1) << Disconnect << Exit


def test_a_second_stop_leaves_at_once() -> None:
    play = ready()
    assert play >> StopRequested("bye", drain=True) << SendBeat << Send
    assert play >> StopRequested("bye", drain=True) << _goodbye(drain=False) << Disconnect << Exit


def test_a_refusal_or_a_lost_connection_while_leaving_ends_it() -> None:
    for event in (error("UNKNOWN_NODE"), Disconnected(1006, "gone")):
        play = ready()
        assert play >> StopRequested("bye", drain=True) << SendBeat << Send
        play >> event
        assert isinstance(play.pending[-1], Exit)


def test_orders_to_register_again_are_not_obeyed_while_leaving() -> None:
    play = ready()
    assert play >> StopRequested("bye", drain=True) << SendBeat << Send
    assert play >> _control("reregister")


def test_connecting_has_no_conversation_yet() -> None:
    assert connecting().machine.view.verdict is None
