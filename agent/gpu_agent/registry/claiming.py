"""Places for jobs, as the fleet answers for them: asked for, kept, lost with a node and found again (§5).

Who gets which place is dispatch's; this adds what must be saved, told and logged.
"""

from collections.abc import Callable
from dataclasses import replace

from gpu_agent.registry.actions import Kept, Level, Note
from gpu_agent.registry.dispatch.dispatch import Dispatch
from gpu_agent.registry.dispatch.exclusions import Exclusions
from gpu_agent.registry.dispatch.verdict import Excluded, NoAvailableNode
from gpu_agent.registry.events import ClaimAsked, ReleaseAsked, RenewalAsked
from gpu_agent.registry.job import Claim, Job
from gpu_agent.registry.lost import LostClaims
from gpu_agent.registry.record import NodeRecord
from gpu_agent.registry.step import Step
from gpu_agent.registry.thresholds import Thresholds
from gpu_agent.wire.codes import NodeStatus, ReasonCode

CLAIM_NOT_FOUND = "CLAIM_NOT_FOUND"


class Claiming:
    """Answers for every claim."""

    def __init__(self, thresholds: Thresholds, dispatch: Dispatch, *, debug: Callable[[], bool]) -> None:
        self._thresholds = thresholds
        self._dispatch = dispatch
        self._debug = debug
        self._lost = LostClaims(thresholds.claim_ttl_seconds)
        self.exclusions = Exclusions()

    def ask(self, event: ClaimAsked, step: Step) -> None:
        """Reserve a place for a job, or say why nobody has one."""
        job = event.job
        held = self._dispatch.claim_of(job.job_id)
        claim = self._dispatch.claim(job, step.now)
        if isinstance(claim, NoAvailableNode):
            self._note_failure(job, claim, step)
            step.answer(event.ref, claim)
            return
        self._ask_to_keep(event.ref, job.job_id, before=held, step=step)
        step.answer(event.ref, claim)
        if held is None:
            step.note(
                "job_assigned",
                {
                    "job_id": job.job_id,
                    "node_id": claim.node_id,
                    "required_models": list(job.required_models),
                },
            )

    def renew(self, event: RenewalAsked, step: Step) -> None:
        """Keep a claim for one more TTL."""
        held = self._dispatch.claim_of(event.job_id)
        claim = self._dispatch.renew(event.job_id, step.now)
        if claim is None:
            step.refuse(event.ref, CLAIM_NOT_FOUND, _not_found(event.job_id))
            return
        self._ask_to_keep(event.ref, event.job_id, before=held, step=step)
        step.answer(event.ref, claim)

    def release(self, event: ReleaseAsked, step: Step) -> str | None:
        """Give a place back, lost ones too; returns the node that has it again."""
        lost = self._lost.drop(event.job_id, step.now)
        claim = self._dispatch.release(event.job_id)
        given_back = claim or lost
        if given_back is None:
            step.refuse(event.ref, CLAIM_NOT_FOUND, _not_found(event.job_id))
            return None
        # That a claim was lost may not be kept yet; that it was given back must be.
        self._ask_to_keep(event.ref, event.job_id, before=claim, step=step)
        step.answer(event.ref)
        step.note("claim_released", {"job_id": event.job_id, "node_id": given_back.node_id})
        return None if claim is None else claim.node_id

    def expire(self, step: Step, *, most: int | None = None, of_job: str | None = None) -> list[Claim]:
        """End claims whose time has passed, the earliest first and `most` of them, and return them.

        That of `of_job` is among them in any case.
        """
        ended = self._dispatch.expire(step.now, most=most, of_job=of_job)
        for claim in ended:
            self._lost.drop(claim.job_id, step.now)
            step.keep_claim(claim.job_id)
            step.note("claim_expired", {"job_id": claim.job_id, "node_id": claim.node_id})
            step.stands[Kept.CLAIM, claim.job_id] = step.notes[-1]
        return ended

    def lose(self, record: NodeRecord, step: Step) -> None:
        """Report a node's claims lost: it went offline."""
        for claim in self._dispatch.lose(record.node_id):
            self._lost.add(claim, step.now)
            step.keep_claim(claim.job_id)
            step.before[(Kept.CLAIM, claim.job_id)] = claim
            note = lost_note(claim, record.reason_code)
            step.note(note.event, note.fields, note.level)

    def find_again(self, record: NodeRecord, step: Step) -> None:
        """Attach again the lost claims whose jobs a node reports running, unless claimed elsewhere.

        A node that is offline holds none, even if its session is open after a drain.
        """
        if record.status is NodeStatus.OFFLINE:
            return
        expires_at = step.now + self._thresholds.claim_ttl_seconds
        for lost in self._lost.of(record.node_id, record.reported_job_ids or frozenset(), step.now):
            claim = replace(lost, expires_at=expires_at)
            if self._dispatch.claim_of(claim.job_id) is None and self._dispatch.attach(claim) is not None:
                step.keep_claim(claim.job_id)
                step.before[(Kept.CLAIM, claim.job_id)] = None
                step.note("claim_found_again", {"job_id": claim.job_id, "node_id": record.node_id})

    def restore(self, claim: Claim) -> bool:
        """Hold a claim that was kept over a restart; False when its node is not known any more."""
        return self._dispatch.attach(claim) is not None

    def disown(self, claim: Claim) -> None:
        """Forget that a claim was lost which nobody was ever told of."""
        self._lost.disown(claim)

    def forget(self, node_id: str) -> None:
        """Give up what was lost with a node whose record is let go."""
        self._lost.forget(node_id)

    def _ask_to_keep(self, ref: int, job_id: str, *, before: Claim | None, step: Step) -> None:
        step.keep_claim(job_id)
        step.before[(Kept.CLAIM, job_id)] = before
        step.refuse_unsaved(ref)

    def _note_failure(self, job: Job, verdict: NoAvailableNode, step: Step) -> None:
        self.exclusions.failed(verdict, step.now)
        counts = {reason.value: count for reason, count in verdict.counts.items()}
        step.note("dispatch_failed", {"job_id": job.job_id, "counts": counts})
        for examples in verdict.examples.values():
            for one in examples:
                _note_exclusion(job, one, Level.INFO, step=step)
        if self._debug():
            for one in self._dispatch.explain(job, step.now).excluded:
                _note_exclusion(job, one, Level.DEBUG, step=step)


def lost_note(claim: Claim, reason_code: ReasonCode) -> Note:
    """Say that a claim ended with its node."""
    fields = {"job_id": claim.job_id, "node_id": claim.node_id, "reason_code": reason_code.value}
    return Note("claim_lost", fields, Level.WARNING)


def _note_exclusion(job: Job, one: Excluded, level: Level, *, step: Step) -> None:
    fields = {"job_id": job.job_id, "node_id": one.node_id, "reason": one.reason.value}
    step.note("dispatch_candidate_excluded", {**fields, "need": one.need, "have": one.have}, level)


def _not_found(job_id: str) -> str:
    return (
        f"no claim is held for job {job_id!r}: it was never made, has expired, or was lost with its node; "
        "claim a place anew"
    )
