"""Which node id a registration gets, and how join tokens reserve and consume their uses."""

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings, strategies

from gpu_agent.registry.actions import Effect, Send
from gpu_agent.registry.dispatch.dispatch import Dispatch
from gpu_agent.registry.events import (
    ConnectionLost,
    CordonRequested,
    JoinTokenRequested,
    RegistrationReceived,
    RemovalRequested,
)
from gpu_agent.registry.node import Liveness, NodeTable
from gpu_agent.registry.registration import Admission
from gpu_agent.registry.removal import NodeRemoval
from gpu_agent.registry.settings import Policy, Thresholds
from gpu_agent.registry.tokens import Credential, CredentialKind, NodeToken, NodeTokens, Token, TokenTable
from gpu_agent.wire.codes import ErrorCode, NodeStatus
from gpu_agent.wire.messages import NodeError, NodeRegisterAck
from tests.registry.harness import JOIN, Registry, codes, declaration, logged, node_record, of, proof

# ruff: noqa: ANN401 - what a token is like is passed through as it is


NOW = 1000.0
RECLAIM = Credential(CredentialKind.JOIN, "reclaim", "node-A")


def arrival(
    wanted: str | None, credential: Credential | None = JOIN, *, connection: int = 9
) -> RegistrationReceived:
    return RegistrationReceived(connection, declaration(wanted), "node-FRESH", credential)


def nodes_with(
    status: NodeStatus = NodeStatus.READY, *, connection: int | None = 1, keys: NodeTokens | None = None
) -> NodeTable:
    nodes = NodeTable()
    record = node_record(
        node_id="node-A",
        registered_at=NOW - 312,
        status=status,
        address="10.0.0.7",
        tokens=keys or NodeTokens(current=NodeToken("key-node-A", "digest")),
        liveness=Liveness(last_seen_at=NOW),
    )
    nodes.add(record)
    if connection is not None:
        nodes.bind(record, connection)
    return nodes


def decided_by(
    event: RegistrationReceived, nodes: NodeTable, *, auth_off: bool = False, **token: Any
) -> str | NodeError:
    """Let a registry that knows two join tokens decide; `token` changes both of them."""
    tokens = TokenTable(604800.0)
    for credential in (JOIN, RECLAIM):
        fields = {"uses": 1, "node_id": credential.node_id, "digest": credential.token_id} | token
        tokens.put(Token(token_id=credential.token_id, kind=credential.kind, created_at=NOW, **fields))
    for record in nodes.records.values():
        tokens.put_node(record.node_id, record.tokens)
    thresholds = Thresholds()
    dispatch = Dispatch(thresholds, lambda: 0.0)
    removal = NodeRemoval(thresholds, nodes, dispatch)
    return Admission(Policy(auth_off=auth_off), nodes, tokens, removal=removal).decide(event, NOW)


def decide(event: RegistrationReceived, nodes: NodeTable, *, auth_off: bool = False, **token: Any) -> str:
    """Return the id, or the code of the refusal."""
    decided = decided_by(event, nodes, auth_off=auth_off, **token)
    return decided.code if isinstance(decided, NodeError) else decided


def refusal(event: RegistrationReceived, nodes: NodeTable, **token: Any) -> str:
    """Return the message of the refusal."""
    decided = decided_by(event, nodes, **token)
    assert isinstance(decided, NodeError)
    return decided.message


def unspent(token_id: str) -> NodeTokens:
    return NodeTokens(current=NodeToken("key-node-A", "digest"), joined_by=token_id, spent=False)


def test_a_node_that_suggests_nothing_gets_the_id_that_was_drawn() -> None:
    assert decide(arrival(None), NodeTable()) == "node-FRESH"


def test_a_suggested_id_that_is_free_is_granted() -> None:
    assert decide(arrival("node-B"), nodes_with()) == "node-B"


def test_without_a_token_no_node_registers() -> None:
    assert decide(arrival(None, None), NodeTable()) == "UNAUTHORIZED"


def test_an_operators_token_registers_no_node() -> None:
    assert decide(arrival(None, Credential(CredentialKind.OPERATOR, "op")), NodeTable()) == "FORBIDDEN"


