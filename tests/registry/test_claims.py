"""Claims: requested, renewed, released, expired, lost with a node and attached again."""

from gpu_agent.registry.actions import Refusal
from gpu_agent.registry.dispatch.dispatch import Choice
from gpu_agent.registry.dispatch.exclusions import NoAvailableNode
from gpu_agent.registry.events import (
    ConnectionLost,
    CordonRequested,
    ReleaseRequested,
    RemovalRequested,
    RenewalRequested,
    ResumeRequested,
    UnregistrationReceived,
)
from gpu_agent.registry.job import Claim, Job
from gpu_agent.wire.messages import NodeUnregister
from tests.registry.harness import Registry, answer, figures, logged, proof, statuses


def test_a_claim_is_saved_before_it_is_answered() -> None:
    registry = Registry()
    registry.ready()
    done = registry.do(registry.claim_request("job-1"))
    assert [type(effect).__name__ for effect in done] == ["LogEvent", "Answer"]
    (entry,) = logged(done, "job_assigned")
    assert entry.fields == {
        "job_id": "job-1",
        "node_id": "node-1",
        "hostname": None,
        "claim_id": "claim-1",
        "gpu_uuids": [],
        "required_models": [],
    }
    assert ("claim", "job-1") in registry.documents


def test_the_same_job_again_gets_the_same_claim_and_is_assigned_once() -> None:
    registry = Registry()
    registry.ready()
    first = registry.claim("job-1")
    registry.pass_time(5.0)
    again = registry.do(registry.claim_request("job-1"))
    assert answer(again).claim_id == first.claim_id
    assert answer(again).grants == first.grants
    assert not logged(again, "job_assigned")


def test_a_failed_dispatch_notes_counts_and_examples() -> None:
    registry = Registry()
    registry.register()
    done = registry.do(registry.claim_request("job-1"))
    (failed,), (example,) = logged(done, "dispatch_failed"), logged(done, "dispatch_candidate_excluded")
    assert failed.fields == {"job_id": "job-1", "counts": {"status_not_ready": 1}}
    assert (example.fields["node_id"], example.level) == ("node-1", "info")
    assert ("claim", "job-1") not in registry.documents


def test_a3_with_debug_every_exclusion_is_logged_in_full() -> None:
    registry = Registry(debug=True)
    for connection in range(1, 8):
        registry.register(connection)
    done = registry.do(registry.claim_request("job-1"))
    levels = [entry.level.value for entry in logged(done, "dispatch_candidate_excluded")]
    assert (levels.count("info"), levels.count("debug")) == (5, 7)


def test_a_claim_expires_unless_it_is_renewed() -> None:
    registry = Registry(claim_ttl_seconds=10.0)
    registry.ready()
    registry.claim("job-1")
    registry.claim("job-2")
    registry.pass_time(8.0)
    renewed = answer(registry.do(RenewalRequested(7, "job-1")))
    assert isinstance(renewed, Claim)
    assert renewed.expires_at == registry.now + 10.0
    done = registry.pass_time(4.0)
    assert [entry.fields["job_id"] for entry in logged(done, "claim_expired")] == ["job-2"]
    assert list(registry.node().claims) == ["job-1"]
    assert ("claim", "job-2") not in registry.documents


def test_a_claim_past_its_time_is_gone_even_before_the_fleet_was_woken() -> None:
    registry = Registry(claim_ttl_seconds=10.0)
    registry.ready()
    registry.claim("job-1")
    registry.now += 11.0
    assert isinstance(answer(registry.do(RenewalRequested(7, "job-1"))), Refusal)


def test_an_expired_claim_ends_the_drain_that_waited_for_it() -> None:
    registry = Registry(claim_ttl_seconds=10.0)
    registry.ready()
    registry.claim("job-1")
    registry.drain()
    assert statuses(registry.pass_time(12.0)) == ["offline"]


def test_releasing_or_renewing_what_is_not_held_is_refused_with_what_to_do() -> None:
    registry = Registry()
    for event in (ReleaseRequested(7, "job-9"), RenewalRequested(7, "job-9")):
        refused = answer(registry.do(event))
        assert isinstance(refused, Refusal)
        assert refused.code == "CLAIM_NOT_FOUND"
        assert ("claim a slot again" in refused.message) == isinstance(event, RenewalRequested)


def test_a_released_slot_is_free_again() -> None:
    registry = Registry()
    registry.ready(max_concurrent_jobs=1)
    registry.claim("job-1")
    assert registry.claim("job-2").counts == {"capacity_exceeded": 1}
    done = registry.do(ReleaseRequested(7, "job-1", reason="done"))
    assert answer(done) is None
    (entry,) = logged(done, "claim_released")
    named = {"job_id": "job-1", "node_id": "node-1", "claim_id": "claim-1"}
    assert entry.fields == {**named, "reason": "done"}
    assert registry.claim("job-2").grants[0].node_id == "node-1"


