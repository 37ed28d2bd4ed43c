from gpu_agent.registry.actions import Refusal, Save
from gpu_agent.registry.dispatch.dispatch import Choice
from gpu_agent.registry.dispatch.verdict import NoAvailableNode
from gpu_agent.registry.events import (
    ClaimAsked,
    ConnectionLost,
    CordonAsked,
    GoodbyeArrived,
    ReleaseAsked,
    RenewalAsked,
    ResumeAsked,
)
from gpu_agent.registry.job import Claim, Job
from gpu_agent.wire.messages import NodeUnregister
from tests.registry.fleets import Registry, answer, figures, notes, of, statuses


def test_a_claim_is_saved_before_it_is_answered() -> None:
    registry = Registry()
    registry.ready()
    done = registry.do(ClaimAsked(7, Job(job_id="job-1", required_models=())))
    kinds = [type(action).__name__ for action in done]
    assert kinds == ["Save", "Note", "Answer"]
    (note,) = notes(done, "job_assigned")
    assert note.fields == {"job_id": "job-1", "node_id": "node-1", "required_models": []}
    assert ("claim", "job-1") in registry.kept


def test_the_same_job_again_gets_the_same_claim_and_is_assigned_once() -> None:
    registry = Registry()
    registry.ready()
    first = registry.claim("job-1")
    registry.pass_time(5.0)
    again = registry.do(ClaimAsked(7, Job(job_id="job-1")))
    assert answer(again) == first
    assert not notes(again, "job_assigned")


def test_a_failed_dispatch_notes_counts_and_examples() -> None:
    registry = Registry()
    registry.register()
    done = registry.do(ClaimAsked(7, Job(job_id="job-1")))
    (failed,), (example,) = notes(done, "dispatch_failed"), notes(done, "dispatch_candidate_excluded")
    assert failed.fields == {"job_id": "job-1", "counts": {"status_not_ready": 1}}
    assert (example.fields["node_id"], example.level) == ("node-1", "info")
    assert of(Save, done) == []


def test_a3_with_debug_every_exclusion_is_noted_in_full() -> None:
    registry = Registry(debug=True)
    for connection in range(1, 8):
        registry.register(connection)
    done = registry.do(ClaimAsked(7, Job(job_id="job-1")))
    levels = [note.level.value for note in notes(done, "dispatch_candidate_excluded")]
    assert (levels.count("info"), levels.count("debug")) == (5, 7)


def test_a_claim_expires_unless_it_is_renewed() -> None:
    registry = Registry(claim_ttl_seconds=10.0)
    registry.ready()
    registry.claim("job-1")
    registry.claim("job-2")
    registry.pass_time(8.0)
    renewed = answer(registry.do(RenewalAsked(7, "job-1")))
    assert isinstance(renewed, Claim)
    assert renewed.expires_at == registry.now + 10.0
    done = registry.pass_time(4.0)
    assert [note.fields["job_id"] for note in notes(done, "claim_expired")] == ["job-2"]
    assert list(registry.node().claims) == ["job-1"]
    assert ("claim", "job-2") not in registry.kept


def test_a_claim_past_its_time_is_gone_even_before_the_fleet_was_woken() -> None:
    registry = Registry(claim_ttl_seconds=10.0)
    registry.ready()
    registry.claim("job-1")
    registry.now += 11.0
    assert isinstance(answer(registry.do(RenewalAsked(7, "job-1"))), Refusal)


def test_an_expired_claim_ends_the_drain_that_waited_for_it() -> None:
    registry = Registry(claim_ttl_seconds=10.0)
    registry.ready()
    registry.claim("job-1")
    registry.drain()
    assert statuses(registry.pass_time(12.0)) == ["offline"]


def test_releasing_or_renewing_what_is_not_held_is_refused_with_what_to_do() -> None:
    registry = Registry()
    for event in (ReleaseAsked(7, "job-9"), RenewalAsked(7, "job-9")):
        refused = answer(registry.do(event))
        assert isinstance(refused, Refusal)
        assert refused.code == "CLAIM_NOT_FOUND"
        assert "claim a place anew" in refused.message


def test_a_released_place_is_free_again() -> None:
    registry = Registry()
    registry.ready(max_concurrent_jobs=1)
    registry.claim("job-1")
    assert registry.claim("job-2").counts == {"capacity_exceeded": 1}
    done = registry.do(ReleaseAsked(7, "job-1"))
    assert answer(done) is None
    (note,) = notes(done, "claim_released")
    assert note.fields == {"job_id": "job-1", "node_id": "node-1"}
    assert registry.claim("job-2").node_id == "node-1"


def test_claims_are_reported_lost_when_their_node_goes_offline() -> None:
    registry = Registry(claim_ttl_seconds=1000.0)
    registry.ready()
    registry.claim("job-1")
    done = registry.pass_time(46.0)
    (note,) = notes(done, "claim_lost")
    assert note.fields == {"job_id": "job-1", "node_id": "node-1", "reason_code": "heartbeat_timeout"}
    assert ("claim", "job-1") not in registry.kept
    assert registry.fleet.claim_of("job-1") is None


def test_claims_stay_whatever_becomes_of_their_node_but_going_offline() -> None:
    registry = Registry()
    record = registry.ready()
    registry.claim("job-1")
    done = registry.do(CordonAsked(registry.ref(), "node-1", "fans"))
    done += registry.beat(gpus=figures(health="lost"))
    assert record.status == "degraded"
    done += registry.drain()
    assert record.status == "draining"
    done += registry.do(ResumeAsked(registry.ref(), "node-1"))
    done += registry.do(ConnectionLost(1))
    done += registry.come_back(2, running_jobs=())
    assert record.status == "registering"
    assert (notes(done, "claim_lost"), list(record.claims)) == ([], ["job-1"])


def test_a_job_whose_claim_was_lost_gets_another_place_and_keeps_that() -> None:
    registry = Registry()
    registry.ready(1)
    first = registry.claim("job-1")
    registry.do(GoodbyeArrived(1, NodeUnregister(node_id="node-1", reason="bye")))
    assert registry.claim("job-1").counts == {"status_not_ready": 1}
    registry.ready(2)
    second = registry.claim("job-1")
    assert (first.node_id, second.node_id) == ("node-1", "node-2")
    assert registry.claim("job-1") == second


def test_a_renewal_counts_from_the_moment_of_asking() -> None:
    registry = Registry(claim_ttl_seconds=60.0)
    registry.ready()
    registry.claim("job-1")
    registry.beats(2, every=15.0)
    renewed = answer(registry.do(RenewalAsked(registry.ref(), "job-1")))
    assert isinstance(renewed, Claim)
    assert renewed.expires_at == registry.now + 60.0


def test_a_failed_dispatch_is_counted_and_one_that_finds_a_place_is_not() -> None:
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
    assert (claim.node_id, claim.gpu_uuids) == (chosen.node_id, chosen.gpu_uuids)
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
