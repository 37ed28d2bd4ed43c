"""Claims that were lost with their nodes, for as long as their jobs may turn out to be running (§5).

Remembers each for a while, and of one node only so many; one that was found stays until its job
gives its place back, should finding it have to be undone. Holds no place and attaches none.
"""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from gpu_agent.registry.job import Claim

REMEMBERED_TTLS = 10
"""A claim ends after one TTL that nobody renews. A node may need longer than that to fall silent, be given
up and come back, and its job is worth finding again; after ten its scheduler has long looked elsewhere."""

LOST_PER_NODE = 1024
"""Beyond so many of one node the one lost longest ago is forgotten."""


@dataclass(frozen=True, slots=True)
class _Lost:
    claim: Claim
    at: float


class LostClaims:
    """What was lost, the earliest first. A job was lost at most once, with the node that had it last."""

    def __init__(self, claim_ttl_seconds: float) -> None:
        self._kept_seconds = REMEMBERED_TTLS * claim_ttl_seconds
        self._by_job: dict[str, _Lost] = {}
        self._of_node: dict[str, dict[str, None]] = {}

    def __len__(self) -> int:
        return len(self._by_job)

    def add(self, claim: Claim, now: float) -> None:
        """Remember a claim from now on."""
        self._forget_old(now)
        self.drop(claim.job_id, now)
        self._by_job[claim.job_id] = _Lost(claim, now)
        jobs = self._of_node.setdefault(claim.node_id, {})
        jobs[claim.job_id] = None
        if len(jobs) > LOST_PER_NODE:
            self.drop(next(iter(jobs)), now)

    def of(self, node_id: str, running: AbstractSet[str], now: float) -> list[Claim]:
        """Return a node's claims whose jobs are running, by their job's id."""
        jobs = self._of_node.get(node_id)
        if not jobs:
            return []
        lost = [self._by_job[job_id] for job_id in sorted(jobs.keys() & running)]
        return [one.claim for one in lost if self._is_remembered(one, now)]

    def drop(self, job_id: str, now: float) -> Claim | None:
        """Forget a job's claim; None when none is remembered any more."""
        lost = self._by_job.pop(job_id, None)
        if lost is None:
            return None
        jobs = self._of_node[lost.claim.node_id]
        del jobs[job_id]
        if not jobs:
            del self._of_node[lost.claim.node_id]
        return lost.claim if self._is_remembered(lost, now) else None

    def disown(self, claim: Claim) -> None:
        """Forget exactly this claim, not another one of its job."""
        lost = self._by_job.get(claim.job_id)
        if lost is not None and lost.claim == claim:
            self.drop(claim.job_id, lost.at)

    def forget(self, node_id: str) -> None:
        """Forget whatever was lost with a node whose record is let go."""
        for job_id in self._of_node.pop(node_id, ()):
            del self._by_job[job_id]

    def _forget_old(self, now: float) -> None:
        while self._by_job:
            job_id, lost = next(iter(self._by_job.items()))
            if self._is_remembered(lost, now):
                return
            self.drop(job_id, now)

    def _is_remembered(self, lost: _Lost, now: float) -> bool:
        return now - lost.at <= self._kept_seconds
