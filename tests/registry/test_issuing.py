from gpu_agent.registry.actions import Refusal, Save, Send
from gpu_agent.registry.credentials import Credential, CredentialKind, Role
from gpu_agent.registry.events import (
    ConnectionLost,
    JoinTokenMade,
    OperatorTokenMade,
    RotationAsked,
    SaveFailed,
    TokenRevoked,
)
from gpu_agent.wire.messages import NodeControl, NodeError
from tests.registry.fleets import Registry, answer, closed, notes, of, proof

OPERATOR = OperatorTokenMade(ref=1, token_id="op", digest="digest of op", role=Role.READ, ttl_seconds=60.0)


def stands_for(registry: Registry, digest: str) -> Credential | None:
    return registry.fleet.credential(digest, registry.now)


def refused(
    registry: Registry, event: JoinTokenMade | OperatorTokenMade | TokenRevoked | RotationAsked
) -> str:
    refusal = answer(registry.do(event))
    assert isinstance(refusal, Refusal)
    return refusal.code


def listed(registry: Registry) -> list[str]:
    return [token.token_id for token in registry.fleet.tokens()]


def test_a_made_token_is_kept_found_noted_and_listed() -> None:
    registry = Registry()
    done = registry.do(OPERATOR)
    assert answer(done) is None
    assert ("token", "op") in registry.kept
    assert stands_for(registry, "digest of op") == Credential(CredentialKind.OPERATOR, "op", role=Role.READ)
    assert listed(registry) == ["join", "op"]
    (made,) = notes(done, "token_made")
    assert made.fields == {
        "token_id": "op",
        "kind": "operator",
        "ttl_seconds": 60,
        "role": "read",
        "name": "",
    }


def test_a_token_that_cannot_be_saved_is_undone_and_refused() -> None:
    registry = Registry()
    registry.store_fails = True
    assert refused(registry, OPERATOR) == "REGISTRY_BUSY"
    assert listed(registry) == ["join"]
    assert stands_for(registry, "digest of op") is None


def test_a_token_whose_id_was_drawn_twice_is_refused() -> None:
    registry = Registry()
    registry.do(OPERATOR)
    assert refused(registry, OPERATOR) == "REGISTRY_BUSY"
    assert listed(registry) == ["join", "op"]


def test_a_revoked_token_opens_nothing_and_one_that_is_not_known_is_refused() -> None:
    registry = Registry()
    registry.do(OPERATOR)
    assert answer(registry.do(TokenRevoked(1, "op"))) is None
    assert answer(registry.do(TokenRevoked(1, "op"))) is None
    assert stands_for(registry, "digest of op") is None
    assert refused(registry, TokenRevoked(1, "other")) == "UNKNOWN_TOKEN"


def test_a_revocation_that_cannot_be_saved_is_undone() -> None:
    registry = Registry()
    registry.do(OPERATOR)
    registry.store_fails = True
    assert refused(registry, TokenRevoked(1, "op")) == "REGISTRY_BUSY"
    assert stands_for(registry, "digest of op") is not None


def test_a_token_that_is_revoked_twice_is_not_called_revoked_before_it_is_kept_as_that() -> None:
    registry = Registry()
    registry.do(OPERATOR)
    first = of(Save, registry.fleet.handle(TokenRevoked(1, "op"), registry.now))
    (second,) = of(Save, registry.fleet.handle(TokenRevoked(2, "op"), registry.now))
    assert [change.key for change in second.changes] == ["op"]
    for save in (*first, second):
        assert isinstance(answer(registry.do(SaveFailed(save.save, "disk full"))), Refusal)
    assert stands_for(registry, "digest of op") is not None


def test_nodes_that_joined_by_a_token_outlive_its_revocation() -> None:
    registry = Registry()
    registry.ready()
    registry.do(TokenRevoked(1, "join"))
    assert registry.node().status == "ready"
    assert stands_for(registry, "digest of node-1") == proof("node-1")


def test_only_an_id_that_is_known_can_be_given_back() -> None:
    event = JoinTokenMade(ref=1, token_id="r", digest="d", node_id="node-9")
    assert refused(Registry(), event) == "UNKNOWN_NODE"


def test_a_node_that_is_rotated_is_asked_to_register_again() -> None:
    registry = Registry()
    registry.ready()
    asked = registry.do(RotationAsked(1, "node-1"))
    assert [one.message for one in of(Send, asked)] == [
        NodeControl(command="reregister", reason="an operator rotates its token")
    ]
    assert registry.node().status == "ready"


def test_a_node_that_is_gone_is_rotated_when_it_is_back() -> None:
    registry = Registry()
    registry.ready()
    registry.do(ConnectionLost(1))
    assert of(Send, registry.do(RotationAsked(1, "node-1"))) == []
    assert registry.node().keys.rotating


def test_a_rotation_at_once_ends_the_token_and_the_session_and_says_how_to_come_back() -> None:
    registry = Registry()
    registry.ready()
    done = registry.do(RotationAsked(1, "node-1", at_once=True))
    assert stands_for(registry, "digest of node-1") is None
    assert closed(done) == [(1, 1008)]
    (error,) = [one.message for one in of(Send, done) if isinstance(one.message, NodeError)]
    assert error.code == "UNAUTHORIZED"
    assert "gpu-agent registry reclaim node-1" in error.message
    assert not registry.node().connected
    assert registry.claim("job-1").counts == {"disconnected": 1}
    registry.pass_time(46.0)
    assert registry.node().status == "offline"


def test_a_rotation_at_once_of_a_node_that_is_gone_ends_its_token() -> None:
    registry = Registry()
    registry.ready()
    registry.do(ConnectionLost(1))
    registry.do(RotationAsked(1, "node-1", at_once=True))
    assert refused(registry, RotationAsked(1, "node-1")) == "NOTHING_TO_ROTATE"


def test_a_rotation_that_cannot_be_saved_is_undone() -> None:
    registry = Registry()
    registry.ready()
    registry.store_fails = True
    assert refused(registry, RotationAsked(1, "node-1", at_once=True)) == "REGISTRY_BUSY"
    assert stands_for(registry, "digest of node-1") == proof("node-1")
    assert registry.node().connected


def test_only_a_node_that_has_a_token_can_be_rotated() -> None:
    registry = Registry(auth_off=True)
    registry.register()
    assert refused(registry, RotationAsked(1, "node-1")) == "NOTHING_TO_ROTATE"
    assert refused(registry, RotationAsked(1, "node-9")) == "UNKNOWN_NODE"
