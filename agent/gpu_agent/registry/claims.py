"""Claims: requested, renewed, released, expired, lost with a node, held after their end (§5.3).

Dispatch chooses the nodes; this module adds who may do what, and what is stored, sent and logged. The end of
a claim is not the end of its job: after an expiry or a loss its GPUs stay held until the node shows that the
job is gone.
"""

from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter

from gpu_agent.registry.actions import Answer, Level, Refusal, Step, said_by_operator
from gpu_agent.registry.claim_history import ClaimHistory
from gpu_agent.registry.claim_telemetry import ClaimTelemetry
from gpu_agent.registry.dispatch.dispatch import Dispatch
from gpu_agent.registry.dispatch.exclusions import Excluded, ExclusionCounters, NoAvailableNode
from gpu_agent.registry.dispatch.gpu_allocation import reading_at
from gpu_agent.registry.events import (
    ClaimRequested,
    ClaimWaitEnded,
    ReleaseRequested,
    RenewalRequested,
    Requester,
)
from gpu_agent.registry.job import (
    LARGEST_CLAIM_BYTES,
    LARGEST_JOB_BYTES,
    Claim,
    ClaimEnd,
    HeldGrant,
    Job,
    demands_of,
    size_of,
)
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.queue import ClaimQueue, Waiting
from gpu_agent.registry.quoting import clip_quote, clip_sentence
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.codes import ErrorCode, NodeStatus

CLAIM_NOT_FOUND = "CLAIM_NOT_FOUND"
CLAIM_SUPERSEDED = "CLAIM_SUPERSEDED"
JOB_ID_IN_USE = "JOB_ID_IN_USE"
NOT_CLAIM_OWNER = "NOT_CLAIM_OWNER"
QUEUE_FULL = "QUEUE_FULL"

SETTLED_SECONDS = 10.0
"""A node reports its jobs reliably only after so long in a session (§5.3)."""


