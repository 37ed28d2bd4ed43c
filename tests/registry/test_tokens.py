"""Tokens: how they are created, found, issued to nodes, rotated, revoked and purged."""

import json
from dataclasses import replace

import pytest

from gpu_agent.registry.actions import DocumentKind, Effect, LogEvent, Refusal, Send
from gpu_agent.registry.events import (
    ConnectionLost,
    JoinTokenRequested,
    OperatorTokenRequested,
    RegistrationReceived,
    RevocationRequested,
    RotationRequested,
    SessionRequested,
    TokenRequest,
)
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.persistence import StoredDocument
from gpu_agent.registry.token_issuing import MOST_SESSIONS, SESSION_SECONDS
from gpu_agent.registry.tokens import (
    Credential,
    CredentialKind,
    FreshToken,
    NodeToken,
    NodeTokens,
    Role,
    Token,
    TokenTable,
    allows,
    tokens_of_joining_node,
)
from gpu_agent.wire.messages import NodeControl, NodeError, NodeRegisterAck
from tests.registry.harness import (
    JOIN,
    Registry,
    ack,
    answer,
    closed,
    codes,
    declaration,
    figures,
    logged,
    node_record,
    of,
    proof,
)

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


def node(*keys: NodeToken) -> NodeRecord:
    current = keys[0] if keys else None
    return node_record(registered_at=NOW, tokens=NodeTokens(current=current, following=keys[1:]))


def test_a_token_is_found_by_its_digest_for_as_long_as_it_lives() -> None:
    tokens = TokenTable(604800.0)
    tokens.put(operator(expires_at=NOW + 60))
    stands_for = Credential(CredentialKind.OPERATOR, "op", role=Role.ADMIN)
    assert tokens.credential("digest of op", NOW + 59) == stands_for
    assert tokens.credential("digest of op", NOW + 60) is None
    assert tokens.credential("digest of nothing", NOW) is None


def test_a_revoked_token_opens_nothing_and_a_dropped_one_is_not_known() -> None:
    tokens = TokenTable(604800.0)
    tokens.put(operator().revoked(NOW))
    assert tokens.credential("digest of op", NOW) is None
    tokens.remove("op")
    tokens.remove("op")
    assert tokens.by_id == {}


def test_a_node_is_found_by_the_keys_that_it_has_and_by_none_that_it_had() -> None:
    tokens, record = TokenTable(604800.0), node(NodeToken("a", "digest of a"), NodeToken("b", "digest of b"))
    tokens.put_node(record.node_id, record.tokens)
    tokens.put_node(record.node_id, record.tokens)
    assert tokens.credential("digest of a", NOW) == Credential(CredentialKind.NODE, "a", "node-1")
    record.tokens = record.tokens.used("b")
    tokens.put_node(record.node_id, record.tokens)
    assert tokens.credential("digest of a", NOW) is None
    assert tokens.credential("digest of b", NOW) == Credential(CredentialKind.NODE, "b", "node-1")


def test_the_keys_of_a_node_that_is_removed_open_nothing() -> None:
    tokens = TokenTable(604800.0)
    known = node(NodeToken("a", "digest of a"))
    tokens.put_node(known.node_id, known.tokens)
    tokens.remove_node("node-1")
    tokens.remove_node("node-1")
    assert tokens.credential("digest of a", NOW) is None


def test_a_digest_is_shown_to_no_log() -> None:
    assert "digest of op" not in repr(operator())


OPERATOR = OperatorTokenRequested(
    ref=1, token_id="op", digest="digest of op", role=Role.READ, ttl_seconds=60.0
)


def stands_for(registry: Registry, digest: str) -> Credential | None:
    return registry.fleet.credential(digest, registry.now)


def refused(
    registry: Registry,
    event: TokenRequest,
) -> str:
    refusal = answer(registry.do(event))
    assert isinstance(refusal, Refusal)
    return refusal.code


def listed(registry: Registry) -> list[str]:
    return [token.token_id for token in registry.fleet.tokens()]


def test_a_created_token_is_stored_found_logged_and_listed() -> None:
    registry = Registry()
    done = registry.do(OPERATOR)
    assert answer(done) is None
    assert ("token", "op") in registry.documents
    assert stands_for(registry, "digest of op") == Credential(CredentialKind.OPERATOR, "op", role=Role.READ)
    assert listed(registry) == ["join", "op"]
    (made,) = logged(done, "token_created")
    assert made.fields == {
        "token_id": "op",
        "kind": "operator",
        "ttl_seconds": 60,
        "role": "read",
        "name": "",
    }


