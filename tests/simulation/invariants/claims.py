"""No acknowledged claim or release is lost; a claim that is not renewed ends, and none before its time."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from gpu_agent.registry.actions import Answer, Effect, LogEvent, Output, Refusal
from gpu_agent.registry.dispatch.exclusions import Excluded, Explanation, NoAvailableNode
from gpu_agent.registry.events import (
    ClaimRequested,
    ConnectionLost,
    Event,
    HeartbeatReceived,
    OperatorRequest,
    ReleaseRequested,
    RenewalRequested,
    Stored,
)
from gpu_agent.registry.job import Claim, Job
from gpu_agent.registry.node import NodeRecord
from gpu_agent.server.effects import Executable
from gpu_agent.store.base import Loaded
from gpu_agent.wire.codes import NodeStatus
from tests.simulation.cluster import Cluster
from tests.simulation.invariants.base import Invariant, Observer, hold
from tests.simulation.invariants.desired_state import DesiredStateInvariants

_ENDED = frozenset({"claim_expired", "claim_lost"})


@dataclass(frozen=True, slots=True)
class _Promised:
    """A claim whose grant was sent to a scheduler, and after how many decisions it was decided."""

    claim: Claim
    turn: int


class ClaimInvariants(Observer):
    """Keeps account of what schedulers were promised.

    A request that was answered with `REGISTRY_BUSY` may have taken effect or not: neither breaks a promise.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._turn = 0
        self._promised: dict[str, _Promised] = {}
        self._ended: dict[str, int] = {}
        """When a job's claim was last released, expired or lost."""
        self._released: dict[str, int] = {}
        """Jobs whose release was acknowledged, and when it was decided."""
        self._granted_at: dict[str, int] = {}
        """When a claim was last granted for a job."""
        self._overdue: set[Claim] = set()
        """Claims that should have ended when they were last looked at."""
        self._glanced_at = 0.0
        self._grants: dict[int, _Promised] = {}
        self._releases: dict[int, tuple[str, int]] = {}

    def decided(self, event: Event | None, output: Output) -> None:
        self._turn += 1
        if isinstance(event, HeartbeatReceived):
            self._take_ends(output.effects)
            return
        if isinstance(event, ClaimRequested | RenewalRequested):
            self._granted(event, (*output.immediate, *output.effects))
        elif isinstance(event, ReleaseRequested) and not output.immediate:
            self._releases[event.ref] = (event.job_id, self._turn)
            self._ended[event.job_id] = self._turn
        self._take_ends(output.effects)
        if event is None or isinstance(event, OperatorRequest):
            self._check()

    def executed(self, effect: Executable) -> None:
        if not isinstance(effect, Answer):
            return
        granted = self._grants.pop(effect.ref, None)
        released = self._releases.pop(effect.ref, None)
        if isinstance(effect.result, Refusal | NoAvailableNode):
            return
        if granted is not None:
            self._promised[granted.claim.job_id] = granted
        if released is not None:
            job_id, turn = released
            self._promised.pop(job_id, None)
            self._released[job_id] = turn

    def crashed(self) -> None:
        self._overdue.clear()
        self._grants.clear()
        self._releases.clear()

    def restored(self, loaded: Loaded) -> None:
        self._check()

    def check_all(self) -> None:
        self._check()
        before, now = self._overdue, self._cluster.world.now
        if now - self._glanced_at <= self._cluster.profile.thresholds.scan_interval_seconds:
            return  # no scan has been since
        self._glanced_at = now
        if self._cluster.fleet._unstored.store_fails:
            self._overdue.clear()
            return
        self._overdue = {claim for claim in self._cluster.claims().values() if claim.expires_at < now}
        for claim in before & self._overdue:
            hold(Invariant.CLAIM_ENDS, holds=False, detail=f"{claim} ended long ago")

    def _granted(self, event: ClaimRequested | RenewalRequested, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Answer) and isinstance(effect.result, Claim):
                claim = effect.result
                self._grants[event.ref] = _Promised(claim, self._turn)
                self._granted_at[claim.job_id] = self._turn

    def _take_ends(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, LogEvent) and effect.event in _ENDED:
                job_id = str(effect.fields["job_id"])
                lost = effect.event == "claim_lost"
                self._check_end(job_id, lost=lost, node_id=str(effect.fields["node_id"]))
                self._ended[job_id] = self._turn

    def _check_end(self, job_id: str, *, lost: bool, node_id: str) -> None:
        promised = self._promised.get(job_id)
        record = self._cluster.fleet.node(node_id)
        if lost:
            offline = record is None or record.status is NodeStatus.OFFLINE
            hold(Invariant.CLAIM_HOLDS, offline, f"{job_id} was lost with {node_id}, which is not offline")
        elif promised is not None and promised.claim.node_id == node_id:
            due = promised.claim.expires_at <= self._cluster.world.now
            hold(Invariant.CLAIM_HOLDS, due, f"{job_id} was granted until {promised.claim.expires_at:.3f}")

    def _check(self) -> None:
        claims = self._cluster.claims()
        for job_id, promised in self._promised.items():
            if self._ended.get(job_id, 0) > promised.turn:
                continue
            held, claim = claims.get(job_id), promised.claim
            if held is None or (held.node_id, held.gpu_uuids) != (claim.node_id, claim.gpu_uuids):
                hold(Invariant.CLAIM_HOLDS, holds=False, detail=f"{job_id} was granted {claim}, has {held}")
        for job_id, turn in self._released.items():
            if job_id in claims and self._granted_at.get(job_id, 0) < turn:
                hold(Invariant.CLAIM_HOLDS, holds=False, detail=f"{job_id} released {claims[job_id]}")


