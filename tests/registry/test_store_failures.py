"""A failed save is never undone: who gets what while the store fails, and what follows then (§4)."""

from dataclasses import replace

import pytest

from gpu_agent.registry.actions import Answer, DocumentKind, Refusal
from gpu_agent.registry.events import (
    ClaimRequested,
    Command,
    ConnectionLost,
    ControlRequested,
    CordonRequested,
    DrainRequested,
    Event,
    JoinTokenRequested,
    OperatorTokenRequested,
    RegistrationReceived,
    ReleaseRequested,
    RemovalRequested,
    RenewalRequested,
    ResumeRequested,
    RevocationRequested,
    RotationRequested,
    Stored,
)
from gpu_agent.registry.job import Claim, Job
from gpu_agent.registry.tokens import Role
from gpu_agent.wire.messages import InstalledModel
from tests.registry.harness import (
    Registry,
    ack,
    answer,
    closed,
    codes,
    declaration,
    logged,
    of,
    statuses,
    unregistration,
)

JOIN_REQUEST = JoinTokenRequested(ref=7, token_id="new", digest="digest of new")


def failing(registry: Registry) -> Registry:
    """Let the store fail from now on, which a drain of another node shows."""
    registry.ready(9)
    registry.let_store_fail()
    registry.do(CordonRequested(registry.ref(), "node-9", "it shows that the store fails"))
    return registry


def test_who_waits_for_a_save_that_fails_learns_that_the_outcome_is_not_known() -> None:
    registry = Registry()
    registry.ready()
    registry.let_store_fail()
    refused = registry.claim("job-1")
    assert isinstance(refused, Refusal)
    assert refused.code == "REGISTRY_BUSY"
    assert "the outcome is not known yet: send the same request again" in refused.message
    assert "disk full" in refused.message


def test_a_change_whose_save_failed_stands_and_is_stored_once_the_store_answers() -> None:
    registry = Registry()
    registry.ready()
    registry.let_store_fail()
    registry.claim("job-1")
    assert registry.fleet.claim_of("job-1") is not None
    assert ("claim", "job-1") not in registry.documents
    done = registry.recover()
    assert ("claim", "job-1") in registry.documents
    assert logged(done, "job_assigned")
    assert of(Answer, done) == []
    assert isinstance(registry.claim("job-1"), Claim)


@pytest.mark.parametrize(
    "event",
    [
        DrainRequested(7, "node-1"),
        ResumeRequested(7, "node-1"),
        CordonRequested(7, "node-1", "fans"),
        RemovalRequested(7, "node-1"),
        ControlRequested(7, "node-1", Command.REFRESH),
        ClaimRequested(7, Job(job_id="job-2"), "claim-7"),
        ReleaseRequested(7, "job-1"),
        JOIN_REQUEST,
        OperatorTokenRequested(ref=7, token_id="op", digest="d", role=Role.READ),
        RevocationRequested(7, "join"),
        RotationRequested(7, "node-1"),
    ],
    ids=lambda event: type(event).__name__,
)
def test_while_the_store_fails_requests_are_refused_at_once_and_change_nothing(event: Event) -> None:
    registry = Registry()
    registry.ready()
    registry.claim("job-1")
    failing(registry)
    before = registry.fleet.node("node-1")
    known = (registry.fleet.tokens(), registry.fleet.claims(), before and before.desired.drain)
    refused = answer(registry.do(event))
    assert isinstance(refused, Refusal)
    assert refused.code == "REGISTRY_BUSY"
    assert "has changed nothing: send the same request again" in refused.message
    after = registry.fleet.node("node-1")
    assert (registry.fleet.tokens(), registry.fleet.claims(), after and after.desired.drain) == known


def test_a_stored_claim_is_renewed_while_the_store_fails_and_an_unstored_one_is_not() -> None:
    registry = Registry()
    registry.ready()
    first = registry.claim("job-1")
    registry.pass_time(10.0)
    registry.let_store_fail()
    registry.claim("job-2")
    renewed = answer(registry.do(RenewalRequested(7, "job-1")))
    assert isinstance(renewed, Claim)
    assert renewed.expires_at == first.expires_at + 10.0
    assert answer(registry.do(RenewalRequested(8, "job-2"))).code == "REGISTRY_BUSY"
    assert answer(registry.do(RenewalRequested(9, "job-3"))).code == "REGISTRY_BUSY"


def test_a_renewal_is_not_stored_because_a_restart_gives_a_fresh_ttl_anyhow() -> None:
    registry = Registry()
    registry.ready()
    registry.claim("job-1")
    registry.stored.clear()
    registry.do(RenewalRequested(7, "job-1"))
    assert registry.stored == []


