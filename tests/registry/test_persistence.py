"""Documents of nodes, claims and tokens: what a restart loads is what was stored, whatever its age."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest

from gpu_agent.registry import persistence
from gpu_agent.registry.actions import DocumentKind, Level
from gpu_agent.registry.events import (
    ConnectionLost,
    CordonRequested,
    JoinTokenRequested,
    RegistrationReceived,
)
from gpu_agent.registry.job import Claim, ClaimEnd, Grant, HeldGrant, Job
from gpu_agent.registry.persistence import Documents, StoredDocument, UnreadableDocumentError
from gpu_agent.registry.settings import Thresholds
from gpu_agent.registry.tokens import Credential, CredentialKind
from tests.registry.harness import Registry, codes, declaration, logged, model, proof, statuses

LATER = 500.0
"""The monotonic time of another process: no successor of the first."""


def restart(registry: Registry, *, away: float = 0.0, **thresholds: Any) -> Registry:  # noqa: ANN401 - passed through
    """Start a registry from what another one's store holds."""
    fresh = Registry(**thresholds)
    fresh.now = LATER
    stored = [
        StoredDocument(
            DocumentKind(kind),
            key,
            json.loads(json.dumps(document, allow_nan=False)),
            registry.now - at + away,
        )
        for (kind, key), (document, at) in registry.documents.items()
    ]
    fresh.documents.update({key: (document, LATER) for key, (document, _) in registry.documents.items()})
    fresh.restore(stored)
    return fresh


def test_a_document_of_a_node_reads_back_as_it_was_written_except_for_what_heartbeats_report() -> None:
    registry = Registry()
    record = registry.ready(installed_models=(model("asr"),), labels={"zone": "a"})
    registry.do(CordonRequested(7, "node-1", "new fans"))
    registry.claim("job-1")
    registry.drain(deadline_seconds=90.0)
    document = persistence.serialize_node(record, registry.now)
    age = 12.0
    restored = persistence.load_node(
        StoredDocument(DocumentKind.NODE, "node-1", json.loads(json.dumps(document)), age),
        registry.thresholds,
        registry.now,
    )
    not_stored = {
        "claims",
        "connection",
        "gpu_history",
        "gpus",
        "history",
        "issued_on",
        "jobs",
        "liveness",
        "schedule",
        "registered_at",
        "since",
        "desired",
    }
    for field in fields(record):
        if field.name not in not_stored:
            assert getattr(restored, field.name) == getattr(record, field.name), field.name
    assert list(restored.gpus) == list(record.gpus)
    assert restored.schedule.interval_seconds == record.schedule.interval_seconds
    assert restored.schedule.timeout_seconds == record.schedule.timeout_seconds
    assert restored.desired.cordoned == "new fans"
    assert restored.registered_at == pytest.approx(record.registered_at - age)
    assert restored.since == pytest.approx(record.since - age)
    assert restored.desired.drain is not None
    assert record.desired.drain is not None
    assert restored.desired.drain.deadline == pytest.approx(record.desired.drain.deadline - age)


def test_a_document_of_a_claim_reads_back_with_every_demand_and_one_fresh_ttl() -> None:
    job = Job(
        job_id="job-1",
        required_models=("asr",),
        required_features=("mig",),
        public=True,
        gpu_count=2,
        gpu_sharing="memory",
        gpu_name="L4",
        min_gpu_memory_mb=2048,
        min_compute_capability="8.0",
        labels={"zone": ("a", "b"), "rack": "7"},
        allowed_nodes=("node-1", "node-2"),
        excluded_nodes=("node-3",),
        nodes=2,
        affinity_key="session-7",
        priority=3,
        ttl_seconds=75.0,
        wait_seconds=9.0,
    )
    full = Grant(
        node_id="node-1",
        hostname="rack7",
        endpoint="http://10.0.0.1",
        gpu_uuids=("GPU-0",),
        gpu_indices=(0,),
        gpu_parents=("GPU-P",),
        gpu_list="8x a100",
    )
    assert all(getattr(job, one.name) != one.default for one in fields(job))
    assert all(getattr(full, name) != default for name, default in Grant._field_defaults.items())
    claim = Claim(
        claim_id="c0ffee",
        job=job,
        owner="ada",
        grants=(full, Grant(node_id="node-2", gpu_uuids=("#3",), gpu_indices=(3,))),
        granted_at=90.0,
        expires_at=130.0,
        ttl_seconds=75.0,
    )
    document = json.loads(json.dumps(persistence.serialize_claim(claim, 100.0)))
    restored = persistence.load_claim(StoredDocument(DocumentKind.CLAIM, "job-1", document, 5.0), 300.0)
    waits_no_more = replace(job, wait_seconds=0.0)
    assert restored == replace(claim, job=waits_no_more, granted_at=285.0, expires_at=375.0)