# Who gets new claims, and that no place and no memory is promised twice.


class CapacityInvariants(Observer):
    """Watches grants, and the books behind them."""

    def __init__(self, cluster: Cluster, desired: DesiredStateInvariants) -> None:
        self._cluster = cluster
        self._desired = desired
        self._held: Claim | None = None

    def before(self, event: Event | None) -> None:
        if isinstance(event, ClaimRequested):
            self._held = self._cluster.claims().get(event.job.job_id)

    def decided(self, event: Event | None, output: Output) -> None:
        effects = output.effects
        if isinstance(event, ClaimRequested):
            claim = self._cluster.claims().get(event.job.job_id)
            if self._held is None and claim is not None:
                self._granted(claim)
            elif self._held is not None and self._held.expires_at > self._cluster.world.now:
                hold(Invariant.ONE_CLAIM, claim is self._held, f"{event.job.job_id} holds {claim} besides")
        if effects and not isinstance(event, HeartbeatReceived | ConnectionLost | Stored):
            self._audit()

    def check_all(self) -> None:
        self._audit()

    def _granted(self, claim: Claim) -> None:
        record = self._cluster.fleet.node(claim.node_id)
        assert record is not None
        trouble = self._why_not(record)
        hold(Invariant.ONLY_READY, trouble is None, f"{claim.job_id} was given to {claim.node_id}: {trouble}")
        jobs = {one.job_id for one in self._cluster.claims().values() if one.node_id == claim.node_id}
        taken = len(jobs | (record.jobs.ids or set()))
        room = record.declared.max_concurrent_jobs
        hold(Invariant.NO_SLOT_TWICE, taken <= room, f"{claim.node_id} has {room} slots, {taken} taken")

    def _why_not(self, record: NodeRecord) -> str | None:
        if record.status is not NodeStatus.READY:
            return f"it is {record.status}"
        if not record.connected:
            return "it has no connection, or one in doubt"
        if record.desired.cordoned is not None or record.desired.drain is not None:
            return "it is cordoned or to be drained"
        if self._desired.must_stay_empty(record.node_id):
            return "an operator's request that it gets none was acknowledged"
        return None

    def _audit(self) -> None:
        """Hold the book of claims, the records and the promised memory to each other."""
        claims = self._cluster.claims()
        candidates = self._cluster.fleet._dispatch._index.candidates
        standing = sum(len(candidate.record.claims) for candidate in candidates.values())
        hold(
            Invariant.ONE_CLAIM, standing == len(claims), f"{standing} claims on nodes, {len(claims)} in all"
        )
        needs: Counter[tuple[str, str]] = Counter()
        for job_id, claim in claims.items():
            candidate = candidates.get(claim.node_id)
            if candidate is None or candidate.record.claims.get(job_id) is not claim:
                hold(Invariant.ONE_CLAIM, holds=False, detail=f"{claim} is not on its node")
            for uuid in claim.gpu_uuids:
                needs[claim.node_id, uuid] += claim.memory_mb
        for node_id, candidate in candidates.items():
            for uuid, promise in candidate.reserved.items():
                if promise.needs_mb != needs.get((node_id, uuid)):
                    hold(
                        Invariant.RESERVATIONS_ADD_UP,
                        holds=False,
                        detail=f"{node_id} {uuid}: {promise}, claims need {needs.get((node_id, uuid))}",
                    )


