from gpu_agent.registry.actions import Refusal, Save
from gpu_agent.registry.events import ConnectionLost, GoodbyeArrived, ReleaseAsked, RemovalAsked, ResumeAsked
from gpu_agent.registry.job import Claim
from gpu_agent.registry.lost import LOST_PER_NODE, REMEMBERED_TTLS, LostClaims
from gpu_agent.wire.messages import NodeUnregister
from tests.registry.fleets import Registry, answer, notes, of, proof

TTL = 60.0
KEPT_SECONDS = TTL * REMEMBERED_TTLS


def claim(job_id: str, node_id: str = "node-1") -> Claim:
    return Claim(job_id=job_id, node_id=node_id, gpu_uuids=(), endpoint=None, granted_at=0.0, expires_at=60.0)


def running(*job_ids: str) -> frozenset[str]:
    return frozenset(job_ids)


def test_what_was_lost_is_found_with_the_node_that_had_it_until_it_is_dropped() -> None:
    lost = LostClaims(TTL)
    lost.add(claim("job-1"), 0.0)
    assert lost.of("node-2", running("job-1"), 1.0) == []
    assert lost.of("node-1", running("job-1", "job-2"), 1.0) == [claim("job-1")]
    lost.drop("job-1", 1.0)
    assert lost.of("node-1", running("job-1"), 1.0) == []


def test_what_was_lost_too_long_ago_is_not_found() -> None:
    lost = LostClaims(TTL)
    lost.add(claim("job-1"), 0.0)
    lost.add(claim("job-2"), 1.0)
    assert lost.of("node-1", running("job-1", "job-2"), KEPT_SECONDS + 0.5) == [claim("job-2")]


def test_what_is_too_old_is_forgotten_though_its_node_never_comes_back() -> None:
    lost = LostClaims(TTL)
    for number in range(100):
        lost.add(claim(f"job-{number}", f"node-{number}"), number * TTL)
    assert len(lost) == REMEMBERED_TTLS + 1


def test_of_one_node_only_so_many_are_remembered_and_the_latest_of_them() -> None:
    lost = LostClaims(TTL)
    for number in range(LOST_PER_NODE + 5):
        lost.add(claim(f"job-{number}"), 0.0)
    assert len(lost) == LOST_PER_NODE
    assert lost.of("node-1", running("job-4", "job-5"), 0.0) == [claim("job-5")]


def test_a_job_lost_again_belongs_to_the_node_that_had_it_last() -> None:
    lost = LostClaims(TTL)
    lost.add(claim("job-1", "node-1"), 0.0)
    lost.add(claim("job-1", "node-2"), 5.0)
    assert lost.of("node-1", running("job-1"), 6.0) == []
    assert lost.of("node-2", running("job-1"), 6.0) == [claim("job-1", "node-2")]


def test_what_is_dropped_or_was_lost_with_a_forgotten_node_is_not_found() -> None:
    lost = LostClaims(TTL)
    for job_id in ("job-1", "job-2"):
        lost.add(claim(job_id), 0.0)
    assert lost.drop("job-1", 0.0) == claim("job-1")
    assert lost.drop("job-1", 0.0) is None
    lost.forget("node-1")
    assert (len(lost), lost.of("node-1", running("job-1", "job-2"), 0.0)) == (0, [])


def test_a_lost_claim_whose_job_is_reported_running_is_attached_again() -> None:
    registry = Registry()
    registry.ready()
    claim = registry.claim("job-1")
    registry.pass_time(46.0)
    done = registry.come_back(2, running_jobs=("job-1", "job-7"))
    assert [note.fields["job_id"] for note in notes(done, "claim_found_again")] == ["job-1"]
    found = registry.fleet.claim_of("job-1")
    assert found is not None
    assert (found.gpu_uuids, found.expires_at) == (claim.gpu_uuids, registry.now + 60.0)
    assert ("claim", "job-1") in registry.kept


def test_a_lost_claim_is_found_by_a_later_beat_too() -> None:
    registry = Registry()
    registry.ready()
    registry.claim("job-1")
    registry.pass_time(46.0)
    registry.come_back(2, running_jobs=())
    registry.beat(2, "node-1", running_jobs=("job-1",))
    assert registry.fleet.claim_of("job-1") is not None


def test_a_lost_claim_is_not_found_by_what_its_node_reported_before_it_was_lost() -> None:
    registry = Registry()
    registry.ready()
    registry.claim("job-1")
    registry.beat(running_jobs=("job-1",))
    registry.pass_time(46.0)
    assert not notes(registry.arrive(proof("node-1"), 2, "node-1"), "claim_found_again")
    assert not notes(registry.beat(2, "node-1", running_jobs=()), "claim_found_again")


