"""How a node registers: acks, silence, refusals, and a session that is superseded."""

from dataclasses import replace
from typing import Any

import pytest

from gpu_agent.session.actions import (
    Connect,
    Disconnect,
    Exit,
    ForgetIdentity,
    SaveIdentity,
    Send,
    SendBeat,
)
from gpu_agent.session.events import Connected, Declared, Disconnected
from gpu_agent.session.story import State
from gpu_agent.wire.beat import BeatChanges
from gpu_agent.wire.messages import NodeRegisterAck
from tests.playbook import After
from tests.session.played import (
    ACK,
    BARE_ACK,
    WITH_GPU,
    WITHOUT_GPU,
    Play,
    awaiting,
    error,
    heard,
    notes,
    registered,
    registers,
)

NO_CHANGE = BeatChanges()


def test_r02_an_ack_is_saved_before_the_first_beat_which_follows_at_once() -> None:
    play = awaiting()
    assert play >> heard(ACK) << SaveIdentity("node-A", None) << SendBeat("node-A", 1, NO_CHANGE)
    assert play.machine.deadline == play.now + 2


def test_a_token_in_the_ack_is_saved_with_it() -> None:
    ack = NodeRegisterAck(node_id="node-A", node_token="s3cret")
    assert awaiting() >> heard(ack) << SaveIdentity("node-A", "s3cret") << SendBeat


def test_the_registry_s_verdict_on_the_id_wins() -> None:
    play = awaiting(node_id="node-Z")
    assert play >> heard(ACK) << SaveIdentity("node-A", None) << SendBeat("node-A", 1, NO_CHANGE)
    assert play.machine.view.node_id == "node-A"


def test_what_changed_since_the_registration_goes_out_with_the_first_beat() -> None:
    play = awaiting()
    private = replace(WITH_GPU, owner=replace(WITH_GPU.owner, accept_public_jobs=True))
    assert play >> Declared(private)
    assert play >> heard(ACK) << SaveIdentity << SendBeat("node-A", 1, BeatChanges(accept_public_jobs=True))


def test_silence_for_ten_seconds_is_a_failed_attempt() -> None:
    play = awaiting()
    assert play >> After(9.9)
    assert play >> After(0.1) << Disconnect
    assert play.machine.state is State.BACKING_OFF
    assert play.machine.view.last_refusal == "no answer to node_register within 10 s"


def _unheard_at_1_1() -> Play:
    """A machine that was met with silence, and has registered anew at the oldest schema."""
    play = awaiting()
    assert play >> After(10) << Disconnect >> After(0.5) << Connect
    assert play >> Connected() << registers(capability_schema_version="1.0")
    return play


def test_after_silence_the_next_attempt_uses_the_other_schema_and_so_on() -> None:
    play = _unheard_at_1_1()
    assert play >> After(10) << Disconnect >> After(1) << Connect
    assert play >> Connected() << registers(capability_schema_version="1.1")


def test_the_schema_that_an_older_scheduler_took_is_kept_for_the_next_connection() -> None:
    play = _unheard_at_1_1()
    assert play >> heard(BARE_ACK) << SaveIdentity << SendBeat
    assert play >> Disconnected(1006, "gone") >> After(1) << Connect
    assert play >> Connected() << registers(capability_schema_version="1.0")


def test_a_registry_that_names_a_schema_was_merely_slow_and_is_told_everything_at_once() -> None:
    play = _unheard_at_1_1()
    named = ACK.model_copy(update={"capability_schema_version": "1.0"})
    assert play >> heard(named) << SaveIdentity << registers(capability_schema_version="1.1")
    assert play >> heard(ACK) << SaveIdentity << SendBeat


def test_a_registry_that_knows_schemas_is_merely_slow_and_is_told_everything_again() -> None:
    """It was told half for as long as the connection lasted: labels and places never came."""
    play = _unheard_at_1_1()
    named = ACK.model_copy(update={"capability_schema_version": "1.0"})
    assert play >> heard(named) << SaveIdentity << Send
    assert play >> After(10) << Disconnect >> After(60) << Connect
    assert play >> Connected() << registers(capability_schema_version="1.1")
    newest = ACK.model_copy(update={"capability_schema_version": "1.1"})
    assert play >> heard(newest) << SaveIdentity << SendBeat


