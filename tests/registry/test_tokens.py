from gpu_agent.registry.credentials import Credential, CredentialKind, Role
from gpu_agent.registry.keys import NodeKey, NodeKeys
from gpu_agent.registry.record import NodeRecord
from gpu_agent.registry.tokens import Token, Tokens
from tests.registry.fleets import declaration, hardware

NOW = 1000.0


def operator(expires_at: float | None = None) -> Token:
    return Token(
        token_id="op",
        kind=CredentialKind.OPERATOR,
        digest="digest of op",
        created_at=NOW,
        expires_at=expires_at,
        role=Role.ADMIN,
    )


def node(*keys: NodeKey) -> NodeRecord:
    current = keys[0] if keys else None
    return NodeRecord(
        node_id="node-1",
        registration=declaration(),
        hardware=hardware(),
        registered_at=NOW,
        keys=NodeKeys(current=current, following=keys[1:]),
    )


def test_a_token_is_found_by_its_digest_for_as_long_as_it_lives() -> None:
    tokens = Tokens(604800.0)
    tokens.put(operator(expires_at=NOW + 60))
    stands_for = Credential(CredentialKind.OPERATOR, "op", role=Role.ADMIN)
    assert tokens.credential("digest of op", NOW + 59) == stands_for
    assert tokens.credential("digest of op", NOW + 60) is None
    assert tokens.credential("digest of nothing", NOW) is None


def test_a_revoked_token_opens_nothing_and_a_dropped_one_is_not_known() -> None:
    tokens = Tokens(604800.0)
    tokens.put(operator().revoked(NOW))
    assert tokens.credential("digest of op", NOW) is None
    tokens.drop("op")
    tokens.drop("op")
    assert tokens.by_id == {}


def test_a_node_is_found_by_the_keys_that_it_has_and_by_none_that_it_had() -> None:
    tokens, record = Tokens(604800.0), node(NodeKey("a", "digest of a"), NodeKey("b", "digest of b"))
    tokens.fit(record)
    tokens.fit(record)
    assert tokens.credential("digest of a", NOW) == Credential(CredentialKind.NODE, "a", "node-1")
    record.keys = record.keys.proven_by("b")
    tokens.fit(record)
    assert tokens.credential("digest of a", NOW) is None
    assert tokens.credential("digest of b", NOW) == Credential(CredentialKind.NODE, "b", "node-1")


def test_the_keys_of_a_node_that_is_let_go_open_nothing() -> None:
    tokens = Tokens(604800.0)
    tokens.fit(node(NodeKey("a", "digest of a")))
    tokens.forget("node-1")
    tokens.forget("node-1")
    assert tokens.credential("digest of a", NOW) is None


def test_a_digest_is_shown_to_no_log() -> None:
    assert "digest of op" not in repr(operator())