# Every node is eligible or excluded, each for a reason, and dispatch does what it explains (A-3).


_WHAT_IF = (
    Job(job_id="what-if"),
    Job(job_id="what-if", public=True, required_models=("nmt",), min_gpu_memory_mb=40_000),
    Job(job_id="what-if", gpu_count=2, labels={"zone": "a"}, required_features=("emotion_detection",)),
)

_ASKED_AT_ONCE = 3
"""So many nodes are asked what they say of themselves; the next time it is the turn of others."""

_MANY_NODES = 50
"""With more, nothing is explained."""


class ReasonInvariants(Observer):
    """Asks for explanations."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._said: Explanation | None = None
        self._glances = 0

    def before(self, event: Event | None) -> None:
        if isinstance(event, ClaimRequested) and self._cluster.fleet.size <= _MANY_NODES:
            fresh = self._cluster.fleet.claim_of(event.job.job_id) is None
            # A claim that ends at this very moment makes room that the explanation does not know of.
            due = self._cluster.fleet._dispatch.next_expiry
            settled = due is None or due > self._cluster.world.now
            self._said = self._explained(event.job) if fresh and settled else None

    def decided(self, event: Event | None, output: Output) -> None:
        effects = output.effects
        if not isinstance(event, ClaimRequested) or self._said is None:
            return
        said, self._said = self._said, None
        for effect in effects:
            if not isinstance(effect, Answer):
                continue
            result = effect.result
            if isinstance(result, Claim):
                hold(
                    Invariant.EVERY_REASON,
                    result.node_id in said.eligible,
                    f"{result} was not eligible: {said}",
                )
            elif isinstance(result, NoAvailableNode) and (
                said.eligible or dict(result.counts) != said.counts
            ):
                hold(Invariant.EVERY_REASON, holds=False, detail=f"{result} was answered, not {said}")

    def check_all(self) -> None:
        """Explain one job to the whole fleet, and ask a few nodes whether they agree."""
        records = self._cluster.records()
        if not 0 < len(records) <= _MANY_NODES:
            return
        self._glances += 1
        job = _WHAT_IF[self._glances % len(_WHAT_IF)]
        said = self._explained(job)
        excluded = {one.node_id: one for one in said.excluded}
        for turn in range(_ASKED_AT_ONCE):
            node_id = records[(self._glances + turn) % len(records)].node_id
            self._ask_why(node_id, excluded.get(node_id))

    def _ask_why(self, node_id: str, excluded: Excluded | None) -> None:
        """A node says of itself that it refuses a job just when the explanation of the job says so."""
        why = self._cluster.fleet.explain_node(node_id, self._cluster.world.now)
        assert why is not None
        if excluded is None:
            takes = not why.refuses_every_job
            hold(Invariant.EVERY_REASON, takes, f"{node_id} is eligible, but says {why.exclusions}")
        else:
            agrees = excluded.reason in {one.reason for one in (*why.exclusions, *why.limits)}
            hold(Invariant.EVERY_REASON, agrees, f"{excluded}, but it says of itself {why}")

    def _explained(self, job: Job) -> Explanation:
        said = self._cluster.fleet.explain(job, self._cluster.world.now)
        named = [*said.eligible, *(one.node_id for one in said.excluded)]
        known = [record.node_id for record in self._cluster.records()]
        hold(Invariant.EVERY_REASON, sorted(named) == sorted(known), f"{named} explained of {known}")
        for one in said.excluded:
            if not one.need or not one.have:
                hold(Invariant.EVERY_REASON, holds=False, detail=f"{one} says nothing")
        return said
