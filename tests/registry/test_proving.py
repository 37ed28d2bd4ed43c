import json

from gpu_agent.registry.actions import Action, Kept, Save, Send
from gpu_agent.registry.credentials import Credential, CredentialKind, FreshToken
from gpu_agent.registry.documents import Restored
from gpu_agent.registry.events import ConnectionLost, JoinTokenMade, RegistrationArrived, RotationAsked
from gpu_agent.wire.messages import NodeRegisterAck
from tests.registry.fleets import JOIN, Registry, ack, closed, codes, declaration, figures, of, proof

ONCE = Credential(CredentialKind.JOIN, "once")


def with_token(registry: Registry, **parts: object) -> Registry:
    registry.do(JoinTokenMade(ref=0, token_id="once", digest="digest of once", **parts))  # type: ignore[arg-type]
    return registry


def arrive(
    registry: Registry, connection: int, credential: Credential, drawn: str, **labels: str
) -> list[Action]:
    """Let node-1 register; a token with this id is drawn for it."""
    return registry.do(
        RegistrationArrived(
            connection,
            declaration(labels=labels),
            "node-1",
            credential,
            fresh_token=FreshToken(drawn, f"secret {drawn}", f"digest {drawn}"),
        )
    )


def told_token(actions: list[Action]) -> str | None:
    (ack,) = [one.message for one in of(Send, actions) if isinstance(one.message, NodeRegisterAck)]
    return ack.node_token


def stands_for(registry: Registry, digest: str) -> Credential | None:
    return registry.fleet.credential(digest, registry.now)


def node_credential(token_id: str) -> Credential:
    return Credential(CredentialKind.NODE, token_id, "node-1")


def restarted(registry: Registry) -> Registry:
    fresh = Registry()
    kept = [
        Restored(kind, key, json.loads(json.dumps(document)), 0.0)
        for (kind, key), (document, _) in registry.kept.items()
    ]
    fresh.restore(kept)
    return fresh


def test_a_node_that_joins_is_told_a_token_that_proves_it_from_then_on() -> None:
    registry = Registry()
    assert told_token(arrive(registry, 1, JOIN, "t1")) == "secret t1"
    assert stands_for(registry, "digest t1") == node_credential("t1")


def test_the_tokens_digest_is_kept_with_the_node_before_the_token_is_told() -> None:
    registry = Registry()
    done = arrive(registry, 1, JOIN, "t1")
    (save,) = of(Save, done)
    assert "digest t1" in json.dumps([change.document for change in save.changes])
    assert done.index(save) < done.index(of(Send, done)[0])


def test_a_token_that_could_not_be_kept_is_not_told_and_proves_nothing() -> None:
    registry = Registry()
    registry.store_fails = True
    assert codes(arrive(registry, 1, JOIN, "t1")) == ["REGISTRY_BUSY"]
    assert stands_for(registry, "digest t1") is None


def test_a_token_leaks_into_nothing_but_its_ack() -> None:
    registry = Registry()
    arrive(registry, 1, JOIN, "t1")
    registry.beats(3)
    registry.do(RotationAsked(1, "node-1"))
    arrive(registry, 1, JOIN, "t2")
    acks = [one for one in of(Send, registry.done) if isinstance(one.message, NodeRegisterAck)]
    besides = [one for one in registry.done if one not in acks]
    assert "secret" not in repr(besides)
    assert "secret" not in repr(registry.node())
    assert "secret" not in repr(registry.kept)


def test_a_node_that_proves_itself_is_told_no_other_token() -> None:
    registry = Registry()
    arrive(registry, 1, JOIN, "t1")
    assert told_token(arrive(registry, 2, node_credential("t1"), "t2")) is None
    assert stands_for(registry, "digest t2") is None


def test_until_its_first_beat_a_node_is_told_another_token_each_time_and_none_afterwards() -> None:
    registry = Registry()
    arrive(registry, 1, JOIN, "t1")
    assert told_token(arrive(registry, 1, JOIN, "t2")) == "secret t2"
    assert stands_for(registry, "digest t1") is None
    registry.beat()
    assert told_token(arrive(registry, 1, JOIN, "t3")) is None
    assert stands_for(registry, "digest t2") is not None


def test_before_its_first_beat_a_node_that_lost_its_token_comes_by_the_same_join_token_for_another() -> None:
    registry = with_token(Registry())
    arrive(registry, 1, ONCE, "t1")
    registry.do(ConnectionLost(1))
    again = registry.do(
        RegistrationArrived(
            2, declaration("node-1"), "unused", ONCE, fresh_token=FreshToken("t2", "secret t2", "digest t2")
        )
    )
    assert told_token(again) == "secret t2"
    assert stands_for(registry, "digest t1") is None
    assert stands_for(registry, "digest t2") == node_credential("t2")


def test_a_first_beat_that_is_not_healthy_spends_the_use_too() -> None:
    registry = with_token(Registry())
    arrive(registry, 1, ONCE, "t1")
    registry.beat(gpus=figures(health="lost"))
    token = registry.fleet.token("once")
    assert token is not None
    assert (token.spent, registry.fleet.reserved("once")) == (1, 0)


def test_the_first_beat_spends_the_use_is_kept_and_no_later_one_is() -> None:
    registry = with_token(Registry())
    arrive(registry, 1, ONCE, "t1")
    (save,) = of(Save, registry.beat(running_jobs=("job-1",)))
    assert {change.kind for change in save.changes} == {Kept.NODE, Kept.TOKEN}
    assert of(Save, registry.beat(running_jobs=())) == []
    (token,) = [token for token in registry.fleet.tokens() if token.token_id == "once"]
    assert (token.spent, token.state(registry.now)) == (1, "used_up")
    assert codes(registry.arrive(ONCE, 2), 2) == ["FORBIDDEN"]


