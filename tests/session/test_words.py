from gpu_agent.session.words import blames_credential, clipped, refusal, refusal_note, status_note
from gpu_agent.wire.messages import NodeError, NodeStatusMessage


def test_a_refusal_is_a_sentence_with_its_code() -> None:
    assert refusal(NodeError(code="GPU_REQUIRED", message="Plug one in.")) == "Plug one in. (GPU_REQUIRED)"
    assert refusal(NodeError(code="X")) == "no reason given (X)"


def test_what_a_peer_wrote_is_bounded() -> None:
    assert len(clipped("x" * 10_000)) == 501
    assert len(refusal(NodeError(code="y" * 1000, message="x" * 4000))) < 1100


def test_a_malformed_message_is_noted_with_its_paths() -> None:
    details = {"errors": [{"path": "$.hardware", "problem": "required"}]}
    note = refusal_note(NodeError(code="INVALID_MESSAGE", details=details), registering=True)
    assert note.event == "node_register_refused"
    assert "$.hardware" in str(note.fields["errors"])
    assert note.problem


def test_an_error_outside_registration_is_noted_as_such() -> None:
    assert refusal_note(NodeError(code="UNKNOWN_NODE"), registering=False).event == "registry_error"


def test_only_the_credential_codes_blame_a_credential() -> None:
    assert blames_credential(NodeError(code="UNAUTHORIZED"))
    assert blames_credential(NodeError(code="FORBIDDEN"))
    assert not blames_credential(NodeError(code="INVALID_MESSAGE"))


def test_a_change_of_status_is_noted_with_both_ends() -> None:
    ready = NodeStatusMessage(node_id="n", status="ready", reason="fine", reason_code="recovered")
    note = status_note(None, ready)
    assert (note.fields["from"], note.fields["to"]) == (None, "ready")
    assert note.fields["reason_code"] == "recovered"
    assert status_note(ready, ready).fields["from"] == "ready"