def test_a_node_cannot_register_while_the_store_fails_and_leaves_no_record() -> None:
    registry = failing(Registry())
    done = registry.register(1)
    assert codes(done) == ["REGISTRY_BUSY"]
    assert registry.fleet.node("node-1") is None


def test_the_record_of_a_node_that_was_never_acknowledged_goes_with_its_connection() -> None:
    registry = Registry()
    registry.let_store_fail()
    assert codes(registry.register(1)) == ["REGISTRY_BUSY"]
    assert registry.fleet.node("node-1") is not None
    registry.do(ConnectionLost(1))
    assert registry.fleet.node("node-1") is None
    registry.recover()
    assert ("node", "node-1") not in registry.documents


def test_a_request_for_a_node_that_was_never_acknowledged_is_refused_since_its_record_may_go() -> None:
    registry = Registry()
    registry.let_store_fail()
    registry.register(1)
    registry.recover()
    refused = answer(registry.do(CordonRequested(registry.ref(), "node-1", "maintenance")))
    assert refused.code == "REGISTRY_BUSY"
    assert registry.node("node-1").desired.cordoned is None
    registry.register(1)
    assert answer(registry.do(CordonRequested(registry.ref(), "node-1", "maintenance"))) is None


def test_a_node_that_registers_again_before_its_first_record_was_stored_is_acknowledged() -> None:
    fleet = Registry(auth_off=True).fleet
    arrival = RegistrationReceived(1, declaration("node-1"), "fresh", None, address="", fresh_token=None)
    first = fleet.handle(arrival, 0.0)
    fleet.handle(ConnectionLost(1), 0.0)
    assert fleet.node("node-1") is None
    second = fleet.handle(replace(arrival, connection=2), 0.0)
    for output in (first, second):
        assert output.number is not None
        fleet.handle(Stored(output.number), 0.0)
    fleet.handle(ConnectionLost(2), 0.0)
    assert fleet.node("node-1") is not None


def test_a_node_that_registers_again_on_the_same_connection_is_acknowledged_and_stays() -> None:
    registry = Registry()
    registry.let_store_fail()
    registry.register(1)
    registry.recover()
    assert ack(registry.register(1)).node_id == "node-1"
    registry.do(ConnectionLost(1))
    assert registry.fleet.node("node-1") is not None


def test_a_known_node_whose_new_session_was_not_acknowledged_stays() -> None:
    registry = Registry()
    registry.ready()
    registry.let_store_fail()
    assert codes(registry.come_back(2), 2) == ["REGISTRY_BUSY"]
    registry.do(ConnectionLost(2))
    registry.recover()
    assert ("node", "node-1") in registry.documents


def test_a_token_that_was_sent_to_no_one_is_deleted() -> None:
    registry = Registry()
    registry.let_store_fail()
    assert answer(registry.do(JOIN_REQUEST)).code == "REGISTRY_BUSY"
    assert registry.fleet.credential("digest of new", registry.now) is None
    registry.recover()
    assert (DocumentKind.TOKEN, "new") not in registry.documents
    assert answer(registry.do(JOIN_REQUEST)) is None
    assert (DocumentKind.TOKEN, "new") in registry.documents


def test_a_node_token_that_was_not_sent_is_issued_again_on_the_same_connection() -> None:
    registry = Registry()
    registry.ready()
    registry.do(RotationRequested(registry.ref(), "node-1"))
    registry.let_store_fail()
    assert codes(registry.register(1)) == ["REGISTRY_BUSY"]
    registry.recover()
    assert ack(registry.register(1)).node_token is not None
    assert ack(registry.register(1)).node_token is None


def test_a_node_token_that_was_not_sent_proves_nothing_and_is_not_stored() -> None:
    registry = Registry()
    registry.ready()
    registry.do(RotationRequested(registry.ref(), "node-1"))
    before = registry.node().tokens
    registry.let_store_fail()
    registry.register(1)
    assert registry.node().tokens == before
    registry.recover()
    assert "following': ()" in str(registry.documents[DocumentKind.NODE, "node-1"])


def test_a_node_counts_as_stored_only_once_its_claims_are() -> None:
    registry = Registry()
    registry.ready()
    assert registry.fleet.is_stored("node-1")
    registry.let_store_fail()
    registry.claim("job-1")
    assert registry.node().claims.keys() == {"job-1"}
    assert not registry.fleet.is_stored("node-1")
    registry.recover()
    assert registry.fleet.is_stored("node-1")


def test_a_node_counts_as_stored_only_once_a_release_is() -> None:
    registry = Registry()
    registry.ready()
    registry.claim("job-1")
    registry.let_store_fail()
    registry.do(ReleaseRequested(registry.ref(), "job-1"))
    assert not registry.node().claims
    assert not registry.fleet.is_stored("node-1")
    registry.recover()
    assert registry.fleet.is_stored("node-1")


