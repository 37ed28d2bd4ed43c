"""Claims: requested, renewed, released, expired, lost with a node and attached again (§5).

Dispatch chooses the node; this module adds what is stored, sent and logged. A lost claim is remembered for a
while, in case its job still runs.
"""

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from gpu_agent.registry.actions import Answer, Level, Step
from gpu_agent.registry.dispatch.dispatch import Dispatch
from gpu_agent.registry.dispatch.exclusions import Excluded, ExclusionCounters, NoAvailableNode
from gpu_agent.registry.events import ClaimRequested, ReleaseRequested, RenewalRequested
from gpu_agent.registry.job import Claim, Job
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.codes import NodeStatus

CLAIM_NOT_FOUND = "CLAIM_NOT_FOUND"

REMEMBERED_TTLS = 10
"""A claim ends after one TTL without a renewal.

A node may need longer than that to fall silent, time out and come back, and its job is worth finding; after
ten its scheduler has placed the job elsewhere.
"""

LOST_PER_NODE = 1024
"""Beyond so many of one node the one lost longest ago is forgotten."""


class ClaimRequests:
    """Answers for every claim."""

    def __init__(self, thresholds: Thresholds, dispatch: Dispatch, *, debug: Callable[[], bool]) -> None:
        self._thresholds = thresholds
        self._dispatch = dispatch
        self._debug = debug
        self._lost = LostClaims(thresholds.claim_ttl_seconds)
        self.exclusions = ExclusionCounters()

    def claim(self, event: ClaimRequested, step: Step) -> None:
        """Reserve a slot for a job, or say why no node has one."""
        job = event.job
        held = self._dispatch.claim_of(job.job_id)
        claim = self._dispatch.claim(job, step.now)
        if isinstance(claim, NoAvailableNode):
            self._log_refusal(job, claim, step)
            step.answer(event.ref, claim)
            return
        step.answer(event.ref, claim)
        if held is None:
            step.change_claim(job.job_id, claim.node_id)
            step.log(
                "job_assigned",
                {
                    "job_id": job.job_id,
                    "node_id": claim.node_id,
                    "required_models": list(job.required_models),
                },
            )

    def renew(self, event: RenewalRequested, step: Step, *, stored: bool) -> None:
        """Give a claim one more TTL; answered at once where the claim is `stored`.

        A renewal itself is not stored: every restart of the registry gives each claim one fresh TTL.
        """
        claim = self._dispatch.renew(event.job_id, step.now)
        if claim is None:
            step.refuse(event.ref, CLAIM_NOT_FOUND, _not_found(event.job_id))
        elif stored:
            step.immediate.append(Answer(event.ref, claim))
        else:
            step.answer(event.ref, claim)

    def release(self, event: ReleaseRequested, step: Step) -> str | None:
        """End a claim, a lost one too; returns the node whose slot is free again."""
        lost = self._lost.remove(event.job_id, step.now)
        claim = self._dispatch.release(event.job_id)
        released = claim or lost
        if released is None:
            step.refuse(event.ref, CLAIM_NOT_FOUND, _not_found(event.job_id))
            return None
        if claim is not None:
            step.change_claim(event.job_id, claim.node_id)
        step.answer(event.ref)
        step.log("claim_released", {"job_id": event.job_id, "node_id": released.node_id})
        return None if claim is None else claim.node_id

    def expire(self, step: Step, *, most: int | None = None, of_job: str | None = None) -> list[Claim]:
        """End claims whose time is over, at most `most` and in any case that of `of_job`; returns them."""
        ended = self._dispatch.expire(step.now, most=most, of_job=of_job)
        for claim in ended:
            self._lost.remove(claim.job_id, step.now)
            step.change_claim(claim.job_id, claim.node_id)
            step.log("claim_expired", {"job_id": claim.job_id, "node_id": claim.node_id})
        return ended

    def lose(self, record: NodeRecord, step: Step) -> None:
        """End a node's claims as lost: it went offline."""
        for claim in self._dispatch.lose(record.node_id):
            self._lost.add(claim, step.now)
            step.change_claim(claim.job_id, claim.node_id)
            fields = {
                "job_id": claim.job_id,
                "node_id": claim.node_id,
                "reason_code": record.reason_code.value,
            }
            step.log("claim_lost", fields, Level.WARNING)

    def attach_lost(self, record: NodeRecord, step: Step) -> None:
        """Attach again the lost claims whose jobs a node reports, unless they are claimed elsewhere.

        A node that is offline holds none, even if its session is open after a drain.
        """
        if record.status is NodeStatus.OFFLINE:
            return
        expires_at = step.now + self._thresholds.claim_ttl_seconds
        for lost in self._lost.of(record.node_id, record.jobs.ids or frozenset(), step.now):
            claim = replace(lost, expires_at=expires_at)
            if self._dispatch.claim_of(claim.job_id) is None and self._dispatch.attach(claim) is not None:
                self._lost.remove(claim.job_id, step.now)
                step.change_claim(claim.job_id, claim.node_id)
                step.log("claim_reattached", {"job_id": claim.job_id, "node_id": record.node_id})

    def remove_node(self, node_id: str) -> None:
        """Forget what was lost with a node whose record is removed."""
        self._lost.remove_node(node_id)

    def _log_refusal(self, job: Job, refusal: NoAvailableNode, step: Step) -> None:
        self.exclusions.count(refusal, step.now)
        counts = {reason.value: count for reason, count in refusal.counts.items()}
        step.log("dispatch_failed", {"job_id": job.job_id, "counts": counts})
        for examples in refusal.examples.values():
            for one in examples:
                _log_exclusion(job, one, Level.INFO, step=step)
        if self._debug():
            for one in self._dispatch.explain(job, step.now).excluded:
                _log_exclusion(job, one, Level.DEBUG, step=step)


