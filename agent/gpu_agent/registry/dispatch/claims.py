"""Who holds which place: the book of claims, their ends in time, and those lost with their node.

Chooses no node and no GPU. A claim that is renewed leaves its old entry in the heap; it is passed over there.
"""

import heapq
from collections.abc import Iterable
from dataclasses import replace

from gpu_agent.registry.job import Claim


class Claims:
    """All claims by job, and what was lost until it is claimed again, found again or forgotten."""

    def __init__(self, ttl_seconds: float) -> None:
        self._ttl = ttl_seconds
        self._held: dict[str, Claim] = {}
        self._ends: list[tuple[float, str]] = []
        self._lost: dict[str, Claim] = {}
        self._lost_on: dict[str, set[str]] = {}

    @property
    def next_expiry(self) -> float | None:
        """When the next claim ends unless renewed (monotonic seconds)."""
        ends = self._ends
        while ends and not self._is_end(*ends[0]):
            heapq.heappop(ends)
        return ends[0][0] if ends else None

    def of(self, job_id: str) -> Claim | None:
        """Return the claim that a job holds."""
        return self._held.get(job_id)

    def hold(self, claim: Claim, now: float) -> Claim:
        """Enter a claim with one TTL from now; a lost one of the same job is settled by it."""
        self._find(claim.job_id)
        return self._enter(claim, now)

    def renew(self, job_id: str, now: float) -> Claim | None:
        """Give a claim one more TTL from now."""
        held = self._held.get(job_id)
        return None if held is None else self._enter(held, now)

    def end(self, job_id: str) -> Claim | None:
        """Strike a claim out, held or lost; return it if it was held."""
        self._find(job_id)
        return self._held.pop(job_id, None)

    def due(self, now: float) -> list[Claim]:
        """Return the claims whose time is over, the earliest first; `end` strikes them out."""
        over: dict[str, Claim] = {}
        while self._ends and self._ends[0][0] <= now:
            at, job_id = heapq.heappop(self._ends)
            if self._is_end(at, job_id):
                over[job_id] = self._held[job_id]
        return list(over.values())

    def lose(self, job_ids: Iterable[str]) -> list[Claim]:
        """Strike claims out and remember them as lost."""
        lost = []
        for job_id in job_ids:
            claim = self._held.pop(job_id, None)
            if claim is not None:
                lost.append(claim)
                self._lost[job_id] = claim
                self._lost_on.setdefault(claim.node_id, set()).add(job_id)
        return lost

    def found(self, node_id: str, running: frozenset[str]) -> list[Claim]:
        """Return what was lost with a node and runs there again; `hold` settles it."""
        lost = self._lost_on.get(node_id)
        return [self._lost[job_id] for job_id in sorted(lost & running)] if lost else []

    def forget(self, node_id: str) -> None:
        """Forget what was lost with a node."""
        for job_id in self._lost_on.pop(node_id, ()):
            del self._lost[job_id]

    def _enter(self, claim: Claim, now: float) -> Claim:
        entered = replace(claim, expires_at=now + self._ttl)
        self._held[claim.job_id] = entered
        heapq.heappush(self._ends, (entered.expires_at, claim.job_id))
        return entered

    def _is_end(self, at: float, job_id: str) -> bool:
        held = self._held.get(job_id)
        return held is not None and held.expires_at == at

    def _find(self, job_id: str) -> None:
        claim = self._lost.pop(job_id, None)
        if claim is None:
            return
        beside = self._lost_on[claim.node_id]
        beside.remove(job_id)
        if not beside:
            del self._lost_on[claim.node_id]