def test_a_registry_that_leaves_the_newest_schema_unanswered_again_and_again_gets_the_oldest() -> None:
    play = _unheard_at_1_1()
    named = ACK.model_copy(update={"capability_schema_version": "1.0"})
    assert play >> heard(named) << SaveIdentity << Send
    for _ in range(2):
        assert play >> After(10) << Disconnect >> After(60) << Connect
        assert play >> Connected() << registers(capability_schema_version="1.1")
    assert play >> After(10) << Disconnect >> After(60) << Connect
    assert play >> Connected() << registers(capability_schema_version="1.0")
    assert play >> heard(named) << SaveIdentity << SendBeat


def test_r01_gpu_required_closes_and_waits_for_another_gpu() -> None:
    play = awaiting()
    assert play >> error("GPU_REQUIRED") << Disconnect
    assert play.machine.state is State.WAITING_GPU
    assert play >> Declared(WITH_GPU) >> After(3600)
    assert play.machine.state is State.WAITING_GPU


def test_r01_the_older_scheduler_s_code_means_the_same() -> None:
    play = awaiting()
    assert play >> error("NO_GPU_AVAILABLE", type="error") << Disconnect
    assert play.machine.state is State.WAITING_GPU


def test_r05_a_refused_schema_is_retried_once_then_ends_the_program_and_says_so() -> None:
    play = awaiting()
    refusal = error("INVALID_CAPABILITY_SCHEMA", details={"supported": ["1.0"]})
    assert play >> refusal << registers(capability_schema_version="1.0")
    assert (
        play
        >> refusal
        << Disconnect
        << Exit("INVALID_CAPABILITY_SCHEMA! (INVALID_CAPABILITY_SCHEMA)", failed=True)
    )


def test_r05_an_older_scheduler_that_states_no_versions_gets_1_0() -> None:
    assert awaiting() >> error("INVALID_CAPABILITY_SCHEMA") << registers(capability_schema_version="1.0")


def test_r06_a_conflict_forgets_the_id_and_registers_with_null_at_once() -> None:
    play = awaiting(node_id="node-A")
    assert play >> error("NODE_ID_CONFLICT") << ForgetIdentity("node-A") << registers(node_id=None)
    assert play.machine.state is State.AWAITING_ACK


def test_r06_a_second_conflict_in_a_row_backs_off() -> None:
    play = awaiting(node_id="node-A")
    assert play >> error("NODE_ID_CONFLICT") << ForgetIdentity << Send
    assert play >> error("NODE_ID_CONFLICT") << Disconnect
    assert play.machine.state is State.BACKING_OFF


def test_a_malformed_registration_is_retried_around_the_ceiling() -> None:
    play = awaiting()
    assert play >> error("INVALID_MESSAGE") << Disconnect
    assert play.machine.deadline == play.now + 60


@pytest.mark.parametrize("code", ["UNAUTHORIZED", "FORBIDDEN"])
def test_a_refused_credential_waits_around_the_ceiling_even_later(code: str) -> None:
    for play in (awaiting(), registered()):
        assert play >> error(code) << Disconnect
        assert play.machine.deadline == play.now + 60
        assert play.machine.view.last_refusal == f"{code}! ({code})"


@pytest.mark.parametrize("code", ["RATE_LIMITED", "REGISTRY_BUSY", "INTERNAL_ERROR", "SOMETHING_NEW"])
def test_a_temporary_or_unknown_refusal_backs_off_and_honours_retry_after(code: str) -> None:
    play = awaiting()
    assert play >> error(code, retry_after_seconds=7) << Disconnect
    assert play.machine.deadline == play.now + 7.5


def test_simulated_nodes_that_are_refused_stop() -> None:
    assert (
        awaiting()
        >> error("SIMULATED_NODE_REFUSED")
        << Disconnect
        << (lambda action: isinstance(action, Exit) and action.failed)
    )


@pytest.mark.parametrize("play", [awaiting(), registered()])
def test_a_superseded_session_closes_and_does_not_fight(play: Any) -> None:  # noqa: ANN401 - a playbook
    assert play >> error("SESSION_SUPERSEDED") << Disconnect
    assert play.machine.state is State.YIELDED
    assert play.machine.deadline is None
    assert play >> Declared(WITHOUT_GPU) >> Declared(WITH_GPU) >> After(86_400)
    assert "session_yielded" in notes(play)