def test_claims_are_reported_lost_when_their_node_goes_offline() -> None:
    registry = Registry(claim_ttl_seconds=1000.0)
    registry.ready()
    registry.claim("job-1")
    done = registry.pass_time(46.0)
    (entry,) = logged(done, "claim_lost")
    assert entry.fields == {
        "job_id": "job-1",
        "node_id": "node-1",
        "claim_id": "claim-1",
        "reason_code": "heartbeat_timeout",
    }
    assert ("claim", "job-1") not in registry.documents
    assert registry.fleet.claim_of("job-1") is None


def test_claims_stay_whatever_becomes_of_their_node_but_going_offline() -> None:
    registry = Registry()
    record = registry.ready()
    registry.claim("job-1")
    done = registry.do(CordonRequested(registry.ref(), "node-1", "fans"))
    done += registry.heartbeat(gpus=figures(health="lost"))
    assert record.status == "degraded"
    done += registry.drain()
    assert record.status == "draining"
    done += registry.do(ResumeRequested(registry.ref(), "node-1"))
    done += registry.do(ConnectionLost(1))
    done += registry.come_back(2, running_jobs=())
    assert record.status == "registering"
    assert (logged(done, "claim_lost"), list(record.claims)) == ([], ["job-1"])


def test_a_job_whose_claim_was_lost_gets_another_slot_and_keeps_that() -> None:
    registry = Registry()
    registry.ready(1)
    first = registry.claim("job-1")
    registry.do(UnregistrationReceived(1, NodeUnregister(node_id="node-1", reason="bye")))
    assert registry.claim("job-1").counts == {"status_not_ready": 1}
    registry.ready(2)
    second = registry.claim("job-1")
    assert [one.grants[0].node_id for one in (first, second)] == ["node-1", "node-2"]
    assert registry.claim("job-1").claim_id == second.claim_id != first.claim_id


def test_a_renewal_counts_from_the_moment_of_asking() -> None:
    registry = Registry(claim_ttl_seconds=60.0)
    registry.ready()
    registry.claim("job-1")
    registry.heartbeats(2, every=15.0)
    renewed = answer(registry.do(RenewalRequested(registry.ref(), "job-1")))
    assert isinstance(renewed, Claim)
    assert renewed.expires_at == registry.now + 60.0


def test_a_failed_dispatch_is_counted_and_one_that_finds_a_node_is_not() -> None:
    registry = Registry()
    registry.ready()
    registry.claim("job-1")
    registry.claim("job-2", required_models=("m",))
    (window,) = registry.fleet.exclusions(registry.now)
    assert (window.failed, window.counts, window.last_jobs) == (1, {"model_not_available": 1}, ("job-2",))
    registry.now += 120.0
    assert registry.fleet.finished_exclusions(registry.now) == (window,)
    assert registry.fleet.finished_exclusions(registry.now) == ()


def test_a_dry_run_answers_as_a_claim_would_and_leaves_no_trace() -> None:
    registry = Registry()
    registry.ready(max_concurrent_jobs=1)
    chosen = registry.fleet.select(Job(job_id="job-1"), registry.now)
    assert isinstance(chosen, Choice)
    assert registry.fleet.claims() == []
    claim = registry.claim("job-1")
    assert claim.grants == chosen.grants
    assert registry.fleet.select(Job(job_id="job-1"), registry.now) == claim
    refused = registry.fleet.select(Job(job_id="job-2"), registry.now)
    assert isinstance(refused, NoAvailableNode)
    assert refused.counts == {"capacity_exceeded": 1}
    assert registry.fleet.exclusions(registry.now) == ()
    assert registry.fleet.claims() == [claim]


def test_a_dry_run_does_not_count_on_a_claim_that_is_over() -> None:
    registry = Registry(claim_ttl_seconds=10.0)
    registry.ready()
    registry.claim("job-1")
    registry.now += 10.5
    assert isinstance(registry.fleet.select(Job(job_id="job-1"), registry.now), Choice)


def test_a_lost_claim_whose_job_is_reported_running_is_attached_again() -> None:
    registry = Registry()
    registry.ready()
    claim = registry.claim("job-1")
    registry.pass_time(46.0)
    done = registry.come_back(2, running_jobs=("job-1", "job-7"))
    assert [entry.fields["job_id"] for entry in logged(done, "claim_reattached")] == ["job-1"]
    found = registry.fleet.claim_of("job-1")
    assert found is not None
    assert (found.claim_id, found.grants) == (claim.claim_id, claim.grants)
    assert found.expires_at == registry.now + 60.0
    assert ("claim", "job-1") in registry.documents


