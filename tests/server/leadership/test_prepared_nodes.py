"""Nodes' documents that a standby reads ahead of a takeover: what is loaded then is what is stored."""

from collections.abc import Mapping
from contextlib import AsyncExitStack, closing

import pytest

from gpu_agent.registry import persistence
from gpu_agent.registry.actions import Change, DocumentKind
from gpu_agent.registry.events import CordonRequested
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.persistence import PreparedNode, StoredDocument
from gpu_agent.registry.settings import Thresholds
from gpu_agent.server.effects import DOCUMENT, WRITTEN_AT, stored_documents
from gpu_agent.server.leadership import prepared_nodes
from gpu_agent.server.leadership.prepared_nodes import SETTLED_SECONDS, PreparedNodes
from gpu_agent.store.base import Batch
from gpu_agent.store.etcd.store import EtcdStore, ParsedValue
from tests.registry.harness import Registry, logged, model
from tests.server.harness import known, until
from tests.server.leadership.harness import depose_and_wait, leader_among, node_at, three
from tests.store.etcd_cluster import Cluster

SINCE, LATER = 100.0, 100.0 + SETTLED_SECONDS


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    for connection in (1, 2):
        registry.ready(connection)
    registry.do(CordonRequested(7, "node-1", "new fans"))
    return registry


def save(store: EtcdStore, registry: Registry, **words: object) -> None:
    changes = [
        Change(DocumentKind.NODE, key, {WRITTEN_AT: 5.0, DOCUMENT: {**document, **words}})
        for (kind, key), (document, _) in registry.documents.items()
        if kind is DocumentKind.NODE
    ]
    store.save([Batch(changes)])


@pytest.fixture
def rows(etcd: Cluster, prefix: str, registry: Registry) -> dict[bytes, bytes]:
    """What etcd holds of two nodes."""
    with closing(EtcdStore(etcd.access, prefix)) as store:
        save(store, registry)
        return store._rows()


def prepared(rows: Mapping[bytes, bytes], prefix: str) -> Mapping[bytes, ParsedValue]:
    nodes = PreparedNodes(prefix, Thresholds())
    nodes.replace(rows, SINCE)
    read_all(nodes, rows)
    return nodes.take(LATER)


def read_all(nodes: PreparedNodes, rows: Mapping[bytes, bytes], now: float = LATER) -> None:
    while nodes.prepare(rows, now):
        pass


def loaded(store: EtcdStore, parsed: Mapping[bytes, ParsedValue]) -> list[StoredDocument]:
    store.load_from(store._rows(), parsed)
    return list(stored_documents(store.load().changes, 65.0))


def names(parsed: Mapping[bytes, ParsedValue]) -> list[str]:
    return sorted(key.rpartition(b"/")[2].decode() for key in parsed)


def test_what_was_read_ahead_makes_the_same_nodes(etcd: Cluster, prefix: str, registry: Registry) -> None:
    with closing(EtcdStore(etcd.access, prefix)) as store:
        save(store, registry)
        ahead = loaded(store, prepared(store._rows(), prefix))
        at_once = loaded(store, {})
    assert [one.prepared is not None for one in ahead] == [True, True]
    assert [one.prepared is not None for one in at_once] == [False, False]
    first, second = Registry(), Registry()
    first.now = second.now = 700.0
    first.restore(ahead)
    second.restore(at_once)
    for name in ("node-1", "node-2"):
        assert first.node(name) == second.node(name)
        assert persistence.serialize_node(first.node(name), 700.0) == persistence.serialize_node(
            second.node(name), 700.0
        )
    assert first.node("node-1").desired.cordoned == "new fans"


def test_the_models_that_a_node_declares_are_held_once_as_text(registry: Registry) -> None:
    """A node may declare 4,096 of them, and a standby prepares all nodes."""
    models = tuple(model(f"m{number}") for number in range(3))
    document = persistence.serialize_node(registry.ready(3, installed_models=models), registry.now)
    stored = StoredDocument(DocumentKind.NODE, "node-3", document, 0.0)
    prepared = persistence.prepare_node(stored, Thresholds())
    assert prepared.document.registration.installed_models == ()
    assert len(prepared.declared.models.models()) == 3


def test_a_value_that_has_changed_since_is_read_again(etcd: Cluster, prefix: str, registry: Registry) -> None:
    with closing(EtcdStore(etcd.access, prefix)) as store:
        save(store, registry)
        parsed = prepared(store._rows(), prefix)
        save(store, registry, cordoned="its fan is loud")
        found = loaded(store, parsed)
    assert [one.prepared for one in found] == [None, None]
    assert {one.document["cordoned"] for one in found} == {"its fan is loud"}


