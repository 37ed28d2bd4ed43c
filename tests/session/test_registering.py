"""How a node registers: acks, silence, refusals, and a session that is superseded."""

from dataclasses import replace
from typing import Any

import pytest

from gpu_agent.session.registration import NothingDeclaredError, Registration
from gpu_agent.session.types import (
    ArchiveIdentity,
    Connect,
    Connected,
    ConnectFailed,
    Credential,
    Declared,
    Disconnect,
    Disconnected,
    Exit,
    Send,
    SendHeartbeat,
    State,
    StoreIdentity,
)
from gpu_agent.wire.declaration import DeclarationChanges
from gpu_agent.wire.messages import GpuDeclaration, Hardware, NodeRegisterAck
from tests.playbook import After
from tests.session.harness import (
    ACK,
    ADDRESS,
    BARE_ACK,
    WITH_GPU,
    WITHOUT_GPU,
    Play,
    awaiting,
    connecting,
    error,
    logged,
    received,
    registered,
    registers,
)

NO_CHANGE = DeclarationChanges()


def test_r02_an_ack_is_stored_before_the_first_heartbeat_which_follows_at_once() -> None:
    play = awaiting()
    assert play >> received(ACK) << StoreIdentity("node-A", None) << SendHeartbeat("node-A", 1, NO_CHANGE)
    assert play.machine.deadline == play.now + 2


def test_a_token_in_the_ack_is_saved_with_it() -> None:
    ack = NodeRegisterAck(node_id="node-A", node_token="s3cret")
    assert awaiting() >> received(ack) << StoreIdentity("node-A", "s3cret") << SendHeartbeat


def test_the_registry_s_verdict_on_the_id_wins() -> None:
    play = awaiting(node_id="node-Z")
    assert play >> received(ACK) << StoreIdentity("node-A", None) << SendHeartbeat("node-A", 1, NO_CHANGE)
    assert play.machine.snapshot.node_id == "node-A"


def test_what_changed_since_the_registration_goes_out_with_the_first_heartbeat() -> None:
    play = awaiting()
    private = replace(WITH_GPU, owner=replace(WITH_GPU.owner, accept_public_jobs=True))
    assert play >> Declared(private)
    assert (
        play
        >> received(ACK)
        << StoreIdentity
        << SendHeartbeat("node-A", 1, DeclarationChanges(accept_public_jobs=True))
    )


def test_silence_for_ten_seconds_is_a_failed_attempt() -> None:
    play = awaiting()
    assert play >> After(9.9)
    assert play >> After(0.1) << Disconnect
    assert play.machine.state is State.BACKING_OFF
    assert play.machine.snapshot.last_refusal == "no answer to node_register within 10 s"


def _unanswered_at_1_1() -> Play:
    """A machine that received no answer, and has registered again with the oldest schema."""
    play = awaiting()
    assert play >> After(10) << Disconnect >> After(0.5) << Connect
    assert play >> Connected() << registers(capability_schema_version="1.0")
    return play


def test_after_silence_the_next_attempt_uses_the_other_schema_and_so_on() -> None:
    play = _unanswered_at_1_1()
    assert play >> After(10) << Disconnect >> After(1) << Connect
    assert play >> Connected() << registers(capability_schema_version="1.1")


def test_the_next_connection_begins_with_the_schema_that_an_older_scheduler_accepted() -> None:
    play = _unanswered_at_1_1()
    assert play >> received(BARE_ACK) << StoreIdentity << SendHeartbeat
    assert play >> Disconnected(1006, "gone") >> After(1) << Connect
    assert play >> Connected() << registers(capability_schema_version="1.0")


def test_a_registry_that_names_a_schema_was_slow_and_receives_everything_at_once() -> None:
    play = _unanswered_at_1_1()
    named = ACK.model_copy(update={"capability_schema_version": "1.0"})
    assert play >> received(named) << StoreIdentity << registers(capability_schema_version="1.1")
    assert play >> received(ACK) << StoreIdentity << SendHeartbeat