def test_a_use_that_was_spent_stays_spent_when_its_token_is_long_forgotten() -> None:
    registry = with_token(Registry(offline_retention_seconds=10.0), ttl_seconds=1.0)
    arrive(registry, 1, ONCE, "t1")
    registry.pass_time(11.0)
    assert [token.token_id for token in registry.fleet.tokens()] == ["join"]
    registry.beat()
    assert registry.node().keys.spent


def test_a_spent_use_that_could_not_be_kept_is_saved_again() -> None:
    registry = with_token(Registry())
    arrive(registry, 1, ONCE, "t1")
    registry.store_fails = True
    registry.beat()
    registry.store_fails = False
    registry.pass_time(2.0)
    document, _ = registry.kept[Kept.TOKEN, "once"]
    assert document["spent"] == 1


def test_granted_labels_go_before_what_the_node_says_and_outlive_everything() -> None:
    registry = with_token(Registry(), labels={"zone": "b"})
    arrive(registry, 1, ONCE, "t1", zone="a", disk="fast")
    assert registry.node().labels == {"zone": "b", "disk": "fast"}
    registry.beat(labels={"zone": "c", "rack": "4"})
    assert registry.node().labels == {"zone": "b", "rack": "4"}
    arrive(registry, 2, node_credential("t1"), "t2", zone="d")
    assert registry.node().labels == {"zone": "b"}
    assert restarted(registry).node().labels == {"zone": "b"}


def test_a_node_that_has_its_id_back_keeps_its_labels_and_its_operators_wishes() -> None:
    registry = with_token(Registry(), labels={"zone": "b"})
    arrive(registry, 1, ONCE, "t1")
    registry.beat()
    registry.drain()
    registry.do(JoinTokenMade(ref=1, token_id="back", digest="digest of back", node_id="node-1"))
    told = arrive(registry, 2, Credential(CredentialKind.JOIN, "back", "node-1"), "t2")
    assert told_token(told) == "secret t2"
    assert (codes(told, 1), closed(told)) == (["SESSION_SUPERSEDED"], [(1, 1008)])
    assert stands_for(registry, "digest t1") is None
    assert registry.node().labels == {"zone": "b"}
    assert registry.node().drain is not None


def test_a_rotated_node_is_told_another_token_and_the_old_one_proves_it_until_the_new_one_does() -> None:
    registry = Registry()
    arrive(registry, 1, JOIN, "t1")
    registry.beat()
    registry.do(RotationAsked(1, "node-1"))
    assert told_token(arrive(registry, 1, JOIN, "t2")) == "secret t2"
    assert stands_for(registry, "digest t1") is not None
    assert told_token(arrive(registry, 2, node_credential("t2"), "t3")) is None
    assert stands_for(registry, "digest t1") is None
    assert stands_for(registry, "digest t2") == node_credential("t2")
    assert stands_for(registry, "digest t3") is None


def test_a_rotated_node_that_never_stored_its_new_token_is_told_another() -> None:
    registry = Registry()
    arrive(registry, 1, JOIN, "t1")
    registry.beat()
    registry.do(RotationAsked(1, "node-1"))
    arrive(registry, 1, JOIN, "t2")
    registry.do(ConnectionLost(1))
    assert told_token(arrive(registry, 2, node_credential("t1"), "t3")) == "secret t3"
    assert stands_for(registry, "digest t1") is not None
    arrive(registry, 3, node_credential("t3"), "t4")
    assert stands_for(registry, "digest t1") is None
    assert stands_for(registry, "digest t2") is None


def test_a_node_that_is_rotated_twice_is_not_locked_out_by_an_answer_that_was_lost() -> None:
    registry = Registry()
    arrive(registry, 1, JOIN, "t1")
    registry.beat()
    registry.do(RotationAsked(1, "node-1"))
    arrive(registry, 1, JOIN, "t2")
    registry.do(RotationAsked(2, "node-1"))
    assert told_token(arrive(registry, 1, JOIN, "t3")) == "secret t3"
    assert told_token(arrive(registry, 2, node_credential("t2"), "t4")) == "secret t4"
    assert stands_for(registry, "digest t1") is None
    assert stands_for(registry, "digest t2") == node_credential("t2")


def test_a_rotated_node_that_registers_twice_on_one_connection_keeps_what_it_was_told() -> None:
    registry = Registry()
    arrive(registry, 1, JOIN, "t1")
    registry.beat()
    registry.do(RotationAsked(1, "node-1"))
    arrive(registry, 1, JOIN, "t2")
    assert told_token(arrive(registry, 1, JOIN, "t3")) is None
    assert stands_for(registry, "digest t2") is not None


def test_a_rotation_goes_on_after_a_restart() -> None:
    registry = Registry()
    arrive(registry, 1, JOIN, "t1")
    registry.beat()
    registry.do(RotationAsked(1, "node-1"))
    wished = restarted(registry)
    assert told_token(arrive(wished, 2, node_credential("t1"), "t2")) == "secret t2"
    told = restarted(wished)
    assert stands_for(told, "digest t1") is not None
    assert told_token(arrive(told, 3, node_credential("t2"), "t3")) is None
    assert stands_for(told, "digest t1") is None


def test_with_auth_off_nobody_is_told_a_token() -> None:
    registry = Registry(auth_off=True)
    assert told_token(registry.register()) is None
    assert registry.node().keys.all == ()


def test_a_token_is_told_only_when_one_was_issued() -> None:
    registry = Registry()
    assert ack(registry.register()).node_token == "secret of node-1"
    assert ack(registry.arrive(proof("node-1"), 2)).node_token is None