def test_a_token_that_cannot_be_saved_is_undone_and_refused() -> None:
    registry = Registry()
    registry.let_store_fail()
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
    assert answer(registry.do(RevocationRequested(1, "op"))) is None
    assert answer(registry.do(RevocationRequested(1, "op"))) is None
    assert stands_for(registry, "digest of op") is None
    assert refused(registry, RevocationRequested(1, "other")) == "UNKNOWN_TOKEN"


def test_nodes_that_joined_by_a_token_outlive_its_revocation() -> None:
    registry = Registry()
    registry.ready()
    registry.do(RevocationRequested(1, "join"))
    assert registry.node().status == "ready"
    assert stands_for(registry, "digest of node-1") == proof("node-1")


def test_only_an_id_that_is_known_can_be_given_back() -> None:
    event = JoinTokenRequested(ref=1, token_id="r", digest="d", node_id="node-9")
    assert refused(Registry(), event) == "UNKNOWN_NODE"


def test_a_node_that_is_rotated_receives_the_command_to_register_again() -> None:
    registry = Registry()
    registry.ready()
    asked = registry.do(RotationRequested(1, "node-1"))
    assert [one.message for one in of(Send, asked)] == [
        NodeControl(command="reregister", reason="an operator rotates its token")
    ]
    assert registry.node().status == "ready"


def test_a_node_that_is_gone_is_rotated_when_it_is_back() -> None:
    registry = Registry()
    registry.ready()
    registry.do(ConnectionLost(1))
    assert of(Send, registry.do(RotationRequested(1, "node-1"))) == []
    assert registry.node().tokens.rotating


def test_a_rotation_at_once_ends_the_token_and_the_session_and_says_how_to_come_back() -> None:
    registry = Registry()
    registry.ready()
    done = registry.do(RotationRequested(1, "node-1", revoke_now=True))
    assert stands_for(registry, "digest of node-1") is None
    assert closed(done) == [(1, 1008)]
    (error,) = [one.message for one in of(Send, done) if isinstance(one.message, NodeError)]
    assert error.code == "UNAUTHORIZED"
    assert "gpu-agent registry node readmit node-1" in error.message
    assert not registry.node().connected
    assert registry.claim("job-1").counts == {"disconnected": 1}
    registry.pass_time(46.0)
    assert registry.node().status == "offline"


def test_a_rotation_at_once_of_a_node_that_is_gone_ends_its_token() -> None:
    registry = Registry()
    registry.ready()
    registry.do(ConnectionLost(1))
    registry.do(RotationRequested(1, "node-1", revoke_now=True))
    assert refused(registry, RotationRequested(1, "node-1")) == "NOTHING_TO_ROTATE"


def test_only_a_node_that_has_a_token_can_be_rotated() -> None:
    registry = Registry(auth_off=True)
    registry.register()
    assert refused(registry, RotationRequested(1, "node-1")) == "NOTHING_TO_ROTATE"
    assert refused(registry, RotationRequested(1, "node-9")) == "UNKNOWN_NODE"


ONCE = Credential(CredentialKind.JOIN, "once")


def with_token(registry: Registry, **parts: object) -> Registry:
    registry.do(JoinTokenRequested(ref=0, token_id="once", digest="digest of once", **parts))  # type: ignore[arg-type]
    return registry


def arrive(
    registry: Registry, connection: int, credential: Credential, drawn: str, **labels: str
) -> list[Effect]:
    """Let node-1 register; a token with this id is drawn for it."""
    return registry.do(
        RegistrationReceived(
            connection,
            declaration(labels=labels),
            "node-1",
            credential,
            fresh_token=FreshToken(drawn, f"secret {drawn}", f"digest {drawn}"),
        )
    )


def sent_token(actions: list[Effect]) -> str | None:
    (ack,) = [one.message for one in of(Send, actions) if isinstance(one.message, NodeRegisterAck)]
    return ack.node_token


def node_credential(token_id: str) -> Credential:
    return Credential(CredentialKind.NODE, token_id, "node-1")


def restarted(registry: Registry) -> Registry:
    fresh = Registry()
    stored = [
        StoredDocument(kind, key, json.loads(json.dumps(document)), 0.0)
        for (kind, key), (document, _) in registry.documents.items()
    ]
    fresh.restore(stored)
    return fresh


def test_a_node_that_joins_receives_a_token_that_proves_it_from_then_on() -> None:
    registry = Registry()
    assert sent_token(arrive(registry, 1, JOIN, "t1")) == "secret t1"
    assert stands_for(registry, "digest t1") == node_credential("t1")


