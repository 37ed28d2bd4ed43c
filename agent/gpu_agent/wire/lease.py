"""A claim's life as its holder counts it (node protocol §5.3): from the moment a request was sent.

The registry counts from the moment at which it reads the request, which is later. So a holder that stops
here never acts on a claim that the registry has given to another job. Times are monotonic seconds.
"""

from dataclasses import dataclass
from typing import Self

from gpu_agent.wire.api import ClaimView

RENEWALS_IN_A_TTL = 3
"""One renewal may fail, and a second one too, before the claim expires."""


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
