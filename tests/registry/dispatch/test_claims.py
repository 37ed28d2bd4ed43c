from gpu_agent.registry.dispatch.claims import Claims
from gpu_agent.registry.job import Claim


def entry(job_id: str, expires_at: float) -> Claim:
    return Claim(
        job_id=job_id, node_id="node-A", gpu_uuids=(), endpoint=None, granted_at=0.0, expires_at=expires_at
    )


def test_claims_end_in_time_the_earliest_first() -> None:
    claims = Claims(60.0)
    for job_id, at in (("late", 90.0), ("early", 30.0), ("middle", 60.0)):
        claims.hold(entry(job_id, at))
    assert claims.next_expiry == 30.0
    assert [claim.job_id for claim in claims.end_due(60.0)] == ["early", "middle"]
    assert claims.next_expiry == 90.0
    assert claims.of("early") is None


def test_a_renewed_claim_ends_one_ttl_after_its_renewal() -> None:
    claims = Claims(60.0)
    claims.hold(entry("job-1", 60.0))
    renewed = claims.renew("job-1", 50.0)
    assert renewed is not None
    assert renewed.expires_at == claims.next_expiry == 110.0
    assert claims.end_due(60.0) == []
    assert claims.end_due(110.0) == [renewed]
    assert claims.next_expiry is None


def test_a_claim_that_ended_does_not_end_again() -> None:
    claims = Claims(60.0)
    claims.hold(entry("job-1", 60.0))
    assert claims.end("job-1") == entry("job-1", 60.0)
    assert claims.end("job-1") is None
    assert claims.next_expiry is None
    assert claims.end_due(1000.0) == []


def test_what_is_not_held_cannot_be_renewed() -> None:
    assert Claims(60.0).renew("job-1", 0.0) is None


def test_entering_the_same_end_twice_ends_a_claim_once() -> None:
    claims = Claims(60.0)
    claims.hold(entry("job-1", 60.0))
    claims.hold(entry("job-1", 60.0))
    assert len(claims.end_due(60.0)) == 1


def test_a_claim_renewed_over_and_over_takes_no_room_for_long() -> None:
    claims = Claims(86_400.0)
    claims.hold(entry("job-0", 10_500.0))
    claims.hold(entry("job-1", 86_400.0))
    for second in range(10_000):
        claims.renew("job-1", float(second))
    assert claims.entries < 100
    assert claims.next_expiry == 10_500.0
    assert [claim.job_id for claim in claims.end_due(1e6)] == ["job-0", "job-1"]


def test_of_many_claims_that_are_over_so_many_end_the_earliest_first() -> None:
    claims = Claims(60.0)
    for number in range(5):
        claims.hold(entry(f"job-{number}", 60.0 + number))
    assert [claim.job_id for claim in claims.end_due(100.0, 2)] == ["job-0", "job-1"]
    assert claims.next_expiry == 62.0
    assert len(claims.end_due(100.0)) == 3