class ClaimRequests:
    """Answers for every claim, and for every job that waits for one."""

    def __init__(self, thresholds: Thresholds, dispatch: Dispatch, *, debug: Callable[[], bool]) -> None:
        self._thresholds = thresholds
        self._dispatch = dispatch
        self._debug = debug
        self.exclusions = ExclusionCounters()
        self.history = ClaimHistory()
        self.telemetry = ClaimTelemetry(thresholds, self.history, dispatch.changed_nodes)
        self.queue = ClaimQueue(thresholds, dispatch)

    # Requests

    def claim(self, event: ClaimRequested, step: Step) -> None:
        """Reserve slots for a job, let it wait, or say why no node has one."""
        job = event.job
        if size_of(job) > LARGEST_JOB_BYTES:
            problem = f"the job's names take more than {LARGEST_JOB_BYTES} bytes: name fewer nodes and models"
            step.refuse(event.ref, ErrorCode.INVALID_MESSAGE, problem)
            return
        current, waiting = self._dispatch.claim_of(job.job_id), self.queue.of(job.job_id)
        if current is not None or waiting is not None:
            refusal = _other_job(event, current or waiting)
            if refusal is not None:
                step.refuse(event.ref, JOB_ID_IN_USE, refusal)
                return
        if current is not None:
            self._renew(event.ref, current, step, ttl_seconds=job.ttl_seconds)
            return
        self.offer(step)
        if waiting is None or self._dispatch.claim_of(job.job_id) is None:
            self._place_or_wait(event, waiting, step)
        else:  # the queue has just placed it
            step.answer(event.ref, self._dispatch.claim_of(job.job_id))

    def end_wait(self, event: ClaimWaitEnded, step: Step) -> None:
        """Wait no more for the answer to a request that was closed."""
        self.queue.close(event.ref, step.now)

    def renew(self, event: RenewalRequested, step: Step, *, stored: bool) -> None:
        """Give a claim one more TTL; answered at once where the claim is `stored`.

        A renewal itself is not stored unless it changes the TTL: every restart of the registry gives each
        claim one fresh TTL of its own.
        """
        current = self._current(event, step)
        if current is not None:
            self._renew(event.ref, current, step, ttl_seconds=event.ttl_seconds, stored=stored)

    def release(self, event: ReleaseRequested, step: Step) -> tuple[str, ...]:
        """End a claim because its job has ended; returns the nodes whose slots are free again."""
        named = [one for one in self._dispatch.held_of(event.job_id) if one.claim.claim_id == event.claim_id]
        if named:
            if not _may(event.requester, named[0].claim):
                step.refuse(event.ref, NOT_CLAIM_OWNER, _not_owner(event.job_id))
                return ()
            for one in named:
                self._drop_held(one, "released", step)
            step.answer(event.ref)
            return tuple(one.node_id for one in named)
        current = self._current(event, step)
        if current is None:
            return ()
        said = said_by_operator(event.reason, event.requester.name or "")
        self._end(current, ClaimEnd.RELEASED, step, **said)
        step.answer(event.ref)
        return tuple(grant.node_id for grant in current.grants)

    # The queue

    def offer(self, step: Step) -> None:
        """Offer what became free to the jobs that wait, in their order (§5.4)."""
        cause, step.trace_id = step.trace_id, None  # no request is the cause of what others get
        for waiting in self.queue.to_try():
            self._try_again(waiting, step)
        step.trace_id = cause

    def wake_queue(self, step: Step) -> None:
        """End waits whose time is over, offer what became free, and keep what the first job waits for."""
        self.offer(step)
        for waiting in self.queue.overdue(step.now):
            refusal = self._try_again(waiting, step)
            if refusal is not None:
                for ref in self.queue.close_overdue(waiting, step.now):
                    self._refuse(ref, waiting.job, refusal, step=step)
        self.queue.update_reservation(step.now)

    def refuse_waiting(self, step: Step, refusal: Refusal) -> None:
        """Refuse every request that waits in the queue, because the store fails (§4)."""
        step.immediate.extend(Answer(ref, refusal) for ref in self.queue.close_all(step.now))

    # What time and nodes do to claims

    def expire(self, step: Step, *, most: int | None = None, of_job: str | None = None) -> list[Claim]:
        """End claims whose time is over, at most `most` and in any case that of `of_job`; returns them."""
        ended = self._dispatch.due(step.now, most=most, of_job=of_job)
        for claim in ended:
            self._end(claim, ClaimEnd.EXPIRED, step)
        return ended

    def lose(self, record: NodeRecord, step: Step) -> list[Claim]:
        """End a node's claims as lost, because it went offline: those on several nodes as a whole."""
        lost = self._dispatch.claims_on(record.node_id)
        for claim in lost:
            self._end(claim, ClaimEnd.LOST, step, reason_code=record.reason_code.value)
        return lost

    def review(self, record: NodeRecord, step: Step, *, passed_seconds: float) -> None:
        """Compare what claims hold on a node with what its heartbeat shows."""
        self._review_held(record, step, passed_seconds=passed_seconds)
        self._report_foreign_jobs(record, step)
        self._report_unusable_gpus(record, step)

    def _review_held(self, record: NodeRecord, step: Step, *, passed_seconds: float) -> None:
        """Let held GPUs go that a heartbeat shows to be free, and attach lost claims whose jobs run (§5.3).

        A node that is offline holds no claim, even if its session is open after a drain.
        """
        ids, now = record.jobs.ids, step.now
        settled = now - record.liveness.session_began_at >= SETTLED_SECONDS
        for held in list(record.held.values()):
            if ids is not None and held.claim.job_id in ids:
                self._attach_lost(held, record, step)
            elif settled:
                self._shrink(held, record, step, passed_seconds=passed_seconds)

    def attach_lost(self, record: NodeRecord, step: Step) -> None:
        """Attach again the lost claims whose jobs a node reports at its registration."""
        for held in list(record.held.values()):
            if held.claim.job_id in (record.jobs.ids or ()):
                self._attach_lost(held, record, step)

    def _report_foreign_jobs(self, record: NodeRecord, step: Step) -> None:
        """Log each job that a node reports without a claim, once (§5.3)."""
        ids = record.jobs.ids or frozenset()
        known = {one.claim.job_id for one in record.held.values() if one.gpu_uuids} | record.claims.keys()
        foreign = ids - known
        for job_id in sorted(foreign - record.foreign_jobs):
            fields = {"job_id": job_id, "node_id": record.node_id}
            step.log("job_running_without_claim", fields, Level.WARNING)
        if record.foreign_jobs and not foreign:
            record.last_job_at = step.now
        record.foreign_jobs = foreign

    def _report_unusable_gpus(self, record: NodeRecord, step: Step) -> None:
        """Log each claimed GPU that has become unusable or has vanished, once (§5.3)."""
        for claim in record.claims.values():
            grant = claim.on(record.node_id)
            for uuid in () if grant is None else grant.gpu_uuids:
                gpu = record.gpus.get(uuid)
                lost = gpu is None or gpu.is_parent or not gpu.is_sound
                if lost and self.history.note_unusable(claim, uuid):
                    health = "not declared any more" if gpu is None else clip_quote(gpu.condition)
                    fields = {
                        "job_id": claim.job_id,
                        "node_id": record.node_id,
                        "claim_id": claim.claim_id,
                        "gpu_uuid": clip_sentence(uuid),
                        "health": health,
                    }
                    step.log("claim_gpu_unusable", fields, Level.WARNING)
                    self.history.note(
                        claim, f"GPU {clip_quote(uuid)} on {record.node_id}: {health}", step.now
                    )

    def _place_or_wait(self, event: ClaimRequested, waiting: Waiting | None, step: Step) -> None:
        job = event.job
        is_tried = waiting is not None and waiting.requests and waiting.job.priority >= job.priority
        if is_tried and job.wait_seconds > 0:
            self.queue.wait(event, step.now)  # it was tried with the others
            return
        placed = self._place(event, step)
        if not isinstance(placed, NoAvailableNode):
            for ref in (event.ref, *(self.queue.remove(waiting) if waiting else ())):
                step.answer(ref, placed)
            return
        never_fits = job.wait_seconds > 0 and waiting is None and not self._dispatch.could_ever_take(job)
        if job.wait_seconds <= 0 or never_fits:
            self._refuse(event.ref, job, replace(placed, never_fits=never_fits), step=step)
            return
        problem = None if waiting else self.queue.full_for(event.requester.name)
        if problem is not None:
            step.refuse(event.ref, QUEUE_FULL, problem)
            return
        self.queue.wait(event, step.now)
        if waiting is None:
            fields = {"job_id": job.job_id, "priority": job.priority, "wait_seconds": job.wait_seconds}
            step.log("job_queued", fields)

    def _try_again(self, waiting: Waiting, step: Step) -> NoAvailableNode | None:
        """Place a waiting job and answer its requests; returns why no node takes it."""
        placed = self._place(waiting.newest, step)
        if isinstance(placed, NoAvailableNode):
            return placed
        for ref in self.queue.remove(waiting):
            step.answer(ref, placed)
        return None

    def _place(self, event: ClaimRequested, step: Step) -> Claim | NoAvailableNode | Refusal:
        job = event.job
        placed = self._dispatch.claim(job, step.now, claim_id=event.claim_id, owner=event.requester.name)
        if isinstance(placed, NoAvailableNode):
            return placed
        if placed is None:
            problem = (
                f"the claim would take more than {LARGEST_CLAIM_BYTES} bytes: ask for fewer nodes and GPUs"
            )
            return Refusal(ErrorCode.INVALID_MESSAGE, problem)
        claim, held_before = placed
        for one in held_before:
            step.change_held(one)
        step.change_claim(claim)
        self._begin(claim)
        for grant in claim.grants:
            fields = {
                "job_id": job.job_id,
                "node_id": grant.node_id,
                "hostname": grant.hostname,
                "claim_id": claim.claim_id,
                "gpu_uuids": [uuid for uuid in grant.gpu_uuids if not uuid.startswith("#")],
                "required_models": list(job.required_models),
            }
            step.log("job_assigned", fields)
        return claim

    def restore(self) -> None:
        """Begin the history of every claim that was loaded."""
        for claim in self._dispatch.claims():
            self._begin(claim)

    def renew_all(self, now: float) -> None:
        """Give every claim one fresh TTL of its own (§4, restart)."""
        for claim in self._dispatch.renew_all(now):
            self.history.renew(claim, now)

    def _begin(self, claim: Claim) -> None:
        self.history.begin(claim)
        self.telemetry.begin(claim)

    def _renew(
        self, ref: int, current: Claim, step: Step, *, ttl_seconds: float | None, stored: bool = False
    ) -> None:
        renewed = self._dispatch.renew(current.job_id, step.now, ttl_seconds)
        if renewed is None:
            raise RuntimeError(f"job {current.job_id!r} lost its claim while it was renewed; this is a bug")
        self.history.renew(renewed, step.now)
        if renewed.ttl_seconds != current.ttl_seconds:
            step.change_claim(current)
            stored = False
        if stored:
            step.immediate.append(Answer(ref, renewed))
        else:
            step.answer(ref, renewed)

    def _current(self, event: RenewalRequested | ReleaseRequested, step: Step) -> Claim | None:
        """Return the current claim that a request may act on; else refuse the request (§5.3)."""
        current = self._dispatch.claim_of(event.job_id)
        refusal: Refusal | None = None
        if current is None:
            refusal = Refusal(CLAIM_NOT_FOUND, self._why_no_claim(event))
        elif event.claim_id is not None and event.claim_id != current.claim_id:
            refusal = Refusal(CLAIM_SUPERSEDED, _superseded(event.job_id))
        elif not _may(event.requester, current):
            refusal = Refusal(NOT_CLAIM_OWNER, _not_owner(event.job_id))
        if refusal is None:
            return current
        step.refuse(event.ref, refusal.code, refusal.message)
        return None

    def _why_no_claim(self, event: RenewalRequested | ReleaseRequested) -> str:
        """Say what became of a job's claim, with the next step."""
        job_id, held = event.job_id, self._dispatch.held_of(event.job_id)
        again = "; claim a slot again" if isinstance(event, RenewalRequested) else ""
        if held:
            last = max(held, key=attrgetter("ended_at"))
            lost = "was lost with its node" if last.end is ClaimEnd.LOST else "has expired"
            return (
                f"the claim of job {job_id!r} {lost}, and what it had stays held until the job is seen to be "
                f"gone: release it by its id where the job has ended (?claim_id={last.claim.claim_id}, or "
                f"--claim-id {last.claim.claim_id}){again and f'{again} where it goes on'}"
            )
        place = self.queue.place_of(job_id)
        if place is not None:
            return waits_in_queue(job_id, place)
        return (
            f"no claim is held for job {job_id!r}: it was never made, was released, has expired, or was lost "
            f"with its node{again}"
        )

    def _end(self, claim: Claim, end: ClaimEnd, step: Step, **why: object) -> None:
        """End a claim; `why` is logged besides."""
        ended = self._dispatch.end(claim.job_id, end, step.now)
        if ended is None:
            return
        for held in ended[1]:
            step.change_held(held)
        step.change_claim(claim)
        self._dispatch.note_worker_use(claim, step.now)
        self.telemetry.end(claim)
        self.history.end(claim, end, step.now)
        level = Level.WARNING if end is ClaimEnd.LOST else Level.INFO
        unrenewed = "claim_expired" if end is ClaimEnd.EXPIRED else "claim_lost"
        event = "claim_released" if end is ClaimEnd.RELEASED else unrenewed
        for grant in claim.grants:
            fields = {"job_id": claim.job_id, "node_id": grant.node_id, "claim_id": claim.claim_id}
            step.log(event, fields | why, level)

    def _attach_lost(self, held: HeldGrant, record: NodeRecord, step: Step) -> None:
        """Attach a lost claim again whose job runs and holds no other, while its GPUs are held for it."""
        claim = held.claim
        grant = claim.on(record.node_id)
        if held.end is not ClaimEnd.LOST or claim.job.nodes > 1 or record.status is NodeStatus.OFFLINE:
            return
        if grant is None or held.gpu_uuids != grant.gpu_uuids or self._dispatch.claim_of(claim.job_id):
            return
        attached = replace(claim, expires_at=step.now + claim.ttl_seconds)
        if self._dispatch.attach(attached) is None:
            return
        step.change_held(held)
        step.change_claim(claim)
        self._begin(attached)
        self.history.note(attached, "attached again: its node reports the job", step.now)
        for ref in self.queue.remove_job(claim.job_id):
            step.answer(ref, attached)
        fields = {"job_id": claim.job_id, "node_id": record.node_id, "claim_id": claim.claim_id}
        step.log("claim_reattached", fields)

    def _shrink(self, held: HeldGrant, record: NodeRecord, step: Step, *, passed_seconds: float) -> None:
        """Let go what a node's newest reading shows to be free."""
        jobs_known = record.jobs.ids is not None
        left, silent = [], not held.gpu_uuids and not jobs_known
        for uuid in held.gpu_uuids:
            gpu = record.gpus.get(uuid)
            processes = None if gpu is None else gpu.processes
            if processes is None and not jobs_known:
                silent = True
            elif processes or reading_at(record) <= held.ended_at:
                left.append(uuid)
        if silent:
            passed = min(passed_seconds, step.now - held.ended_at)
            held = replace(held, silent_seconds=held.silent_seconds + passed)
            self._dispatch.replace_held(held)
            if held.silent_seconds < self._thresholds.claim_ttl_seconds:
                return
        if not left:
            self._drop_held(held, "its job is not seen there any more", step)
        elif len(left) < len(held.gpu_uuids):
            self._dispatch.shrink_held(held, tuple(left), step.now)
            step.change_held(held)

    def _drop_held(self, held: HeldGrant, reason: str, step: Step) -> None:
        self._dispatch.shrink_held(held, (), step.now)
        step.change_held(held)
        fields = {
            "job_id": held.claim.job_id,
            "node_id": held.node_id,
            "claim_id": held.claim.claim_id,
            "reason": reason,
        }
        step.log("held_gpus_freed", fields)

    def _refuse(self, ref: int, job: Job, refusal: NoAvailableNode, *, step: Step) -> None:
        self.exclusions.count(refusal, step.now)
        counts = {reason.value: count for reason, count in refusal.counts.items()}
        step.log("dispatch_failed", {"job_id": job.job_id, "counts": counts})
        for examples in refusal.examples.values():
            for one in examples:
                _log_exclusion(job, one, Level.INFO, step=step)
        if self._debug():
            for one in self._dispatch.explain(job, step.now).excluded:
                _log_exclusion(job, one, Level.DEBUG, step=step)
        step.answer(ref, refusal)