def test_r06_a_held_id_is_refused_without_proof_and_the_message_says_how_to_go_on() -> None:
    decided = decided_by(arrival("node-A"), nodes_with())
    assert isinstance(decided, NodeError)
    assert decided.code == ErrorCode.NODE_ID_CONFLICT
    assert decided.message == (
        "node id 'node-A' is held by a node at 10.0.0.7 that registered 5 min ago (ready, connected): "
        "present its node token; if this machine is that node and lost its token, have an operator run "
        "gpu-agent registry node readmit node-A; if that node is gone for good, "
        "gpu-agent registry node remove node-A; "
        "or register with node_id null to be given a fresh id"
    )


@pytest.mark.parametrize(("seconds", "ago"), [(5, "5 s"), (312, "5 min"), (9000, "2.5 h")])
def test_r06_the_message_tells_since_when_the_id_is_held(seconds: int, ago: str) -> None:
    nodes = nodes_with()
    nodes.records["node-A"].registered_at = NOW - seconds
    assert f"registered {ago} ago" in refusal(arrival("node-A"), nodes)


def test_r06_a_held_id_stays_refused_after_its_node_is_gone() -> None:
    assert decide(arrival("node-A"), nodes_with(NodeStatus.OFFLINE, connection=None)) == "NODE_ID_CONFLICT"


def test_with_auth_off_an_id_that_is_offline_or_disconnected_may_be_taken_over() -> None:
    offline = nodes_with(NodeStatus.OFFLINE, connection=None)
    disconnected = nodes_with(NodeStatus.READY, connection=None)
    drained = nodes_with(NodeStatus.OFFLINE)
    assert decide(arrival("node-A", None), drained, auth_off=True) == "node-A"
    assert decide(arrival("node-A", None), offline, auth_off=True) == "node-A"
    assert decide(arrival("node-A", None), disconnected, auth_off=True) == "node-A"
    silent = nodes_with()
    silent.records["node-A"].liveness.last_seen_at = NOW - 24.0  # more than 1.5 intervals of 15 s and 1 s
    assert decide(arrival("node-A", None), silent, auth_off=True) == "node-A"
    assert decide(arrival("node-A", None), nodes_with(), auth_off=True) == "NODE_ID_CONFLICT"


def test_with_auth_off_the_message_names_no_token() -> None:
    decided = decided_by(arrival("node-A", None), nodes_with(), auth_off=True)
    assert isinstance(decided, NodeError)
    assert "token" not in decided.message
    assert "gpu-agent registry node remove node-A" in decided.message


def test_an_id_whose_connection_is_open_is_not_taken_over_though_its_node_is_suspected() -> None:
    nodes = nodes_with()
    nodes.records["node-A"].liveness.suspected_until = 9.0
    decided = decided_by(arrival("node-A", None), nodes, auth_off=True)
    assert isinstance(decided, NodeError)
    assert "(ready, connected)" in decided.message


def test_a_proven_id_is_granted_even_if_another_connection_holds_it() -> None:
    assert decide(arrival("node-A", proof("node-A")), nodes_with()) == "node-A"
    assert decide(arrival(None, proof("node-A")), nodes_with()) == "node-A"


def test_another_id_beside_a_proven_one_is_a_conflict() -> None:
    assert decide(arrival("node-B", proof("node-A")), nodes_with()) == "NODE_ID_CONFLICT"


def test_a_node_token_that_was_replaced_since_the_handshake_proves_nothing() -> None:
    replaced = nodes_with(keys=NodeTokens(current=NodeToken("another", "digest")))
    assert decide(arrival("node-A", proof("node-A")), replaced) == "UNAUTHORIZED"
    assert decide(arrival("node-A", proof("node-A")), NodeTable()) == "UNAUTHORIZED"


def test_a_connection_keeps_the_id_that_it_registered() -> None:
    nodes = nodes_with()
    assert decide(arrival(None, connection=1), nodes) == "node-A"
    assert decide(arrival("node-A", connection=1), nodes) == "node-A"
    assert decide(arrival("node-B", connection=1), nodes) == "NODE_ID_CONFLICT"


def test_an_id_drawn_twice_is_drawn_again() -> None:
    event = RegistrationReceived(9, declaration(), "node-A", JOIN)
    assert decide(event, nodes_with()) == "REGISTRY_BUSY"


