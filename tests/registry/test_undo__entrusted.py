"""A release that fails after its node was let go: the claim ends or stands with that."""

from gpu_agent.registry.actions import Kept
from gpu_agent.registry.events import ClaimAsked, ReleaseAsked, RemovalAsked
from gpu_agent.registry.job import Job
from tests.registry.fleets import notes
from tests.registry.slow_store import SlowRegistry, numbers, ready


def released_then_removed() -> SlowRegistry:
    """A registry whose store has yet to answer for a release, and for the removal of its node."""
    registry = SlowRegistry()
    ready(registry)
    registry.do(ClaimAsked(6, Job(job_id="job-1")))
    registry.answer_all()
    registry.do(ReleaseAsked(7, "job-1"))
    registry.do(RemovalAsked(8, "node-1"))
    assert len(numbers(registry)) == 2
    return registry


def test_where_both_fail_the_claim_stands_on_the_node_that_stays() -> None:
    registry = released_then_removed()
    told = len(registry.done)
    registry.answer(2, fails=numbers(registry))
    claim = registry.fleet.claim_of("job-1")
    assert claim is not None
    assert claim.node_id == "node-1"
    assert list(registry.node().claims) == ["job-1"]
    registry.pass_time(3.0)
    registry.answer_all()
    registry.agree()
    assert notes(registry.done[told:], "claim_released") == notes(registry.done[told:], "claim_lost") == []


def test_where_the_release_fails_alone_the_claim_is_lost_with_its_node_and_the_disk_forgets_it() -> None:
    registry = released_then_removed()
    told = len(registry.done)
    release, _ = numbers(registry)
    registry.answer(2, fails={release})
    registry.pass_time(3.0)
    registry.answer_all()
    assert registry.fleet.claim_of("job-1") is None
    assert (Kept.CLAIM, "job-1") not in registry.kept
    registry.agree()
    (lost,) = notes(registry.done[told:], "claim_lost")
    assert lost.fields == {"job_id": "job-1", "node_id": "node-1", "reason_code": "removed"}


def test_where_the_removal_fails_alone_the_claim_is_released() -> None:
    registry = released_then_removed()
    _, removal = numbers(registry)
    registry.answer(2, fails={removal})
    assert registry.fleet.claim_of("job-1") is None
    assert registry.node().claims == {}
    registry.pass_time(3.0)
    registry.answer_all()
    registry.agree()