def test_a_word_that_is_not_known_is_logged_when_it_is_loaded(
    etcd: Cluster, prefix: str, registry: Registry
) -> None:
    with closing(EtcdStore(etcd.access, prefix)) as store:
        save(store, registry, status="asleep")
        found = loaded(store, prepared(store._rows(), prefix))
    words = logged(Registry().restore(found), "document_word_unknown")
    assert [one.fields["word"] for one in words] == ["asleep"] * 2


@pytest.mark.parametrize(
    "damage", [b"{", b"[]", b"{}", b'{"document":[]}', b'{"document":{"written_at":1,"document":{}}}']
)
def test_a_damaged_document_is_left_to_the_leader(
    rows: dict[bytes, bytes], prefix: str, damage: bytes
) -> None:
    rows[f"{prefix}/doc/node/node-1".encode()] = damage
    assert names(prepared(rows, prefix)) == ["node-2"]


def test_only_nodes_that_have_not_changed_for_a_while_are_read(rows: dict[bytes, bytes], prefix: str) -> None:
    one, two = (f"{prefix}/doc/node/node-{number}".encode() for number in (1, 2))
    nodes = PreparedNodes(prefix, Thresholds())
    nodes.replace(rows, SINCE)
    nodes.changed(one, SINCE + 1, deleted=False)
    nodes.changed(f"{prefix}/commit".encode(), SINCE + 1, deleted=False)
    read_all(nodes, rows)
    assert list(nodes.take(LATER)) == [two]
    read_all(nodes, rows, LATER + SETTLED_SECONDS)
    assert names(nodes.take(LATER)) == ["node-1", "node-2"]  # it is another fleet's now
    nodes.changed(one, LATER, deleted=True)
    del rows[one]
    read_all(nodes, rows, LATER + SETTLED_SECONDS)
    assert list(nodes.take(LATER)) == [two]
    nodes.replace({}, LATER)
    read_all(nodes, {}, LATER + SETTLED_SECONDS)
    assert not nodes.take(LATER)


def test_what_was_read_stays_where_everything_is_read_again(
    rows: dict[bytes, bytes], prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = PreparedNodes(prefix, Thresholds())
    nodes.replace(rows, SINCE)
    read_all(nodes, rows)
    monkeypatch.setattr(prepared_nodes, "prepare_node", None)
    nodes.replace(dict(rows), LATER)
    read_all(nodes, rows, LATER + SETTLED_SECONDS)
    assert names(nodes.take(LATER)) == ["node-1", "node-2"]


def test_documents_are_read_in_slices(
    rows: dict[bytes, bytes], prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared_nodes, "SLICE_SECONDS", 0.0)
    nodes = PreparedNodes(prefix, Thresholds())
    nodes.replace(rows, SINCE)
    assert nodes.prepare(rows, LATER)
    assert len(nodes._values) == 1
    assert nodes.prepare(rows, LATER)
    assert not nodes.prepare(rows, LATER)
    assert len(nodes._values) == 2


async def test_a_new_leader_loads_what_it_read_as_a_standby(
    etcd: Cluster, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared_nodes, "SETTLED_SECONDS", 0.0)
    async with three(etcd, prefix) as instances, AsyncExitStack() as stack:
        first = await leader_among(instances)
        nodes = [await stack.enter_async_context(node_at(one.address)) for one in instances]
        for one in nodes:
            await one.become_ready()
        standbys = [one for one in instances if one is not first]

        def all_read() -> bool:
            held = [one.instance._follower.prepared for one in standbys]
            return all(len(one._values) == len(nodes) and not one._waiting for one in held)

        await until(all_read, what="the documents")
        assert not first.instance._follower.prepared._values  # it leads
        loaded: list[PreparedNode | None] = []
        load = persistence.load_node

        def load_node(stored: StoredDocument, *arguments: object, **more: object) -> NodeRecord:
            loaded.append(stored.prepared)
            return load(stored, *arguments, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(persistence, "load_node", load_node)
        await depose_and_wait(etcd, prefix, first)
        leader = await leader_among(instances)
        await until(
            lambda: all(known(leader.service, one.node_id).connected for one in nodes), what="their sessions"
        )
        if leader is not first:
            assert [one is not None for one in loaded] == [True] * len(nodes)
        assert {known(leader.service, one.node_id).status for one in nodes} == {"ready"}