def test_a_document_of_what_is_held_reads_back_as_it_was_written() -> None:
    claim = Claim(
        claim_id="c0ffee",
        job=Job(job_id="job-1", gpu_count=2),
        owner=None,
        grants=(Grant(node_id="node-1", gpu_uuids=("GPU-0", "GPU-1"), gpu_indices=(0, 1)),),
        granted_at=10.0,
        expires_at=70.0,
        ttl_seconds=60.0,
    )
    held = HeldGrant(claim=claim, node_id="node-1", gpu_uuids=("GPU-1",), end=ClaimEnd.EXPIRED, ended_at=70.0)
    document = json.loads(json.dumps(persistence.serialize_held(held, 100.0)))
    restored = persistence.load_held(StoredDocument(DocumentKind.HELD, held.key, document, 5.0), 300.0)
    assert restored == replace(held, claim=replace(claim, granted_at=205.0, expires_at=265.0), ended_at=265.0)


def test_a_registration_is_written_with_what_heartbeats_have_replaced_since() -> None:
    registry = Registry()
    record = registry.ready(installed_models=(model("asr"),))
    first = persistence.serialize_node(record, 1.0)["registration"]
    registry.heartbeat(labels={"zone": "b"})
    assert persistence.serialize_node(record, 3.0)["registration"] == {**first, "labels": {"zone": "b"}}


@pytest.mark.parametrize("kind", [one for one in DocumentKind if one is not DocumentKind.RECEIVER])
def test_a_document_that_is_none_of_ours_is_named_with_what_to_do(kind: DocumentKind) -> None:
    stored = StoredDocument(kind, "x", {"node_id": 7}, 0.0)
    read: dict[DocumentKind, Callable[[], object]] = {
        DocumentKind.NODE: lambda: persistence.load_node(stored, Thresholds(), 0.0),
        DocumentKind.CLAIM: lambda: persistence.load_claim(stored, 0.0),
        DocumentKind.HELD: lambda: persistence.load_held(stored, 0.0),
        DocumentKind.TOKEN: lambda: persistence.load_token(stored, 0.0),
    }
    with pytest.raises(UnreadableDocumentError, match=f"the stored {kind} 'x' .* and was left out"):
        read[kind]()


def test_after_a_restart_a_node_has_its_last_status_is_disconnected_and_has_one_full_timeout() -> None:
    registry = Registry()
    registry.ready()
    fresh = restart(registry, away=3600.0)
    record = fresh.node()
    assert (record.status, record.connected, record.epoch) == ("ready", False, 1)
    assert fresh.claim("job-1").counts == {"disconnected": 1}
    fresh.pass_time(44.0)
    assert record.status == "ready"
    fresh.pass_time(2.0)
    assert (record.status, record.reason_code) == ("offline", "heartbeat_timeout")


def test_after_a_restart_a_nodes_full_timeout_is_that_of_the_interval_it_was_given() -> None:
    registry = Registry(heartbeat_interval_seconds=25.0)
    registry.ready()
    fresh = restart(registry)  # with the usual interval
    fresh.pass_time(74.0)
    assert fresh.node().status == "ready"
    fresh.pass_time(2.0)
    assert fresh.node().status == "offline"


def test_after_a_restart_a_node_that_was_registering_has_its_whole_warm_up_again() -> None:
    registry = Registry(heartbeat_interval_seconds=25.0)
    registry.register()
    fresh = restart(registry)
    fresh.pass_time(59.0)
    assert fresh.node().status == "registering"
    fresh.pass_time(2.0)
    assert (fresh.node().status, fresh.node().reason_code) == ("degraded", "warmup_timeout")


def test_after_a_restart_a_node_comes_back_with_its_id_and_a_later_epoch() -> None:
    registry = Registry()
    registry.ready()
    fresh = restart(registry)
    fresh.do(RegistrationReceived(1, declaration(), "unused", credential=proof("node-1")))
    fresh.heartbeats(3)
    assert (fresh.node().status, fresh.node().epoch) == ("ready", 2)