def test_the_tokens_digest_is_stored_with_the_node_before_the_token_is_sent() -> None:
    registry = Registry()
    done = arrive(registry, 1, JOIN, "t1")
    assert "digest t1" in json.dumps([change.document for change in registry.stored])
    assert sent_token(done) == "secret t1"


def test_a_token_leaks_into_nothing_but_its_ack() -> None:
    registry = Registry()
    arrive(registry, 1, JOIN, "t1")
    registry.heartbeats(3)
    registry.do(RotationRequested(1, "node-1"))
    arrive(registry, 1, JOIN, "t2")
    acks = [one for one in of(Send, registry.done) if isinstance(one.message, NodeRegisterAck)]
    besides = [one for one in registry.done if one not in acks]
    assert "secret" not in repr(besides)
    assert "secret" not in repr(registry.node())
    assert "secret" not in repr(registry.documents)


def test_a_node_that_proves_itself_receives_no_other_token() -> None:
    registry = Registry()
    arrive(registry, 1, JOIN, "t1")
    assert sent_token(arrive(registry, 2, node_credential("t1"), "t2")) is None
    assert stands_for(registry, "digest t2") is None


def test_until_its_first_heartbeat_a_node_receives_another_token_each_time_and_none_afterwards() -> None:
    registry = Registry()
    arrive(registry, 1, JOIN, "t1")
    assert sent_token(arrive(registry, 1, JOIN, "t2")) == "secret t2"
    assert stands_for(registry, "digest t1") is None
    registry.heartbeat()
    assert sent_token(arrive(registry, 1, JOIN, "t3")) is None
    assert stands_for(registry, "digest t2") is not None


def test_before_its_first_heartbeat_a_node_that_lost_its_token_joins_by_the_same_join_token_for_another() -> (
    None
):
    registry = with_token(Registry())
    arrive(registry, 1, ONCE, "t1")
    registry.do(ConnectionLost(1))
    again = registry.do(
        RegistrationReceived(
            2, declaration("node-1"), "unused", ONCE, fresh_token=FreshToken("t2", "secret t2", "digest t2")
        )
    )
    assert sent_token(again) == "secret t2"
    assert stands_for(registry, "digest t1") is None
    assert stands_for(registry, "digest t2") == node_credential("t2")


def test_a_first_heartbeat_that_is_not_healthy_consumes_the_use_too() -> None:
    registry = with_token(Registry())
    arrive(registry, 1, ONCE, "t1")
    registry.heartbeat(gpus=figures(health="lost"))
    token = registry.fleet.token("once")
    assert token is not None
    assert (token.spent, registry.fleet.reserved("once")) == (1, 0)


def test_the_first_heartbeat_consumes_the_use_is_stored_and_no_later_one_is() -> None:
    registry = with_token(Registry())
    arrive(registry, 1, ONCE, "t1")
    registry.stored.clear()
    registry.heartbeat(running_jobs=("job-1",))
    assert {change.kind for change in registry.stored} == {DocumentKind.NODE, DocumentKind.TOKEN}
    registry.stored.clear()
    registry.heartbeat(running_jobs=())
    assert registry.stored == []
    (token,) = [token for token in registry.fleet.tokens() if token.token_id == "once"]
    assert (token.spent, token.state(registry.now)) == (1, "used_up")
    assert codes(registry.arrive(ONCE, 2), 2) == ["FORBIDDEN"]


def test_a_use_that_was_spent_stays_spent_when_its_token_is_long_forgotten() -> None:
    registry = with_token(Registry(offline_retention_seconds=10.0), ttl_seconds=1.0)
    arrive(registry, 1, ONCE, "t1")
    registry.pass_time(11.0)
    assert [token.token_id for token in registry.fleet.tokens()] == ["join"]
    registry.heartbeat()
    assert registry.node().tokens.spent


def test_granted_labels_go_before_what_the_node_says_and_outlive_everything() -> None:
    registry = with_token(Registry(), labels={"zone": "b"})
    arrive(registry, 1, ONCE, "t1", zone="a", disk="fast")
    assert registry.node().declared.labels == {"zone": "b", "disk": "fast"}
    registry.heartbeat(labels={"zone": "c", "rack": "4"})
    assert registry.node().declared.labels == {"zone": "b", "rack": "4"}
    arrive(registry, 2, node_credential("t1"), "t2", zone="d")
    assert registry.node().declared.labels == {"zone": "b"}
    assert restarted(registry).node().declared.labels == {"zone": "b"}


