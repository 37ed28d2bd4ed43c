"""Claims as the fleet answers for them: requested, renewed, released, expired, lost with a node and attached again (§5).

Dispatch chooses the node; this module adds what must be stored, sent and logged. A lost claim is remembered for a
while, in case its job still runs.
"""

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from gpu_agent.registry.actions import Answer, Level, LogEvent
from gpu_agent.registry.dispatch.dispatch import Dispatch
from gpu_agent.registry.dispatch.refusals import Excluded, NoAvailableNode, RefusalCounters
from gpu_agent.registry.events import ClaimRequested, ReleaseRequested, RenewalRequested
from gpu_agent.registry.job import Claim, Job
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.settings import Thresholds
from gpu_agent.registry.step import Step
from gpu_agent.wire.codes import NodeStatus, ReasonCode

# Places for jobs, as the fleet answers for them: asked for, kept, lost with a node and found again (§5).
#
# Who gets which place is dispatch's; this adds what must be saved, told and logged.


CLAIM_NOT_FOUND = "CLAIM_NOT_FOUND"


class ClaimRequests:
    """Answers for every claim."""

    def __init__(self, thresholds: Thresholds, dispatch: Dispatch, *, debug: Callable[[], bool]) -> None:
        self._thresholds = thresholds
        self._dispatch = dispatch
        self._debug = debug
        self._lost = LostClaims(thresholds.claim_ttl_seconds)
        self.exclusions = RefusalCounters()

    def ask(self, event: ClaimRequested, step: Step) -> None:
        """Reserve a place for a job, or say why nobody has one."""
        job = event.job
        held = self._dispatch.claim_of(job.job_id)
        claim = self._dispatch.claim(job, step.now)
        if isinstance(claim, NoAvailableNode):
            self._note_failure(job, claim, step)
            step.answer(event.ref, claim)
            return
        step.answer(event.ref, claim)
        if held is None:
            step.change_claim(job.job_id)
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
        """Give a place back, lost ones too; returns the node that has it again."""
        lost = self._lost.drop(event.job_id, step.now)
        claim = self._dispatch.release(event.job_id)
        given_back = claim or lost
        if given_back is None:
            step.refuse(event.ref, CLAIM_NOT_FOUND, _not_found(event.job_id))
            return None
        if claim is not None:
            step.change_claim(event.job_id)
        step.answer(event.ref)
        step.log("claim_released", {"job_id": event.job_id, "node_id": given_back.node_id})
        return None if claim is None else claim.node_id

    def expire(self, step: Step, *, most: int | None = None, of_job: str | None = None) -> list[Claim]:
        """End claims whose time has passed, the earliest first and `most` of them, and return them.

        That of `of_job` is among them in any case.
        """
        ended = self._dispatch.expire(step.now, most=most, of_job=of_job)
        for claim in ended:
            self._lost.drop(claim.job_id, step.now)
            step.change_claim(claim.job_id)
            step.log("claim_expired", {"job_id": claim.job_id, "node_id": claim.node_id})
        return ended

    def lose(self, record: NodeRecord, step: Step) -> None:
        """Report a node's claims lost: it went offline."""
        for claim in self._dispatch.lose(record.node_id):
            self._lost.add(claim, step.now)
            step.change_claim(claim.job_id)
            note = claim_lost_event(claim, record.reason_code)
            step.log(note.event, note.fields, note.level)

    def attach_lost(self, record: NodeRecord, step: Step) -> None:
        """Attach again the lost claims whose jobs a node reports running, unless claimed elsewhere.

        A node that is offline holds none, even if its session is open after a drain.
        """
        if record.status is NodeStatus.OFFLINE:
            return
        expires_at = step.now + self._thresholds.claim_ttl_seconds
        for lost in self._lost.of(record.node_id, record.reported_job_ids or frozenset(), step.now):
            claim = replace(lost, expires_at=expires_at)
            if self._dispatch.claim_of(claim.job_id) is None and self._dispatch.attach(claim) is not None:
                self._lost.drop(claim.job_id, step.now)
                step.change_claim(claim.job_id)
                step.log("claim_reattached", {"job_id": claim.job_id, "node_id": record.node_id})

    def restore(self, claim: Claim) -> bool:
        """Hold a claim that was kept over a restart; False when its node is not known any more."""
        return self._dispatch.attach(claim) is not None

    def forget(self, node_id: str) -> None:
        """Give up what was lost with a node whose record is let go."""
        self._lost.forget(node_id)

    def _note_failure(self, job: Job, verdict: NoAvailableNode, step: Step) -> None:
        self.exclusions.failed(verdict, step.now)
        counts = {reason.value: count for reason, count in verdict.counts.items()}
        step.log("dispatch_failed", {"job_id": job.job_id, "counts": counts})
        for examples in verdict.examples.values():
            for one in examples:
                _note_exclusion(job, one, Level.INFO, step=step)
        if self._debug():
            for one in self._dispatch.explain(job, step.now).excluded:
                _note_exclusion(job, one, Level.DEBUG, step=step)


def claim_lost_event(claim: Claim, reason_code: ReasonCode) -> LogEvent:
    """Say that a claim ended with its node."""
    fields = {"job_id": claim.job_id, "node_id": claim.node_id, "reason_code": reason_code.value}
    return LogEvent("claim_lost", fields, Level.WARNING)


def _note_exclusion(job: Job, one: Excluded, level: Level, *, step: Step) -> None:
    fields = {"job_id": job.job_id, "node_id": one.node_id, "reason": one.reason.value}
    step.log("dispatch_candidate_excluded", {**fields, "need": one.need, "have": one.have}, level)


def _not_found(job_id: str) -> str:
    return (
        f"no claim is held for job {job_id!r}: it was never made, has expired, or was lost with its node; "
        "claim a place anew"
    )


# Claims that were lost with their nodes, for as long as their jobs may turn out to be running (§5).
#
# Remembers each for a while, and of one node only so many; one that was found stays until its job
# gives its place back, should finding it have to be undone. Holds no place and attaches none.


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