def _other_job(event: ClaimRequested, known: Claim | Waiting | None) -> str | None:
    """Say why a job id is in use for something else; None for the same job of the same owner."""
    if known is None:
        return None
    job_id = event.job.job_id
    if event.requester.name is not None and known.owner not in (None, event.requester.name):
        return f"the job id {clip_quote(job_id)} is in use by another owner: choose another id"
    mine, theirs = demands_of(event.job), demands_of(known.job)
    differing = sorted(name for name in mine if mine[name] != theirs[name])
    if not differing:
        return None
    shown = ", ".join(
        f"{name} is {_shown(getattr(known.job, name))}, not {_shown(getattr(event.job, name))}"
        for name in differing
    )
    return clip_sentence(
        f"the job {clip_quote(job_id)} holds or waits for a claim with other demands ({shown}): "
        "release it, or choose another id"
    )


def _shown(value: object) -> str:
    return clip_quote(str(list(value) if isinstance(value, tuple) else value))


def _may(requester: Requester, claim: Claim) -> bool:
    """Whether somebody may act on a claim: its owner, and an admin."""
    return requester.is_admin or requester.name is None or claim.owner in (None, requester.name)


def _log_exclusion(job: Job, one: Excluded, level: Level, *, step: Step) -> None:
    fields = {"job_id": job.job_id, "node_id": one.node_id, "reason": one.reason.value}
    step.log("dispatch_candidate_excluded", {**fields, "need": one.need, "have": one.have}, level)


def waits_in_queue(job_id: str, place: int) -> str:
    """Say that a job without a claim waits for one."""
    return (
        f"job {job_id!r} holds no claim yet: it waits in the queue (place {place}); to wait no more, end the "
        "request that waits"
    )


def _superseded(job_id: str) -> str:
    return (
        f"job {job_id!r} has another claim now: the one that this request names has ended; "
        "`gpu-agent registry claim show JOB` (GET /v1/claims/JOB) shows the current one"
    )


def _not_owner(job_id: str) -> str:
    return f"the claim of job {job_id!r} belongs to another owner: ask its owner, or an admin"