def test_a_lost_claim_is_found_by_a_later_heartbeat_too() -> None:
    registry = Registry()
    registry.ready()
    registry.claim("job-1")
    registry.pass_time(46.0)
    registry.come_back(2, running_jobs=())
    registry.heartbeat(2, "node-1", running_jobs=("job-1",))
    assert registry.fleet.claim_of("job-1") is not None


def test_a_lost_claim_is_not_found_by_what_its_node_reported_before_it_was_lost() -> None:
    registry = Registry()
    registry.ready()
    registry.claim("job-1")
    registry.heartbeat(running_jobs=("job-1",))
    registry.pass_time(46.0)
    assert not logged(registry.arrive(proof("node-1"), 2, "node-1"), "claim_reattached")
    assert not logged(registry.heartbeat(2, "node-1", running_jobs=()), "claim_reattached")


def test_a_claim_lost_with_a_drained_node_waits_until_it_is_resumed_though_its_job_runs_on() -> None:
    registry = Registry()
    record = registry.ready()
    registry.claim("job-1")
    registry.drain(deadline_seconds=0.0)
    registry.pass_time(2.0)
    assert (record.status, record.connection, record.claims) == ("offline", 1, {})
    assert not logged(registry.heartbeat(1, running_jobs=("job-1",)), "claim_reattached")
    registry.do(ResumeRequested(7, "node-1"))
    assert logged(registry.heartbeat(1, running_jobs=("job-1",)), "claim_reattached")
    assert set(record.claims) == {"job-1"}


def test_a_lost_claim_that_was_claimed_elsewhere_stays_there() -> None:
    registry = Registry(claim_ttl_seconds=1000.0)
    registry.ready(1)
    assert registry.claim("job-1").grants[0].node_id == "node-1"
    registry.pass_time(46.0)
    registry.ready(2)
    assert registry.claim("job-1").grants[0].node_id == "node-2"
    registry.come_back(3, running_jobs=("job-1",))
    found = registry.fleet.claim_of("job-1")
    assert found is not None
    assert found.grants[0].node_id == "node-2"


def test_a_lost_claim_is_attached_again_once_the_jobs_later_claim_has_ended() -> None:
    registry = Registry(claim_ttl_seconds=1000.0)
    registry.ready(1)
    first = registry.claim("job-1")
    registry.pass_time(46.0)
    registry.ready(2)
    registry.claim("job-1")
    registry.come_back(3, running_jobs=("job-1",))
    registry.release("job-1")
    registry.heartbeat(3, "node-1", running_jobs=("job-1",))
    found = registry.fleet.claim_of("job-1")
    assert found is not None
    assert found.claim_id == first.claim_id


def test_a_claim_lost_long_ago_is_attached_again_while_its_node_has_not_shown_the_job_gone() -> None:
    registry = Registry()
    registry.ready()
    claim = registry.claim("job-1")
    registry.pass_time(46.0 + 11 * 60.0)
    registry.come_back(2, running_jobs=("job-1",))
    found = registry.fleet.claim_of("job-1")
    assert found is not None
    assert found.claim_id == claim.claim_id


def test_a_lost_claim_whose_job_was_seen_gone_is_not_attached_again() -> None:
    registry = Registry()
    registry.ready()
    registry.claim("job-1")
    registry.pass_time(46.0)
    registry.come_back(2, running_jobs=())
    registry.heartbeats(2, 2, every=15.0, node_id="node-1", running_jobs=())
    assert registry.fleet.held() == []
    registry.heartbeat(2, "node-1", running_jobs=("job-1",))
    assert registry.fleet.claim_of("job-1") is None


def test_a_lost_claim_may_be_released_and_is_not_found_again() -> None:
    registry = Registry(claim_ttl_seconds=1000.0)
    registry.ready()
    claim = registry.claim("job-1")
    registry.pass_time(46.0)
    assert registry.release("job-1", claim.claim_id) is None
    registry.come_back(2, running_jobs=("job-1",))
    assert registry.fleet.claim_of("job-1") is None


def test_a_claim_that_was_found_and_expires_stays_ended_though_its_job_runs_on() -> None:
    registry = Registry(claim_ttl_seconds=30.0)
    registry.ready()
    registry.claim("job-1")
    registry.do(UnregistrationReceived(1, NodeUnregister(node_id="node-1")))
    registry.come_back(2, running_jobs=("job-1",))
    assert registry.fleet.claim_of("job-1") is not None
    registry.pass_time(31.0)
    registry.heartbeat(2, "node-1", running_jobs=("job-1",))
    assert registry.fleet.claim_of("job-1") is None


def test_nothing_is_attached_again_of_a_node_whose_record_was_removed() -> None:
    registry = Registry()
    registry.ready()
    registry.claim("job-1")
    registry.do(RemovalRequested(7, "node-1"))
    registry.do(ConnectionLost(1))
    registry.register(2, "node-1", running_jobs=("job-1",))
    assert registry.fleet.claim_of("job-1") is None