class LostClaims:
    """Claims that were lost with their nodes, the earliest first; a job loses at most one."""

    def __init__(self, claim_ttl_seconds: float) -> None:
        self._remembered_seconds = REMEMBERED_TTLS * claim_ttl_seconds
        self._by_job: dict[str, _Lost] = {}
        self._of_node: dict[str, dict[str, None]] = {}

    def __len__(self) -> int:
        return len(self._by_job)

    def add(self, claim: Claim, now: float) -> None:
        """Remember a claim from now on."""
        self._remove_old(now)
        self.remove(claim.job_id, now)
        self._by_job[claim.job_id] = _Lost(claim, now)
        jobs = self._of_node.setdefault(claim.node_id, {})
        jobs[claim.job_id] = None
        if len(jobs) > LOST_PER_NODE:
            self.remove(next(iter(jobs)), now)

    def of(self, node_id: str, running: AbstractSet[str], now: float) -> list[Claim]:
        """Return a node's claims whose jobs are running, by their job's id."""
        jobs = self._of_node.get(node_id)
        if not jobs:
            return []
        lost = [self._by_job[job_id] for job_id in sorted(jobs.keys() & running)]
        return [one.claim for one in lost if self._is_remembered(one, now)]

    def remove(self, job_id: str, now: float) -> Claim | None:
        """Forget a job's claim; returns None when none is remembered any more."""
        lost = self._by_job.pop(job_id, None)
        if lost is None:
            return None
        jobs = self._of_node[lost.claim.node_id]
        del jobs[job_id]
        if not jobs:
            del self._of_node[lost.claim.node_id]
        return lost.claim if self._is_remembered(lost, now) else None

    def remove_node(self, node_id: str) -> None:
        """Forget what was lost with a node whose record is removed."""
        for job_id in self._of_node.pop(node_id, ()):
            del self._by_job[job_id]

    def _remove_old(self, now: float) -> None:
        while self._by_job:
            job_id, lost = next(iter(self._by_job.items()))
            if self._is_remembered(lost, now):
                return
            self.remove(job_id, now)

    def _is_remembered(self, lost: "_Lost", now: float) -> bool:
        return now - lost.at <= self._remembered_seconds


@dataclass(frozen=True, slots=True)
class _Lost:
    claim: Claim
    at: float


def _log_exclusion(job: Job, one: Excluded, level: Level, *, step: Step) -> None:
    fields = {"job_id": job.job_id, "node_id": one.node_id, "reason": one.reason.value}
    step.log("dispatch_candidate_excluded", {**fields, "need": one.need, "have": one.have}, level)


def _not_found(job_id: str) -> str:
    return (
        f"no claim is held for job {job_id!r}: it was never made, has expired, or was lost with its node; "
        "claim a slot again"
    )
