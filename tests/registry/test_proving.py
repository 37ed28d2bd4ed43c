from gpu_agent.registry.actions import Action, Send
from gpu_agent.registry.credentials import Credential, CredentialKind, FreshToken
from gpu_agent.registry.events import JoinTokenMade, RegistrationArrived
from gpu_agent.wire.messages import NodeRegisterAck
from tests.registry.fleets import Registry, declaration, of

JOIN = Credential(CredentialKind.JOIN, "join-1")


def arrive(registry: Registry, connection: int, credential: Credential, **labels: str) -> list[Action]:
    fresh = FreshToken(f"key-{connection}", f"secret-{connection}", f"digest-{connection}")
    message = declaration(labels=labels)
    return registry.do(
        RegistrationArrived(connection, message, f"node-{connection}", credential, fresh_token=fresh)
    )


def told_token(actions: list[Action]) -> str | None:
    (ack,) = [one.message for one in of(Send, actions) if isinstance(one.message, NodeRegisterAck)]
    return ack.node_token


def stands_for(registry: Registry, digest: str) -> Credential | None:
    return registry.fleet.credential(digest, registry.now)


def test_a_node_that_joins_is_told_a_token_that_proves_it_from_then_on() -> None:
    registry = Registry()
    assert told_token(arrive(registry, 1, JOIN)) == "secret-1"
    assert stands_for(registry, "digest-1") == Credential(CredentialKind.NODE, "key-1", "node-1")


def test_a_node_that_proves_itself_is_told_no_other_token() -> None:
    registry = Registry()
    arrive(registry, 1, JOIN)
    proof = stands_for(registry, "digest-1")
    assert proof is not None
    assert told_token(arrive(registry, 2, proof)) is None
    assert stands_for(registry, "digest-2") is None


def test_a_connection_that_was_told_a_token_is_told_no_other() -> None:
    registry = Registry()
    arrive(registry, 1, JOIN)
    assert told_token(arrive(registry, 1, JOIN)) is None


def test_a_join_tokens_labels_go_before_what_the_node_says() -> None:
    registry = Registry()
    registry.do(JoinTokenMade(ref=1, token_id="join-1", digest="d", labels={"zone": "b"}))
    arrive(registry, 1, JOIN, zone="a", disk="fast")
    assert registry.node().labels == {"zone": "b", "disk": "fast"}
