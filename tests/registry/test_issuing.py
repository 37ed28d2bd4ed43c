from gpu_agent.registry.actions import Refusal, Send
from gpu_agent.registry.credentials import Credential, CredentialKind, Role
from gpu_agent.registry.events import JoinTokenMade, OperatorTokenMade, RotationAsked, TokenRevoked
from gpu_agent.wire.messages import NodeControl
from tests.registry.fleets import Registry, answer, of
from tests.registry.test_proving import JOIN, arrive, stands_for, told_token


def operator() -> OperatorTokenMade:
    return OperatorTokenMade(ref=1, token_id="op", digest="digest of op", role=Role.READ)


def test_a_made_token_is_kept_found_and_listed() -> None:
    registry = Registry()
    assert answer(registry.do(operator())) is None
    assert ("token", "op") in registry.kept
    assert stands_for(registry, "digest of op") == Credential(CredentialKind.OPERATOR, "op", role=Role.READ)
    assert [token.token_id for token in registry.fleet.tokens()] == ["op"]


def test_a_token_that_cannot_be_saved_is_undone_and_refused() -> None:
    registry = Registry()
    registry.store_fails = True
    assert isinstance(answer(registry.do(operator())), Refusal)
    assert registry.fleet.tokens() == []


def test_a_token_id_that_is_taken_is_refused() -> None:
    registry = Registry()
    registry.do(operator())
    refused = answer(registry.do(operator()))
    assert isinstance(refused, Refusal)
    assert refused.code == "TOKEN_EXISTS"


def test_a_revoked_token_opens_nothing_and_one_that_is_not_known_is_refused() -> None:
    registry = Registry()
    registry.do(operator())
    assert answer(registry.do(TokenRevoked(1, "op"))) is None
    assert answer(registry.do(TokenRevoked(1, "op"))) is None
    assert stands_for(registry, "digest of op") is None
    refused = answer(registry.do(TokenRevoked(1, "other")))
    assert isinstance(refused, Refusal)
    assert refused.code == "UNKNOWN_TOKEN"


def test_a_revocation_that_cannot_be_saved_is_undone() -> None:
    registry = Registry()
    registry.do(operator())
    registry.store_fails = True
    assert isinstance(answer(registry.do(TokenRevoked(1, "op"))), Refusal)
    assert stands_for(registry, "digest of op") is not None


def test_only_an_id_that_is_known_can_be_given_back() -> None:
    refused = answer(Registry().do(JoinTokenMade(ref=1, token_id="r", digest="d", node_id="node-9")))
    assert isinstance(refused, Refusal)
    assert refused.code == "UNKNOWN_NODE"


def test_a_node_that_is_rotated_registers_again_and_is_told_another_token() -> None:
    registry = Registry()
    arrive(registry, 1, JOIN)
    asked = registry.do(RotationAsked(1, "node-1"))
    assert [one.message for one in of(Send, asked)] == [
        NodeControl(command="reregister", reason="an operator rotates its token")
    ]
    assert told_token(arrive(registry, 1, JOIN)) == "secret-1"


def test_only_a_node_that_has_a_token_can_be_rotated() -> None:
    registry = Registry(auth_off=True)
    registry.register()
    for node_id, code in (("node-1", "NOTHING_TO_ROTATE"), ("node-9", "UNKNOWN_NODE")):
        refused = answer(registry.do(RotationAsked(1, node_id)))
        assert isinstance(refused, Refusal)
        assert refused.code == code
