from random import Random

from hypothesis import given, settings, strategies

from gpu_agent.registry.actions import Action, Send
from gpu_agent.registry.credentials import Credential, CredentialKind
from gpu_agent.registry.events import ConnectionLost, CordonAsked, JoinTokenMade, RemovalAsked
from gpu_agent.wire.messages import NodeRegisterAck
from tests.registry.fleets import Registry, codes, notes, of

FEW = Credential(CredentialKind.JOIN, "few")


def registry_with(uses: int | None) -> Registry:
    registry = Registry()
    registry.do(JoinTokenMade(ref=0, token_id="few", digest="digest of few", uses=uses))
    return registry


def joined(actions: list[Action]) -> list[str]:
    return [one.message.node_id for one in of(Send, actions) if isinstance(one.message, NodeRegisterAck)]


def test_a_token_lets_as_many_nodes_in_as_it_has_uses() -> None:
    registry = registry_with(2)
    assert [joined(registry.arrive(FEW, number)) for number in (1, 2)] == [["node-1"], ["node-2"]]
    assert codes(registry.arrive(FEW, 3), 3) == ["FORBIDDEN"]


def test_a_token_without_a_count_lets_any_number_in() -> None:
    registry = registry_with(None)
    assert all(joined(registry.arrive(FEW, number)) for number in range(1, 9))


def test_who_is_gone_before_its_first_beat_yields_its_place_and_its_token_dies() -> None:
    registry = registry_with(1)
    registry.arrive(FEW, 1)
    registry.do(ConnectionLost(1))
    taken = registry.arrive(FEW, 2)
    assert joined(taken) == ["node-2"]
    assert notes(taken, "node_purged")[0].fields["node_id"] == "node-1"
    assert [record.node_id for record in registry.fleet.nodes()] == ["node-2"]
    assert registry.fleet.credential("digest of node-1", registry.now) is None
    assert registry.kept_names == ["node-2"]


def test_who_is_gone_keeps_its_place_while_nobody_needs_it() -> None:
    registry = registry_with(2)
    registry.arrive(FEW, 1)
    registry.do(ConnectionLost(1))
    registry.arrive(FEW, 2)
    assert [record.node_id for record in registry.fleet.nodes()] == ["node-1", "node-2"]


def test_of_two_that_are_gone_the_one_that_came_first_yields() -> None:
    registry = registry_with(2)
    for number in (2, 1):
        registry.arrive(FEW, number)
        registry.do(ConnectionLost(number))
        registry.now += 1.0
    registry.arrive(FEW, 3)
    assert [record.node_id for record in registry.fleet.nodes()] == ["node-1", "node-3"]


def test_who_has_beaten_yields_to_nobody() -> None:
    registry = registry_with(1)
    registry.arrive(FEW, 1)
    registry.beat()
    registry.do(ConnectionLost(1))
    assert codes(registry.arrive(FEW, 2), 2) == ["FORBIDDEN"]


def test_who_registers_again_on_its_connection_takes_nobodys_place() -> None:
    registry = registry_with(2)
    registry.arrive(FEW, 1)
    registry.beat()
    registry.arrive(FEW, 2)
    registry.do(ConnectionLost(2))
    assert joined(registry.arrive(FEW, 1)) == ["node-1"]
    assert [record.node_id for record in registry.fleet.nodes()] == ["node-1", "node-2"]


def test_who_is_gone_but_carries_an_operators_wish_yields_to_nobody() -> None:
    registry = registry_with(1)
    registry.arrive(FEW, 1)
    registry.drain()
    registry.do(ConnectionLost(1))
    assert codes(registry.arrive(FEW, 2), 2) == ["FORBIDDEN"]
    assert joined(registry.arrive(FEW, 3, "node-1")) == ["node-1"]


def test_a_place_that_could_not_be_saved_is_given_back_to_who_had_yielded_it() -> None:
    registry = registry_with(1)
    registry.arrive(FEW, 1)
    registry.do(ConnectionLost(1))
    registry.store_fails = True
    assert codes(registry.arrive(FEW, 2), 2) == ["REGISTRY_BUSY"]
    assert [record.node_id for record in registry.fleet.nodes()] == ["node-1"]
    assert registry.fleet.credential("digest of node-1", registry.now) is not None
    registry.store_fails = False
    assert joined(registry.arrive(FEW, 2)) == ["node-2"]


@settings(deadline=None, max_examples=100)
@given(dice=strategies.randoms(use_true_random=True))
def test_no_sequence_lets_more_nodes_in_than_a_token_has_uses(dice: Random) -> None:
    registry = registry_with(3)
    for number in range(10, 70):
        registry.store_fails = dice.random() < 1 / 5
        happens(registry, dice, number)
        registry.pass_time(dice.choice((0.0, 1.0, 20.0)))
        (few,) = [token for token in registry.fleet.tokens() if token.token_id == "few"]
        records = registry.fleet.nodes()
        assert few.spent + sum(one.connection is not None and not one.keys.spent for one in records) <= 3
        for record in records:
            for key in record.keys.all:
                found = registry.fleet.credential(key.digest, registry.now)
                assert found == Credential(CredentialKind.NODE, key.token_id, record.node_id)


def happens(registry: Registry, dice: Random, number: int) -> None:
    """Let a node come by the token, beat or go, or an operator do something to one."""
    node_id = f"node-{dice.randint(10, 70)}"
    live = {one.connection: one.node_id for one in registry.fleet.nodes() if one.connection is not None}
    connection = dice.choice([*live, number])
    match dice.choice(("join", "join", "join", "beat", "beat", "lost", "forget", "cordon")):
        case "join":
            registry.arrive(FEW, number, dice.choice((None, node_id)))
        case "beat":
            registry.beat(connection, live.get(connection))
        case "lost":
            registry.do(ConnectionLost(connection))
        case "forget":
            registry.do(RemovalAsked(1, node_id))
        case _:
            registry.do(CordonAsked(1, node_id, "x"))