@pytest.mark.parametrize("ended", [{"revoked_at": NOW}, {"expires_at": NOW}])
def test_a_join_token_that_ended_since_the_handshake_lets_no_node_in(ended: dict[str, Any]) -> None:
    assert decide(arrival(None), NodeTable(), **ended) == "UNAUTHORIZED"
    assert "request a new one" in refusal(arrival(None), NodeTable(), **ended)


def test_a_join_token_that_is_no_longer_known_lets_no_node_in() -> None:
    assert decide(arrival(None, Credential(CredentialKind.JOIN, "gone")), NodeTable()) == "UNAUTHORIZED"


def test_a_join_token_that_is_used_up_lets_no_node_in_and_says_what_to_do() -> None:
    assert decide(arrival(None), NodeTable(), spent=1) == "FORBIDDEN"
    assert refusal(arrival(None), NodeTable(), spent=1) == (
        "join token join lets no more nodes in, its one use is taken: "
        "have an operator run gpu-agent registry token create for another"
    )
    assert refusal(arrival("node-A"), nodes_with(), spent=1).endswith(
        "; if this machine is 'node-A', gpu-agent registry node readmit node-A instead"
    )
    assert "its 3 uses are taken" in refusal(arrival(None), NodeTable(), spent=3, uses=3)


def test_a_use_that_a_connected_node_reserved_is_taken_and_one_that_is_gone_yields_it() -> None:
    assert decide(arrival(None), nodes_with(keys=unspent("join"))) == "FORBIDDEN"
    assert decide(arrival(None), nodes_with(keys=unspent("join"), connection=None)) == "node-FRESH"


def test_until_its_first_heartbeat_a_node_may_join_by_its_join_token_again() -> None:
    assert decide(arrival("node-A"), nodes_with(keys=unspent("join"))) == "node-A"
    assert decide(arrival("node-A"), nodes_with(keys=unspent("another"))) == "NODE_ID_CONFLICT"


def test_a_reclaim_token_gives_its_id_back_and_no_other() -> None:
    assert decide(arrival(None, RECLAIM), nodes_with()) == "node-A"
    assert decide(arrival("node-A", RECLAIM), nodes_with()) == "node-A"
    assert decide(arrival("node-B", RECLAIM), nodes_with()) == "NODE_ID_CONFLICT"
    assert decide(arrival(None, RECLAIM), NodeTable()) == "node-A"


def test_a_reclaim_token_is_good_once_and_says_what_to_do_then() -> None:
    assert decide(arrival(None, RECLAIM), nodes_with(keys=unspent("reclaim"))) == "node-A"
    assert decide(arrival(None, RECLAIM), nodes_with(), spent=1) == "FORBIDDEN"
    assert "gpu-agent registry node readmit node-A" in refusal(arrival(None, RECLAIM), nodes_with(), spent=1)


def test_r06_a_known_id_without_proof_is_a_conflict_that_says_how_to_go_on() -> None:
    registry = Registry()
    registry.ready()
    refused = registry.register(2, "node-1")
    assert codes(refused, 2) == ["NODE_ID_CONFLICT"]
    (refusal,) = [one.message for one in of(Send, refused) if isinstance(one.message, NodeError)]
    assert "10.0.0.1" in refusal.message
    assert "register with node_id null" in refusal.message
    assert registry.node().connection == 1


def test_another_id_on_the_same_connection_is_a_conflict() -> None:
    registry = Registry()
    registry.ready()
    assert codes(registry.register(1, "node-other")) == ["NODE_ID_CONFLICT"]
    assert registry.node().status == "ready"


def test_with_auth_off_a_disconnected_id_may_be_taken_over() -> None:
    registry = Registry(auth_off=True)
    registry.ready()
    assert codes(registry.register(2, "node-1"), 2) == ["NODE_ID_CONFLICT"]
    registry.do(ConnectionLost(1))
    registry.register(3, "node-1")
    assert registry.node().epoch == 2
    assert registry.node().connection == 3


FEW = Credential(CredentialKind.JOIN, "few")


def registry_with(uses: int | None) -> Registry:
    registry = Registry()
    registry.do(JoinTokenRequested(ref=0, token_id="few", digest="digest of few", uses=uses))
    return registry


