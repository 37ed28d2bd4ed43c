"""A claim's life as its holder counts it (node protocol §5.3): from the moment a request was sent.

The registry counts from the moment at which it reads the request, which is later. So a holder that stops
here never acts on a claim that the registry has given to another job. Times are monotonic seconds.

Holders differ in how they send: `gpu_agent.client` uses httpx, the command line needs no extra. What they
decide by is here, once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

from gpu_agent.wire.api import ClaimView

RENEWALS_IN_A_TTL = 3
"""One renewal may fail, and a second one too, before the claim expires."""

END_EVENTS: Mapping[str, tuple[str, str]] = {
    "claim_lost": ("CLAIM_LOST", "its node went offline, and the claim was lost with it"),
    "claim_expired": ("CLAIM_EXPIRED", "no renewal reached the registry in time"),
    "claim_released": ("CLAIM_RELEASED", "it was released"),
}
"""What the registry's events say of the end of a claim: a code for programs, and a sentence."""

END_CODES = frozenset({"CLAIM_NOT_FOUND", "CLAIM_SUPERSEDED", "NOT_CLAIM_OWNER"})
"""With these a renewal or a release is refused for good: the claim has ended, or is another owner's."""

_EARLY_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Lease:
    """When to renew a claim, and until when it is surely held."""

    renew_at: float
    expires_at: float

    @classmethod
    def of(cls, claim: ClaimView, *, sent_at: float) -> Self:
        """Count from the sending of the request that this claim answers."""
        left = min(claim.expires_in_seconds, claim.ttl_seconds)
        return cls(
            renew_at=sent_at + min(claim.ttl_seconds / RENEWALS_IN_A_TTL, left),
            expires_at=sent_at + left,
        )

    def has_expired(self, now: float) -> bool:
        """Whether the claim may have expired by now, for all that its holder knows."""
        return now >= self.expires_at

    def refused(self, claim: ClaimView, *, sent_at: float) -> Self:
        """Go on after a renewal that was refused for good: a lost claim may be attached again."""
        return replace(self, renew_at=sent_at + claim.ttl_seconds / RENEWALS_IN_A_TTL)


def is_worth_asking_again(*, wait_seconds: float, waited_seconds: float) -> bool:
    """Whether a job that found no node may still find one.

    No node, long before its wait is over, means that no node could ever take it.
    """
    return waited_seconds >= wait_seconds - _EARLY_SECONDS
