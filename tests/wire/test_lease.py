"""How the holder of a claim counts its life."""

from gpu_agent.wire.api import ClaimView
from gpu_agent.wire.lease import Lease


def claim(*, ttl_seconds: float, expires_in_seconds: float) -> ClaimView:
    return ClaimView(
        claim_id="c",
        job_id="j",
        state="active",
        owner=None,
        nodes=(),
        granted_at=0,
        expires_at=0,
        expires_in_seconds=expires_in_seconds,
        ttl_seconds=ttl_seconds,
    )


def test_a_claim_is_renewed_at_a_third_of_its_ttl_counted_from_the_sending_of_the_request() -> None:
    lease = Lease.of(claim(ttl_seconds=60, expires_in_seconds=60), sent_at=1000)
    assert (lease.renew_at, lease.expires_at) == (1020, 1060)


def test_a_claim_that_has_less_left_than_a_third_is_renewed_before_it_expires() -> None:
    lease = Lease.of(claim(ttl_seconds=60, expires_in_seconds=5), sent_at=1000)
    assert (lease.renew_at, lease.expires_at) == (1005, 1005)


def test_a_claim_expires_for_its_holder_no_later_than_for_the_registry() -> None:
    lease = Lease.of(claim(ttl_seconds=60, expires_in_seconds=60), sent_at=1000)
    assert not lease.has_expired(1059.9)
    assert lease.has_expired(1060)
