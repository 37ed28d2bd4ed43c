from gpu_agent.session.errors import (
    blames_credential,
    clipped,
    refusal_log_event,
    refusal_sentence,
    status_log_event,
)
from gpu_agent.session.types import (
    STATE_PHRASES,
    Connect,
    Connected,
    ConnectFailed,
    Declared,
    Disconnect,
    Disconnected,
    IllegalEventError,
    ResumeRequested,
    Send,
    SessionError,
    Started,
    State,
)
from gpu_agent.wire.messages import NodeError, NodeStatusMessage
from tests.session.harness import OTHER_GPU, WITH_GPU, error, play, ready


def test_before_anything_happened_everything_is_unknown() -> None:
    snapshot = play().machine.snapshot
    assert (snapshot.state, snapshot.node_id, snapshot.registry_status, snapshot.sequence) == (
        State.IDLE,
        None,
        None,
        0,
    )
    assert (snapshot.next_attempt_at, snapshot.last_refusal, snapshot.interval_seconds) == (None, None, None)


def test_a_snapshot_does_not_change_afterwards() -> None:
    session = play()
    before = session.machine.snapshot
    assert session >> Started()
    assert before.state is State.IDLE


def test_a_snapshot_shows_the_status_the_interval_and_the_next_attempt() -> None:
    session = ready()
    snapshot = session.machine.snapshot
    assert (snapshot.state, snapshot.node_id, snapshot.interval_seconds, snapshot.sequence) == (
        State.REGISTERED,
        "node-A",
        15,
        1,
    )
    assert snapshot.registry_status is not None
    assert (snapshot.registry_status.status, snapshot.registry_status.reason) == ("ready", "so")
    assert session >> Disconnected(1001, "")
    assert session.machine.snapshot.next_attempt_at == session.now + 0.5


def test_the_log_holds_the_last_transitions_the_oldest_first() -> None:
    session = play()
    assert session.machine.transition_log() == "none yet"
    assert session >> Started()
    for _ in range(40):
        assert (
            session
            >> Declared(WITH_GPU)
            << Connect
            >> ConnectFailed("no route")
            >> ResumeRequested()
            << Connect
        )
        assert session >> Connected() << Send >> error("GPU_REQUIRED") << Disconnect
        assert (
            session
            >> Declared(OTHER_GPU)
            << Connect
            >> Connected()
            << Send
            >> error("GPU_REQUIRED")
            << Disconnect
        )
    lines = session.machine.transition_log().splitlines()
    assert len(lines) == 32
    assert lines[-1] == "0.000 awaiting_ack → waiting_gpu: GPU_REQUIRED! (GPU_REQUIRED)"


def test_an_illegal_event_names_itself_and_shows_the_last_transitions() -> None:
    illegal = IllegalEventError(Started(), "1.000 idle → connecting: started")
    assert isinstance(illegal, SessionError)
    assert str(illegal) == (
        "Started cannot happen now. The last transitions:\n1.000 idle → connecting: started"
    )


def test_there_are_words_for_every_state_without_a_registration() -> None:
    assert set(State) - set(STATE_PHRASES) == {State.REGISTERED, State.LEAVING}


def test_a_refusal_is_a_sentence_with_its_code() -> None:
    assert (
        refusal_sentence(NodeError(code="GPU_REQUIRED", message="Plug one in."))
        == "Plug one in. (GPU_REQUIRED)"
    )
    assert refusal_sentence(NodeError(code="X")) == "no reason given (X)"


def test_what_a_peer_wrote_is_bounded() -> None:
    assert len(clipped("x" * 10_000)) == 501
    assert len(refusal_sentence(NodeError(code="y" * 1000, message="x" * 4000))) < 1100


def test_a_malformed_message_is_logged_with_its_paths() -> None:
    details = {"errors": [{"path": "$.hardware", "problem": "required"}]}
    logged = refusal_log_event(NodeError(code="INVALID_MESSAGE", details=details), registering=True)
    assert logged.event == "node_register_refused"
    assert "$.hardware" in str(logged.fields["errors"])
    assert logged.problem


def test_an_error_outside_registration_is_logged_as_such() -> None:
    assert refusal_log_event(NodeError(code="UNKNOWN_NODE"), registering=False).event == "registry_error"


def test_only_the_credential_codes_blame_a_credential() -> None:
    assert blames_credential(NodeError(code="UNAUTHORIZED"))
    assert blames_credential(NodeError(code="FORBIDDEN"))
    assert not blames_credential(NodeError(code="INVALID_MESSAGE"))


def test_a_change_of_status_is_logged_with_both_ends() -> None:
    ready = NodeStatusMessage(node_id="n", status="ready", reason="fine", reason_code="recovered")
    logged = status_log_event(None, ready)
    assert (logged.fields["from"], logged.fields["to"]) == (None, "ready")
    assert logged.fields["reason_code"] == "recovered"
    assert status_log_event(ready, ready).fields["from"] == "ready"
