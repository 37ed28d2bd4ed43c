""""""

from gpu_agent.session.errors import (
    blames_credential,
    clipped,
    refusal_log_event,
    refusal_sentence,
    status_log_event,
)
from gpu_agent.session.types import (
    STATE_PHRASES,
    Disconnected,
    IllegalEventError,
    SessionError,
    Started,
    State,
    TransitionLog,
)
from gpu_agent.wire.messages import NodeError, NodeStatusMessage
from tests.session.harness import play, ready


def test_before_anything_happened_everything_is_unknown() -> None:
    view = play().machine.view
    assert (view.state, view.node_id, view.verdict, view.sequence) == (State.IDLE, None, None, 0)
    assert (view.next_attempt_at, view.last_refusal, view.interval_seconds) == (None, None, None)


def test_a_view_is_a_picture_and_does_not_change_afterwards() -> None:
    session = play()
    before = session.machine.view
    assert session >> Started()
    assert before.state is State.IDLE


def test_the_view_shows_the_verdict_the_rhythm_and_the_next_attempt() -> None:
    session = ready()
    view = session.machine.view
    assert (view.state, view.node_id, view.interval_seconds, view.sequence) == (
        State.REGISTERED,
        "node-A",
        15,
        1,
    )
    assert view.verdict is not None
    assert (view.verdict.status, view.verdict.reason) == ("ready", "so")
    assert session >> Disconnected(1001, "")
    assert session.machine.view.next_attempt_at == session.now + 0.5


def test_a_story_keeps_the_last_transitions_oldest_first() -> None:
    story = TransitionLog()
    for step in range(40):
        story.record(float(step), (State.IDLE, State.CONNECTING), f"cause {step}")
    lines = str(story).splitlines()
    assert len(lines) == 32
    assert lines[-1] == "39.000 idle → connecting: cause 39"


def test_an_empty_story_says_so() -> None:
    assert str(TransitionLog()) == "nothing happened yet"


def test_an_illegal_event_names_itself_and_tells_the_story() -> None:
    error = IllegalEventError(TransitionLog(), "1.000 idle → connecting: started")
    assert isinstance(error, SessionError)
    assert str(error) == "Story cannot happen now. The story so far:\n1.000 idle → connecting: started"


def test_there_are_words_for_every_state_in_which_the_registry_does_not_hear_the_node() -> None:
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


def test_a_malformed_message_is_noted_with_its_paths() -> None:
    details = {"errors": [{"path": "$.hardware", "problem": "required"}]}
    note = refusal_log_event(NodeError(code="INVALID_MESSAGE", details=details), registering=True)
    assert note.event == "node_register_refused"
    assert "$.hardware" in str(note.fields["errors"])
    assert note.problem


def test_an_error_outside_registration_is_noted_as_such() -> None:
    assert refusal_log_event(NodeError(code="UNKNOWN_NODE"), registering=False).event == "registry_error"


def test_only_the_credential_codes_blame_a_credential() -> None:
    assert blames_credential(NodeError(code="UNAUTHORIZED"))
    assert blames_credential(NodeError(code="FORBIDDEN"))
    assert not blames_credential(NodeError(code="INVALID_MESSAGE"))


def test_a_change_of_status_is_noted_with_both_ends() -> None:
    ready = NodeStatusMessage(node_id="n", status="ready", reason="fine", reason_code="recovered")
    note = status_log_event(None, ready)
    assert (note.fields["from"], note.fields["to"]) == (None, "ready")
    assert note.fields["reason_code"] == "recovered"
    assert status_log_event(ready, ready).fields["from"] == "ready"