def test_a_node_that_has_its_id_back_keeps_its_labels_and_its_desired_state() -> None:
    registry = with_token(Registry(), labels={"zone": "b"})
    arrive(registry, 1, ONCE, "t1")
    registry.heartbeat()
    registry.drain()
    registry.do(JoinTokenRequested(ref=1, token_id="back", digest="digest of back", node_id="node-1"))
    sent = arrive(registry, 2, Credential(CredentialKind.JOIN, "back", "node-1"), "t2")
    assert sent_token(sent) == "secret t2"
    assert (codes(sent, 1), closed(sent)) == (["SESSION_SUPERSEDED"], [(1, 1008)])
    assert stands_for(registry, "digest t1") is None
    assert registry.node().declared.labels == {"zone": "b"}
    assert registry.node().desired.drain is not None


def test_a_rotated_node_receives_another_token_and_the_old_one_proves_it_until_the_new_one_does() -> None:
    registry = Registry()
    arrive(registry, 1, JOIN, "t1")
    registry.heartbeat()
    registry.do(RotationRequested(1, "node-1"))
    assert sent_token(arrive(registry, 1, JOIN, "t2")) == "secret t2"
    assert stands_for(registry, "digest t1") is not None
    assert sent_token(arrive(registry, 2, node_credential("t2"), "t3")) is None
    assert stands_for(registry, "digest t1") is None
    assert stands_for(registry, "digest t2") == node_credential("t2")
    assert stands_for(registry, "digest t3") is None


def test_a_rotated_node_that_never_stored_its_new_token_receives_another() -> None:
    registry = Registry()
    arrive(registry, 1, JOIN, "t1")
    registry.heartbeat()
    registry.do(RotationRequested(1, "node-1"))
    arrive(registry, 1, JOIN, "t2")
    registry.do(ConnectionLost(1))
    assert sent_token(arrive(registry, 2, node_credential("t1"), "t3")) == "secret t3"
    assert stands_for(registry, "digest t1") is not None
    arrive(registry, 3, node_credential("t3"), "t4")
    assert stands_for(registry, "digest t1") is None
    assert stands_for(registry, "digest t2") is None


def test_a_node_that_is_rotated_twice_is_not_locked_out_by_an_answer_that_was_lost() -> None:
    registry = Registry()
    arrive(registry, 1, JOIN, "t1")
    registry.heartbeat()
    registry.do(RotationRequested(1, "node-1"))
    arrive(registry, 1, JOIN, "t2")
    registry.do(RotationRequested(2, "node-1"))
    assert sent_token(arrive(registry, 1, JOIN, "t3")) == "secret t3"
    assert sent_token(arrive(registry, 2, node_credential("t2"), "t4")) == "secret t4"
    assert stands_for(registry, "digest t1") is None
    assert stands_for(registry, "digest t2") == node_credential("t2")


def test_a_rotated_node_that_registers_twice_on_one_connection_keeps_what_it_received() -> None:
    registry = Registry()
    arrive(registry, 1, JOIN, "t1")
    registry.heartbeat()
    registry.do(RotationRequested(1, "node-1"))
    arrive(registry, 1, JOIN, "t2")
    assert sent_token(arrive(registry, 1, JOIN, "t3")) is None
    assert stands_for(registry, "digest t2") is not None


def test_a_rotation_goes_on_after_a_restart() -> None:
    registry = Registry()
    arrive(registry, 1, JOIN, "t1")
    registry.heartbeat()
    registry.do(RotationRequested(1, "node-1"))
    rotating = restarted(registry)
    assert sent_token(arrive(rotating, 2, node_credential("t1"), "t2")) == "secret t2"
    sent = restarted(rotating)
    assert stands_for(sent, "digest t1") is not None
    assert sent_token(arrive(sent, 3, node_credential("t2"), "t3")) is None
    assert stands_for(sent, "digest t1") is None


def test_with_auth_off_no_node_receives_a_token() -> None:
    registry = Registry(auth_off=True)
    assert sent_token(registry.register()) is None
    assert registry.node().tokens.all == ()


def test_a_token_is_sent_only_when_one_was_issued() -> None:
    registry = Registry()
    assert ack(registry.register()).node_token == "secret of node-1"
    assert ack(registry.arrive(proof("node-1"), 2)).node_token is None


OLD, NEW = NodeToken("old", "digest of old"), NodeToken("new", "digest of new")


def test_who_joins_has_one_key_whose_use_is_not_spent_yet() -> None:
    keys = tokens_of_joining_node(FreshToken("new", "secret", "digest of new"), "join-1")
    assert keys == NodeTokens(current=NEW, joined_by="join-1", spent=False)
    assert keys.all == (NEW,)


def test_while_a_node_is_rotated_both_its_keys_prove_it() -> None:
    keys = NodeTokens(current=OLD).with_rotation().followed_by(FreshToken("new", "secret", "digest of new"))
    assert (keys.has("old"), keys.has("new"), keys.has("other")) == (True, True, False)
    assert keys.used("old") is keys