def joined(actions: list[Effect]) -> list[str]:
    return [one.message.node_id for one in of(Send, actions) if isinstance(one.message, NodeRegisterAck)]


def test_a_token_lets_as_many_nodes_in_as_it_has_uses() -> None:
    registry = registry_with(2)
    assert [joined(registry.arrive(FEW, number)) for number in (1, 2)] == [["node-1"], ["node-2"]]
    assert codes(registry.arrive(FEW, 3), 3) == ["FORBIDDEN"]


def test_a_token_without_a_count_lets_any_number_in() -> None:
    registry = registry_with(None)
    assert all(joined(registry.arrive(FEW, number)) for number in range(1, 9))


def test_a_node_that_is_disconnected_before_its_first_heartbeat_yields_its_reservation_and_its_token() -> (
    None
):
    registry = registry_with(1)
    registry.arrive(FEW, 1)
    registry.do(ConnectionLost(1))
    taken = registry.arrive(FEW, 2)
    assert joined(taken) == ["node-2"]
    assert logged(taken, "node_purged")[0].fields["node_id"] == "node-1"
    assert [record.node_id for record in registry.fleet.nodes()] == ["node-2"]
    assert registry.fleet.credential("digest of node-1", registry.now) is None
    assert registry.document_names == ["node-2"]


def test_a_disconnected_node_keeps_its_reservation_while_no_other_needs_it() -> None:
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


def test_a_connected_node_keeps_its_reservation() -> None:
    registry = registry_with(1)
    registry.arrive(FEW, 1)
    registry.heartbeat()
    registry.do(ConnectionLost(1))
    assert codes(registry.arrive(FEW, 2), 2) == ["FORBIDDEN"]


def test_a_node_that_registers_again_on_its_connection_takes_no_reservation() -> None:
    registry = registry_with(2)
    registry.arrive(FEW, 1)
    registry.heartbeat()
    registry.arrive(FEW, 2)
    registry.do(ConnectionLost(2))
    assert joined(registry.arrive(FEW, 1)) == ["node-1"]
    assert [record.node_id for record in registry.fleet.nodes()] == ["node-1", "node-2"]


def test_a_disconnected_node_that_an_operator_drains_or_cordons_keeps_its_reservation() -> None:
    registry = registry_with(1)
    registry.arrive(FEW, 1)
    registry.drain()
    registry.do(ConnectionLost(1))
    assert codes(registry.arrive(FEW, 2), 2) == ["FORBIDDEN"]
    assert joined(registry.arrive(FEW, 3, "node-1")) == ["node-1"]


@settings(deadline=None, max_examples=100)
@given(dice=strategies.randoms(use_true_random=True))
def test_no_sequence_lets_more_nodes_in_than_a_token_has_uses(dice: Random) -> None:
    registry = registry_with(3)
    for number in range(10, 70):
        registry.let_store_fail(fails=dice.random() < 1 / 5)
        happens(registry, dice, number)
        registry.pass_time(dice.choice((0.0, 1.0, 20.0)))
        (few,) = [token for token in registry.fleet.tokens() if token.token_id == "few"]
        records = registry.fleet.nodes()
        assert few.spent + sum(one.connection is not None and not one.tokens.spent for one in records) <= 3
        for record in records:
            for key in record.tokens.all:
                found = registry.fleet.credential(key.digest, registry.now)
                assert found == Credential(CredentialKind.NODE, key.token_id, record.node_id)


def happens(registry: Registry, dice: Random, number: int) -> None:
    """Let a node join by the token, send a heartbeat or leave, or let an operator act on one."""
    node_id = f"node-{dice.randint(10, 70)}"
    live = {one.connection: one.node_id for one in registry.fleet.nodes() if one.connection is not None}
    connection = dice.choice([*live, number])
    match dice.choice(("join", "join", "join", "heartbeat", "heartbeat", "lost", "forget", "cordon")):
        case "join":
            registry.arrive(FEW, number, dice.choice((None, node_id)))
        case "heartbeat":
            registry.heartbeat(connection, live.get(connection))
        case "lost":
            registry.do(ConnectionLost(connection))
        case "forget":
            registry.do(RemovalRequested(1, node_id))
        case _:
            registry.do(CordonRequested(1, node_id, "x"))