def test_after_a_restart_claims_have_one_fresh_ttl() -> None:
    registry = Registry(claim_ttl_seconds=60.0)
    registry.ready()
    registry.claim("job-1")
    fresh = restart(registry, away=3600.0, heartbeat_timeout_seconds=600.0)
    fresh.pass_time(59.0)
    assert fresh.fleet.claim_of("job-1") is not None
    fresh.pass_time(2.0)
    assert fresh.fleet.claim_of("job-1") is None


def test_an_operators_drain_and_cordon_outlive_a_restart_and_its_deadline_counts_the_time_away() -> None:
    registry = Registry()
    registry.ready()
    registry.claim("job-1")
    registry.do(CordonRequested(7, "node-1", "new fans"))
    registry.drain(deadline_seconds=300.0)
    registry.do(ConnectionLost(1))
    fresh = restart(registry, away=290.0, heartbeat_timeout_seconds=600.0)
    record = fresh.node()
    assert (record.status, record.desired.cordoned) == ("draining", "new fans")
    fresh.pass_time(9.0)
    assert record.status == "draining"
    fresh.pass_time(2.0)
    assert (record.status, record.reason_code) == ("offline", "drain_deadline")
    fresh.do(RegistrationReceived(1, declaration(), "unused", credential=proof("node-1")))
    assert statuses(fresh.heartbeats(3)) == ["ready", "draining", "offline"]


def test_a_claim_whose_node_was_not_stored_is_deleted_from_the_store() -> None:
    registry = Registry()
    registry.ready()
    registry.claim("job-1")
    del registry.documents[DocumentKind.NODE, "node-1"]
    fresh = restart(registry)
    assert fresh.document_names == []


def test_one_unreadable_document_keeps_no_other_from_coming_back() -> None:
    registry = Registry()
    registry.ready()
    registry.documents[DocumentKind.NODE, "node-0"] = ({"node_id": "node-0"}, registry.now)
    fresh = restart(registry)
    assert [record.node_id for record in fresh.fleet.nodes()] == ["node-1"]
    (entry,) = logged(fresh.done, "document_unreadable")
    assert "node-0" in str(entry.fields["detail"])


def test_words_of_a_later_version_cost_a_node_neither_its_cordon_nor_its_drain_nor_its_token() -> None:
    registry = Registry()
    record = registry.ready()
    registry.do(CordonRequested(7, "node-1", "new fans"))
    registry.drain(deadline_seconds=90.0)
    document, _ = registry.documents[DocumentKind.NODE, "node-1"]
    later = {"status": "maintenance", "previous_status": "asleep", "reason_code": "moonshine"}
    registry.documents[DocumentKind.NODE, "node-1"] = ({**document, **later}, registry.now)
    fresh = restart(registry)
    (loaded,) = fresh.fleet.nodes()
    assert (loaded.status, loaded.reason_code) == ("degraded", "health_checks_failed")
    assert loaded.desired.cordoned == "new fans"
    assert loaded.desired.drain is not None
    assert loaded.tokens == record.tokens
    assert [entry.fields for entry in logged(fresh.done, "document_word_unknown")] == [
        {"document": "node 'node-1'", "field": field, "word": word, "read_as": read_as}
        for field, word, read_as in (
            ("status", "maintenance", "degraded"),
            ("previous_status", "asleep", "degraded"),
            ("reason_code", "moonshine", "health_checks_failed"),
        )
    ]
    fresh.do(RegistrationReceived(1, declaration(), "unused", credential=proof("node-1")))
    assert statuses(fresh.heartbeats(3)) == ["ready", "draining", "offline"]


def test_what_is_held_stays_so_where_the_claim_ended_in_a_way_of_a_later_version() -> None:
    registry = Registry()
    registry.ready()
    claim = registry.claim("job-1")
    assert isinstance(claim, Claim)
    held = HeldGrant(claim=claim, node_id="node-1", gpu_uuids=(), end=ClaimEnd.LOST, ended_at=registry.now)
    document = persistence.serialize_held(held, registry.now) | {"end": "evicted"}
    registry.release("job-1")
    registry.documents[DocumentKind.HELD, held.key] = (document, registry.now)
    fresh = restart(registry)
    assert [one.end for one in fresh.fleet.held()] == [ClaimEnd.EXPIRED]
    (entry,) = logged(fresh.done, "document_word_unknown")
    assert (entry.fields["word"], entry.fields["read_as"]) == ("evicted", "expired")