def test_heartbeats_go_on_and_the_status_they_lead_to_is_sent_once_it_is_stored() -> None:
    registry = Registry()
    registry.ready()
    failing(registry)
    done = registry.heartbeats(
        3, installed_models=(InstalledModel(model_id="m", version="1", status="error"),)
    )
    assert registry.node().status == "degraded"
    assert statuses(done) == []
    assert statuses(registry.recover()) == ["degraded"]
    assert registry.documents[DocumentKind.NODE, "node-1"][0]["status"] == "degraded"


def test_no_timeout_is_decided_and_silent_nodes_are_disconnected() -> None:
    registry = Registry()
    registry.ready()
    failing(registry)
    registry.pass_time(600.0)
    record = registry.node()
    assert (record.status, record.connected) == ("ready", False)
    registry.heartbeat()
    assert registry.node().connected


def test_no_claim_expires_and_none_is_lost() -> None:
    registry = Registry()
    registry.ready()
    registry.claim("job-1")
    failing(registry)
    registry.pass_time(600.0)
    registry.do(unregistration())
    assert registry.fleet.claim_of("job-1") is not None


def test_no_drain_deadline_is_decided_by_a_heartbeat_either() -> None:
    registry = Registry()
    registry.ready()
    registry.claim("job-1")
    registry.drain(deadline_seconds=20.0)
    failing(registry)
    registry.pass_time(30.0)
    registry.heartbeat(running_jobs=("job-1",))
    assert registry.node().status == "draining"
    registry.recover()
    registry.pass_time(1.0)
    assert registry.node().reason_code == "drain_deadline"


def test_a_nodes_own_drain_begins_and_is_sent_once_it_is_stored() -> None:
    registry = Registry()
    registry.ready()
    registry.heartbeat(running_jobs=("job-1",))
    failing(registry)
    assert statuses(registry.do(unregistration(drain=True))) == []
    assert registry.node().status == "draining"
    assert statuses(registry.recover()) == ["draining"]


def test_after_a_short_outage_a_node_that_was_silent_all_along_times_out_at_its_time() -> None:
    registry = Registry()
    registry.ready()
    failing(registry)
    registry.pass_time(44.0)
    registry.recover(outage_seconds=4.0)
    registry.pass_time(2.0)
    assert registry.node().reason_code == "heartbeat_timeout"


def test_a_long_outage_counts_as_a_restart() -> None:
    registry = Registry()
    registry.ready()
    claim = registry.claim("job-1")
    failing(registry)
    registry.pass_time(600.0)
    registry.recover(outage_seconds=600.0)
    renewed = registry.fleet.claim_of("job-1")
    assert renewed is not None
    assert renewed.expires_at == registry.now + (claim.expires_at - claim.granted_at)
    registry.pass_time(44.0)
    assert (registry.node().status, registry.node().connected) == ("ready", False)
    done = registry.pass_time(2.0)
    assert registry.node().reason_code == "heartbeat_timeout"
    assert closed(done) != []


def test_a_declaration_of_more_than_half_a_megabyte_is_refused_before_it_changes_anything() -> None:
    registry = Registry()
    models = tuple(InstalledModel(model_id=f"m-{number}", version="x" * 400) for number in range(1200))
    assert codes(registry.register(1, installed_models=models)) == ["INVALID_MESSAGE"]
    assert registry.fleet.node("node-1") is None
    registry.ready()
    before = registry.node().liveness.last_heartbeat_at
    registry.pass_time(5.0)
    assert codes(registry.heartbeat(installed_models=models)) == ["INVALID_MESSAGE"]
    assert (
        registry.node().liveness.last_heartbeat_at,
        registry.node().declared.registration.installed_models,
    ) == (before, ())


def test_text_that_takes_more_room_in_the_store_than_on_the_wire_counts_as_it_is_stored() -> None:
    registry = Registry()
    labels = {f"label-{number}": "漢" * 400 for number in range(250)}
    assert codes(registry.register(1, labels=labels)) == ["INVALID_MESSAGE"]


def test_after_an_outage_the_registry_still_suspects_itself_where_most_of_the_fleet_is_silent() -> None:
    registry = Registry()
    for connection in range(1, 13):
        registry.register(connection)
    for connection in (*range(1, 13),) * 3:
        registry.heartbeat(connection)
    registry.let_store_fail()
    registry.do(CordonRequested(registry.ref(), "node-1", "it shows that the store fails"))
    registry.pass_time(40.0)
    registry.recover(outage_seconds=40.0)
    done = registry.pass_time(46.0)
    assert logged(done, "mass_disconnect_suspected")
    assert registry.node("node-2").status == "ready"
    registry.pass_time(46.0)
    assert registry.node("node-2").reason_code == "heartbeat_timeout"