def test_a_claim_lost_with_a_drained_node_waits_until_it_is_resumed_though_its_job_runs_on() -> None:
    registry = Registry()
    record = registry.ready()
    registry.claim("job-1")
    registry.drain(deadline_seconds=0.0)
    registry.pass_time(2.0)
    assert (record.status, record.connection, record.claims) == ("offline", 1, {})
    assert not notes(registry.beat(1, running_jobs=("job-1",)), "claim_found_again")
    registry.do(ResumeAsked(7, "node-1"))
    assert notes(registry.beat(1, running_jobs=("job-1",)), "claim_found_again")
    assert set(record.claims) == {"job-1"}


def test_a_lost_claim_that_was_claimed_elsewhere_stays_there() -> None:
    registry = Registry(claim_ttl_seconds=1000.0)
    registry.ready(1)
    assert registry.claim("job-1").node_id == "node-1"
    registry.pass_time(46.0)
    registry.ready(2)
    assert registry.claim("job-1").node_id == "node-2"
    registry.come_back(3, running_jobs=("job-1",))
    found = registry.fleet.claim_of("job-1")
    assert found is not None
    assert found.node_id == "node-2"


def test_a_lost_claim_that_was_claimed_elsewhere_is_not_found_again_even_after_it_ended_there() -> None:
    registry = Registry(claim_ttl_seconds=1000.0)
    registry.ready(1)
    registry.claim("job-1")
    registry.pass_time(46.0)
    registry.ready(2)
    registry.claim("job-1")
    registry.do(ReleaseAsked(7, "job-1"))
    registry.come_back(3, running_jobs=("job-1",))
    assert registry.fleet.claim_of("job-1") is None


def test_a_claim_lost_long_ago_is_not_found_again() -> None:
    registry = Registry()
    registry.ready()
    registry.claim("job-1")
    registry.pass_time(46.0 + 11 * 60.0)
    registry.come_back(2, running_jobs=("job-1",))
    assert registry.fleet.claim_of("job-1") is None


def test_a_lost_claim_may_be_released_and_is_not_found_again() -> None:
    registry = Registry(claim_ttl_seconds=1000.0)
    registry.ready()
    registry.claim("job-1")
    registry.pass_time(46.0)
    assert answer(registry.do(ReleaseAsked(7, "job-1"))) is None
    registry.come_back(2, running_jobs=("job-1",))
    assert registry.fleet.claim_of("job-1") is None


def test_a_lost_claim_cannot_be_given_back_before_its_loss_is_kept() -> None:
    """That it was lost may not be kept yet: a restart would bring the claim back."""
    registry = Registry()
    registry.ready()
    registry.claim("job-1")
    registry.store_fails = True
    registry.pass_time(50.0)
    assert ("claim", "job-1") in registry.kept
    assert isinstance(answer(registry.do(ReleaseAsked(7, "job-1"))), Refusal)
    registry.store_fails = False
    registry.pass_time(2.0)
    assert ("claim", "job-1") not in registry.kept


def test_giving_a_lost_claim_back_is_saved() -> None:
    registry = Registry()
    registry.ready()
    registry.claim("job-1")
    registry.pass_time(50.0)
    (save,) = of(Save, registry.do(ReleaseAsked(7, "job-1")))
    assert [change.key for change in save.changes] == ["job-1"]


def test_a_claim_whose_finding_could_not_be_saved_is_found_at_the_next_registration() -> None:
    registry = Registry()
    registry.ready()
    registry.claim("job-1")
    registry.pass_time(46.0)
    registry.store_fails = True
    registry.come_back(2, running_jobs=("job-1",))
    assert registry.fleet.claim_of("job-1") is None
    registry.store_fails = False
    registry.come_back(3, running_jobs=("job-1",))
    assert registry.fleet.claim_of("job-1") is not None


def test_a_claim_that_was_found_and_expires_stays_ended_though_its_job_runs_on() -> None:
    registry = Registry(claim_ttl_seconds=30.0)
    registry.ready()
    registry.claim("job-1")
    registry.do(GoodbyeArrived(1, NodeUnregister(node_id="node-1")))
    registry.come_back(2, running_jobs=("job-1",))
    assert registry.fleet.claim_of("job-1") is not None
    registry.pass_time(31.0)
    registry.beat(2, "node-1", running_jobs=("job-1",))
    assert registry.fleet.claim_of("job-1") is None


def test_nothing_is_found_again_of_a_node_whose_record_was_let_go() -> None:
    registry = Registry()
    registry.ready()
    registry.claim("job-1")
    registry.do(RemovalAsked(7, "node-1"))
    registry.do(ConnectionLost(1))
    registry.register(2, "node-1", running_jobs=("job-1",))
    assert registry.fleet.claim_of("job-1") is None