def test_a_claim_that_shares_gpus_in_a_way_of_a_later_version_is_left_out() -> None:
    registry = Registry()
    registry.ready()
    registry.claim("job-1")
    document, _ = registry.documents[DocumentKind.CLAIM, "job-1"]
    assert isinstance(document["job"], dict)
    job = {**document["job"], "gpu_count": 1, "gpu_sharing": "by_turns"}
    registry.documents[DocumentKind.CLAIM, "job-1"] = ({**document, "job": job}, registry.now)
    fresh = restart(registry)
    assert fresh.fleet.claims() == []
    (entry,) = logged(fresh.done, "document_unreadable")
    assert "by_turns" in str(entry.fields["detail"])


def test_every_change_of_status_is_stored() -> None:
    registry = Registry()
    registry.ready()
    document, _ = registry.documents[DocumentKind.NODE, "node-1"]
    assert document["status"] == "ready"
    registry.stored.clear()
    registry.pass_time(46.0)
    assert [change.key for change in registry.stored] == ["node-1"]
    document, _ = registry.documents[DocumentKind.NODE, "node-1"]
    assert document["status"] == "offline"


def test_a_node_that_was_stored_before_there_were_tokens_comes_back_and_may_be_reclaimed() -> None:
    registry = Registry()
    registry.ready()
    document, at = registry.documents[DocumentKind.NODE, "node-1"]
    older = {name: part for name, part in document.items() if name not in ("keys", "granted_labels")}
    registry.documents[DocumentKind.NODE, "node-1"] = (older, at)
    fresh = restart(registry)
    assert fresh.node().tokens.all == ()
    assert codes(fresh.register(2, "node-1"), 2) == ["NODE_ID_CONFLICT"]
    fresh.do(JoinTokenRequested(ref=1, token_id="back", digest="d", node_id="node-1"))
    fresh.arrive(Credential(CredentialKind.JOIN, "back", "node-1"), 3)
    assert fresh.node().connection == 3


@pytest.mark.parametrize("away", [0.0, 30.0, 120.0])
def test_a_token_reads_back_as_it_was_written_and_its_time_goes_on_while_the_registry_is_away(
    away: float,
) -> None:
    registry = Registry()
    registry.do(
        JoinTokenRequested(
            ref=1, token_id="t", digest="d", ttl_seconds=90.0, uses=7, labels={"zone": "a"}, note="rack 4"
        )
    )
    (written,) = [token for token in registry.fleet.tokens() if token.token_id == "t"]
    fresh = restart(registry, away=away)
    (read,) = [token for token in fresh.fleet.tokens() if token.token_id == "t"]
    assert read.expires_at == pytest.approx(LATER + 90.0 - away)
    assert replace(read, created_at=written.created_at, expires_at=written.expires_at) == written
    assert (fresh.fleet.credential("d", LATER) is not None) == (away < 90.0)


def test_a_document_of_a_token_that_is_none_of_ours_is_left_out_and_said_so() -> None:
    fresh = Registry()
    sent = fresh.restore([StoredDocument(DocumentKind.TOKEN, "t", {"token_id": "t"}, 0.0)])
    (entry,) = logged(sent, "document_unreadable")
    assert "'t'" in str(entry.fields["detail"])


def documents_of(registry: Registry) -> Documents:
    return registry.fleet._documents


@pytest.mark.parametrize("kind", list(DocumentKind))
def test_what_is_not_known_any_more_is_deleted(kind: DocumentKind) -> None:
    change = documents_of(Registry()).change_of((kind, "gone"), 1000.0)
    assert (change.kind, change.key, change.document) == (kind, "gone", None)


def test_what_is_stored_of_a_node_and_its_claim_is_loaded_node_first() -> None:
    registry, fresh = Registry(), Registry()
    registry.ready()
    registry.claim("job-1")
    stored = []
    for key in ((DocumentKind.CLAIM, "job-1"), (DocumentKind.NODE, "node-1")):
        document = documents_of(registry).change_of(key, registry.now).document
        assert document is not None
        stored.append(StoredDocument(*key, document, 0.0))
    steps = list(documents_of(fresh).load_each(stored, fresh.now))
    assert list(fresh.node().claims) == ["job-1"]
    assert [(list(step.touched), list(step.changed)) for step in steps] == [(["node-1"], []), ([], [])]


def test_what_cannot_be_read_changes_nothing_and_is_logged() -> None:
    registry = Registry()
    (step,) = documents_of(registry).load_each(
        [StoredDocument(DocumentKind.NODE, "node-1", {}, 0.0)], registry.now
    )
    assert registry.fleet.size == 0
    (entry,) = step.logged
    assert (entry.event, entry.level) == ("document_unreadable", Level.WARNING)
    assert "node-1" in str(entry.fields["detail"])
