from gpu_agent.registry.job import Claim
from gpu_agent.registry.lost import LOST_PER_NODE, REMEMBERED_TTLS, LostClaims

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