def test_a_registry_that_knows_schemas_is_slow_and_receives_everything_again() -> None:
    """It once received only half until the connection ended: labels and slots never came."""
    play = _unanswered_at_1_1()
    named = ACK.model_copy(update={"capability_schema_version": "1.0"})
    assert play >> received(named) << StoreIdentity << Send
    assert play >> After(10) << Disconnect >> After(60) << Connect
    assert play >> Connected() << registers(capability_schema_version="1.1")
    newest = ACK.model_copy(update={"capability_schema_version": "1.1"})
    assert play >> received(newest) << StoreIdentity << SendHeartbeat


def test_a_registry_that_leaves_the_newest_schema_unanswered_again_and_again_gets_the_oldest() -> None:
    play = _unanswered_at_1_1()
    named = ACK.model_copy(update={"capability_schema_version": "1.0"})
    assert play >> received(named) << StoreIdentity << Send
    for _ in range(2):
        assert play >> After(10) << Disconnect >> After(60) << Connect
        assert play >> Connected() << registers(capability_schema_version="1.1")
    assert play >> After(10) << Disconnect >> After(60) << Connect
    assert play >> Connected() << registers(capability_schema_version="1.0")
    assert play >> received(named) << StoreIdentity << SendHeartbeat


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
    assert play >> error("NODE_ID_CONFLICT") << ArchiveIdentity("node-A") << registers(node_id=None)
    assert play.machine.state is State.AWAITING_ACK


def test_r06_a_second_conflict_in_a_row_backs_off() -> None:
    play = awaiting(node_id="node-A")
    assert play >> error("NODE_ID_CONFLICT") << ArchiveIdentity << Send
    assert play >> error("NODE_ID_CONFLICT") << Disconnect
    assert play.machine.state is State.BACKING_OFF


def test_a_node_whose_token_was_ended_waits_under_its_id_and_takes_no_other() -> None:
    play = connecting(node_id="node-A", has_token=True)
    assert play >> ConnectFailed("HTTP 401", http_status=401) << Connect(Credential.JOIN, address=ADDRESS)
    assert play >> Connected() << registers(node_id="node-A")
    assert play >> error("NODE_ID_CONFLICT", details={"token_ended": True}) << Disconnect
    assert play.machine.state is State.BACKING_OFF
    assert play.machine.snapshot.node_id == "node-A"
    assert play.machine.deadline == play.now + 60


def test_a_node_that_never_had_a_token_gives_up_an_id_whose_token_was_ended() -> None:
    play = awaiting(node_id="node-A")
    ended = error("NODE_ID_CONFLICT", details={"token_ended": True})
    assert play >> ended << ArchiveIdentity("node-A") << registers(node_id=None)


def test_a_malformed_registration_is_retried_around_the_ceiling() -> None:
    play = awaiting()
    assert play >> error("INVALID_MESSAGE") << Disconnect
    assert play.machine.deadline == play.now + 60


@pytest.mark.parametrize("code", ["UNAUTHORIZED", "FORBIDDEN"])
def test_a_refused_credential_waits_around_the_ceiling_even_later(code: str) -> None:
    for play in (awaiting(), registered()):
        assert play >> error(code) << Disconnect
        assert play.machine.deadline == play.now + 60
        assert play.machine.snapshot.last_refusal == f"{code}! ({code})"


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
    assert "session_yielded" in logged(play)


def _registration(node_id: str | None = "node-A") -> Registration:
    registration = Registration(node_id=node_id)
    registration.declaration = WITH_GPU
    return registration


def test_it_says_who_and_what_at_the_newest_schema() -> None:
    registration = _registration()
    registration.running_jobs = ("job-1",)
    message = registration.compose()
    assert (message.node_id, message.capability_schema_version) == ("node-A", "1.1")
    assert message.hardware == WITH_GPU.hardware
    assert message.running_jobs == ("job-1",)


def test_nothing_can_be_said_before_anything_is_declared() -> None:
    registration = Registration(node_id=None)
    assert not registration.possible
    with pytest.raises(NothingDeclaredError):
        registration.compose()
    with pytest.raises(NothingDeclaredError):
        registration.accepted("node-A", names_schema=True)