def test_the_first_proof_of_a_new_key_ends_the_old_one_and_the_rotation() -> None:
    keys = NodeTokens(current=OLD, following=(NEW,), rotating=True)
    assert keys.used("new") == NodeTokens(current=NEW)


def test_an_issued_token_proves_its_node_though_another_was_issued_since() -> None:
    """The answer that brought the other may have been lost."""
    third = NodeToken("third", "digest of third")
    keys = NodeTokens(current=OLD, following=(NEW,), rotating=True)
    keys = keys.followed_by(FreshToken("third", "secret", "digest of third"))
    assert keys.all == (OLD, NEW, third)
    assert keys.used("new") == NodeTokens(current=NEW, following=(third,), rotating=True)
    assert keys.used("third") == NodeTokens(current=third)


def test_however_often_a_node_is_rotated_it_has_few_keys() -> None:
    keys = NodeTokens(current=OLD)
    for number in range(5):
        keys = keys.followed_by(FreshToken(f"{number}", "secret", f"digest of {number}"))
    assert [key.token_id for key in keys.all] == ["old", "3", "4"]


@pytest.mark.parametrize("needed", Role)
def test_each_role_allows_what_those_before_it_do(needed: Role) -> None:
    allowing = [role for role in Role if allows(role, needed)]
    assert allowing == list(Role)[list(Role).index(needed) :]


def test_a_fresh_token_shows_its_text_to_no_log() -> None:
    assert "secret" not in repr(FreshToken("0001", "secret", "digest"))


def session(number: int = 0, parent: str = "op") -> SessionRequested:
    return SessionRequested(ref=1, token_id=f"s{number}", digest=f"digest of s{number}", parent=parent)


def test_a_session_has_the_role_of_its_operator_token_and_is_never_longer() -> None:
    registry = Registry()
    registry.do(OPERATOR)
    assert answer(registry.do(session())) is None
    assert ("token", "s0") in registry.documents
    found = stands_for(registry, "digest of s0")
    assert found == Credential(CredentialKind.SESSION, "s0", role=Role.READ, parent_id="op")
    registry.pass_time(59)
    assert stands_for(registry, "digest of s0") is not None
    registry.pass_time(1)
    assert stands_for(registry, "digest of s0") is None


def test_sessions_are_no_events_of_the_log() -> None:
    registry = Registry()
    registry.do(OPERATOR)
    for number in range(MOST_SESSIONS + 1):
        assert not of(LogEvent, registry.do(session(number)))
    assert not of(LogEvent, registry.do(RevocationRequested(1, "s3")))
    ended = registry.do(RevocationRequested(1, "op"))
    assert [one.fields["token_id"] for one in logged(ended, "token_revoked")] == ["op"]


def test_the_session_of_a_token_without_end_ends_by_itself_and_is_listed_no_more() -> None:
    registry = Registry()
    registry.do(replace(OPERATOR, ttl_seconds=None))
    registry.do(session())
    registry.pass_time(SESSION_SECONDS - 1)
    assert stands_for(registry, "digest of s0") is not None
    registry.pass_time(2)
    assert stands_for(registry, "digest of s0") is None
    assert listed(registry) == ["join", "op"]


def test_sessions_end_with_their_operator_token_and_no_other_does() -> None:
    registry = Registry()
    registry.do(OPERATOR)
    registry.do(replace(OPERATOR, token_id="other", digest="digest of other"))
    registry.do(session(0))
    registry.do(session(1, parent="other"))
    registry.do(RevocationRequested(1, "op"))
    assert stands_for(registry, "digest of s0") is None
    assert stands_for(registry, "digest of s1") is not None
    assert refused(registry, session(2)) == "UNKNOWN_TOKEN"


def test_the_oldest_session_ends_where_one_token_has_too_many() -> None:
    registry = Registry()
    registry.do(OPERATOR)
    for number in range(MOST_SESSIONS + 2):
        registry.do(session(number))
        registry.pass_time(0.1)
    valid = [stands_for(registry, f"digest of s{number}") is not None for number in range(MOST_SESSIONS + 2)]
    assert valid == [False, False, *[True] * MOST_SESSIONS]


def test_only_an_operator_token_has_sessions() -> None:
    registry = Registry()
    registry.do(OPERATOR)
    registry.do(session())
    for parent in ("join", "s0", "none"):
        assert refused(registry, session(1, parent=parent)) == "UNKNOWN_TOKEN"
    assert registry.fleet.token("s1") is None
