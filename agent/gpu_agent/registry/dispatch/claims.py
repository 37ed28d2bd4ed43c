"""The book of claims: who holds which place, and when each ends unless renewed.

Chooses no node and no GPU, touches no record. A claim that is renewed leaves its old entry in the heap,
where it is passed over.
"""

import heapq
from dataclasses import replace

from gpu_agent.registry.job import Claim

_FEW = 64
"""So many entries that are passed over are no reason to tidy up."""


class Claims:
    """All claims by job, and their ends in order."""

    def __init__(self, ttl_seconds: float) -> None:
        self._ttl = ttl_seconds
        self._held: dict[str, Claim] = {}
        self._ends: list[tuple[float, str]] = []

    @property
    def next_expiry(self) -> float | None:
        """When the next claim ends unless renewed (monotonic seconds)."""
        ends = self._ends
        while ends and not self._is_end(*ends[0]):
            heapq.heappop(ends)
        return ends[0][0] if ends else None

    @property
    def entries(self) -> int:
        """How many ends are kept, with those that renewals have moved and that will be passed over."""
        return len(self._ends)

    def all(self) -> list[Claim]:
        """Return every claim that is held, in no order."""
        return list(self._held.values())

    def of(self, job_id: str) -> Claim | None:
        """Return the claim that a job holds."""
        return self._held.get(job_id)

    def hold(self, claim: Claim) -> None:
        """Enter a claim as it stands."""
        self._held[claim.job_id] = claim
        heapq.heappush(self._ends, (claim.expires_at, claim.job_id))
        if len(self._ends) > 2 * len(self._held) + _FEW:
            self._ends = [(one.expires_at, job_id) for job_id, one in self._held.items()]
            heapq.heapify(self._ends)

    def end_after(self, now: float) -> float:
        """Return when a claim granted or renewed now ends."""
        return now + self._ttl

    def renew(self, job_id: str, now: float) -> Claim | None:
        """Give a claim one more TTL from now; None when it is not held."""
        held = self._held.get(job_id)
        if held is None:
            return None
        renewed = replace(held, expires_at=self.end_after(now))
        self.hold(renewed)
        return renewed

    def end(self, job_id: str) -> Claim | None:
        """Strike a claim out; None when it is not held."""
        return self._held.pop(job_id, None)

    def end_due(self, now: float, most: int | None = None) -> list[Claim]:
        """Strike out claims whose time is over, the earliest first, and at most so many."""
        over: list[Claim] = []
        while self._ends and self._ends[0][0] <= now and len(over) != most:
            at, job_id = heapq.heappop(self._ends)
            if self._is_end(at, job_id):
                over.append(self._held.pop(job_id))
        return over

    def _is_end(self, at: float, job_id: str) -> bool:
        held = self._held.get(job_id)
        return held is not None and held.expires_at == at