def test_r01_without_a_gpu_it_is_not_possible() -> None:
    registration = Registration(node_id=None)
    registration.declaration = WITHOUT_GPU
    assert not registration.possible


def test_refused_gpus_are_not_declared_again_until_they_are_others() -> None:
    registration = _registration()
    registration.compose()
    registration.gpus_refused()
    assert not registration.possible
    sick = replace(WITH_GPU, hardware=_hardware(health="degraded"))
    registration.declaration = sick
    assert not registration.possible
    registration.declaration = replace(WITH_GPU, hardware=_hardware(uuid="GPU-2"))
    assert registration.possible


@pytest.mark.parametrize(
    ("details", "version"),
    [
        ({"supported": ["1.0"]}, "1.0"),
        ({"supported": ["0.9", "1.0", "2.0"]}, "1.0"),
        ({"supported": [1.0, None, "1.0"]}, "1.0"),
        ({"supported": []}, "1.0"),
        ({"supported": "1.0"}, "1.0"),
        ({}, "1.0"),
        (None, "1.0"),
    ],
)
def test_r05_a_refused_schema_falls_back_to_the_highest_that_both_know(
    details: dict[str, Any] | None, version: str
) -> None:
    registration = _registration()
    assert registration.downgrade(details)
    assert registration.compose().capability_schema_version == version
    assert not registration.downgrade(details), "only once"


@pytest.mark.parametrize("supported", [["9.9"], ["1.1"], ["2.0", "3.0"]])
def test_r05_with_no_schema_in_common_there_is_nothing_to_try(supported: list[str]) -> None:
    assert not _registration().downgrade({"supported": supported})


def test_a_refused_schema_is_tried_again_on_the_next_connection() -> None:
    registration = _registration()
    registration.downgrade(None)
    registration.connection_opened()
    assert registration.compose().capability_schema_version == "1.1"
    assert registration.downgrade(None)


def _begins_with(registration: Registration) -> str | None:
    registration.connection_opened()
    return registration.compose().capability_schema_version


def test_silence_makes_the_next_connection_begin_with_the_other_schema() -> None:
    registration, versions = _registration(), []
    for _ in range(4):
        versions.append(_begins_with(registration))
        registration.unanswered()
    assert versions == ["1.1", "1.0", "1.1", "1.0"]


def test_the_oldest_schema_remains_for_a_registry_that_names_none_in_its_ack() -> None:
    registration = _registration()
    registration.compose()
    registration.unanswered()
    assert _begins_with(registration) == "1.0"
    registration.accepted("node-A", names_schema=False)
    assert _begins_with(registration) == "1.0"
    registration.accepted("node-A", names_schema=True)
    assert _begins_with(registration) == "1.1"


def test_the_schema_is_raised_once_until_the_newest_one_is_accepted() -> None:
    registration = _registration()
    assert not registration.raise_schema(), "there is no newer one"
    registration.schema_version = "1.0"
    assert registration.raise_schema()
    registration.schema_version = "1.0"
    assert not registration.raise_schema(), "it was in vain"
    assert _begins_with(registration) == "1.1"
    registration.accepted("node-A", names_schema=True)
    registration.schema_version = "1.0"
    assert registration.raise_schema()


def test_a_schema_that_was_refused_on_this_connection_is_not_raised_to() -> None:
    registration = _registration()
    assert registration.downgrade(None)
    assert not registration.raise_schema()


def test_r06_an_id_in_conflict_is_dropped_once_until_an_ack() -> None:
    registration = _registration()
    assert registration.drop_id()
    assert registration.compose().node_id is None
    assert not registration.drop_id()
    assert registration.accepted("node-B", names_schema=True) == WITH_GPU
    assert registration.node_id == "node-B"
    assert registration.drop_id()


def _hardware(**changed: str) -> Hardware:
    gpu = GpuDeclaration.model_validate({"name": "A100", "memory_gb": 80, "uuid": "GPU-1", **changed})
    return Hardware(cpu_cores=8, memory_gb=64, gpus=(gpu,))
