from gpu_agent.registry.events import (
    ConnectionLost,
    CordonRequested,
    JoinTokenRequested,
    RemovalRequested,
)
from gpu_agent.registry.persistence import StoredDocument
from tests.registry.harness import Registry, logged, model, proof


def gone(registry: Registry, *numbers: int) -> None:
    """Let nodes come and go offline, one after the other."""
    for number in numbers:
        registry.register(number)
        registry.do(ConnectionLost(number))
        registry.pass_time(46.0)


def known(registry: Registry) -> list[str]:
    return [record.node_id for record in registry.fleet.nodes()]


def test_with_auth_off_the_one_longest_offline_is_removed_when_there_are_too_many() -> None:
    registry = Registry(auth_off=True, max_offline_records=2)
    gone(registry, 3, 1, 2)
    assert known(registry) == ["node-1", "node-2"]
    assert registry.document_names == ["node-1", "node-2"]
    (purged,) = logged(registry.done, "node_purged")
    assert purged.fields["reason"] == "too many are offline"


def test_a_node_that_is_back_online_is_not_counted() -> None:
    registry = Registry(auth_off=True, max_offline_records=1)
    gone(registry, 1)
    registry.register(2)
    registry.do(ConnectionLost(2))
    registry.register(7, "node-1")
    registry.pass_time(44.0)
    registry.heartbeat(7, "node-1")
    registry.pass_time(2.0)
    assert [record.status for record in registry.fleet.nodes()] == ["registering", "offline"]


def test_a_node_that_an_operator_drains_or_cordons_stays() -> None:
    registry = Registry(auth_off=True, max_offline_records=1)
    gone(registry, 1)
    registry.do(CordonRequested(1, "node-1", "new fans"))
    gone(registry, 2, 3)
    assert known(registry) == ["node-1", "node-3"]


def test_a_node_that_has_a_token_stays_though_auth_is_off_for_a_while() -> None:
    registry = Registry()
    gone(registry, 1, 2, 3)
    unguarded = Registry(auth_off=True, max_offline_records=1)
    unguarded.restore(
        [StoredDocument(*key, document, 0.0) for key, (document, _) in registry.documents.items()]
    )
    assert known(unguarded) == ["node-1", "node-2", "node-3"]
    gone(unguarded, 4, 5)
    assert known(unguarded) == ["node-1", "node-2", "node-3", "node-5"]


def test_with_auth_on_no_node_is_evicted() -> None:
    registry = Registry(max_offline_records=1)
    gone(registry, 1, 2, 3)
    assert known(registry) == ["node-1", "node-2", "node-3"]


def test_with_its_record_a_nodes_token_goes() -> None:
    registry = Registry(offline_retention_seconds=60.0)
    gone(registry, 1)
    assert registry.fleet.credential("digest of node-1", registry.now) == proof("node-1")
    registry.pass_time(61.0)
    assert known(registry) == []
    assert registry.fleet.credential("digest of node-1", registry.now) is None


def test_a_token_that_ended_is_forgotten_after_the_same_time() -> None:
    registry = Registry(offline_retention_seconds=60.0)
    registry.do(JoinTokenRequested(ref=0, token_id="short", digest="d", ttl_seconds=10.0))
    registry.pass_time(69.0)
    assert "short" in [token.token_id for token in registry.fleet.tokens()]
    sent = registry.pass_time(2.0)
    assert logged(sent, "token_purged")[0].fields == {"token_id": "short"}
    assert [token.token_id for token in registry.fleet.tokens()] == ["join"]
    assert ("token", "short") not in registry.documents


def test_offline_records_with_tokens_are_bounded_in_bytes_the_oldest_go_first() -> None:
    registry = Registry(max_offline_bytes=1024 * 1024)
    models = tuple(model(f"organisation/model-{number:05}-instruct") for number in range(3000))
    for connection in range(1, 8):
        registry.register(connection, installed_models=models)
        registry.do(ConnectionLost(connection))
        registry.pass_time(60.0)
    left = [record.node_id for record in registry.fleet.nodes()]
    assert left[-1] == "node-7"
    assert 2 <= len(left) < 7
    purged = [one.fields["node_id"] for one in logged(registry.done, "node_purged")]
    assert purged == [f"node-{number}" for number in range(1, 8 - len(left))]


def test_the_event_of_a_removal_names_the_machine() -> None:
    registry = Registry(auth_off=True, max_offline_records=1)
    registry.register(1, hostname="gpu-1")
    registry.register(2, hostname="gpu-2")
    registry.register(3, hostname="gpu-3")
    removed = logged(registry.do(RemovalRequested(9, "node-1", "sold")), "node_removed")
    for connection in (2, 3):
        registry.do(ConnectionLost(connection))
    registry.pass_time(46.0)
    purged = logged(registry.done, "node_purged")
    assert [one.fields["hostname"] for one in (*removed, *purged)] == ["gpu-1", "gpu-2"]
