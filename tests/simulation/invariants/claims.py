"""No acknowledged claim or release is lost; a claim that is not renewed ends, and none before its time."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
from gpu_agent.registry.job import Claim, Job, Sharing, sharing_of
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.queue import Waiting
from gpu_agent.server.effects import Executable
from gpu_agent.store.base import Loaded
from gpu_agent.wire.codes import NodeStatus
from tests.simulation.cluster import Cluster
from tests.simulation.host import parent_of
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
        self._released: dict[str, str] = {}
        """Jobs whose release was acknowledged, and the claim that it ended."""
        self._overdue: set[tuple[str, float]] = set()
        """Claims that should have ended when they were last looked at, with their ends."""
        self._current: Claim | None = None
        """What the job held before a request for it."""
        self._glanced_at = 0.0
        self._grants: dict[int, _Promised] = {}
        self._releases: dict[int, tuple[str, str]] = {}

    def before(self, event: Event | None) -> None:
        if isinstance(event, RenewalRequested | ReleaseRequested):
            self._current = self._cluster.claims().get(event.job_id)

    def decided(self, event: Event | None, output: Output) -> None:
        self._turn += 1
        if output.effects or output.immediate:
            self._granted((*output.immediate, *output.effects))
        if isinstance(event, HeartbeatReceived):
            self._take_ends(output.effects)
            return
        if isinstance(event, RenewalRequested | ReleaseRequested):
            self._check_superseded(event)
        if isinstance(event, ReleaseRequested) and not output.immediate:
            self._release_decided(event)
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
            job_id, claim_id = released
            self._promised.pop(job_id, None)
            self._released[job_id] = claim_id

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
        claims = self._cluster.claims().values()
        self._overdue = {(one.claim_id, one.expires_at) for one in claims if one.expires_at < now}
        for claim in before & self._overdue:
            hold(Invariant.CLAIM_ENDS, holds=False, detail=f"{claim} ended long ago")

    def _granted(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Answer) and isinstance(effect.result, Claim):
                self._grants[effect.ref] = _Promised(effect.result, self._turn)

    def _release_decided(self, event: ReleaseRequested) -> None:
        current = self._current
        if current is not None and event.claim_id in (None, current.claim_id):
            self._releases[event.ref] = (event.job_id, current.claim_id)
            self._ended[event.job_id] = self._turn

    def _check_superseded(self, event: RenewalRequested | ReleaseRequested) -> None:
        before, now = self._current, self._cluster.claims().get(event.job_id)
        if before is None or event.claim_id in (None, before.claim_id):
            return
        due = before.expires_at <= self._cluster.world.now
        hold(Invariant.SUPERSEDED_CLAIM, now is before or due, f"{event} made {now} of {before}")

    def _take_ends(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, LogEvent) and effect.event in _ENDED:
                job_id = str(effect.fields["job_id"])
                lost = effect.event == "claim_lost"
                if lost:
                    self._check_lost(str(effect.fields["claim_id"]), job_id)
                else:
                    self._check_expired(str(effect.fields["claim_id"]), job_id)
                self._ended[job_id] = self._turn

    def _check_lost(self, claim_id: str, job_id: str) -> None:
        """A claim is lost only with a node that is offline."""
        fleet = self._cluster.fleet
        held = [one.claim for one in fleet.held_of(job_id) if one.claim.claim_id == claim_id]
        nodes = [fleet.node(grant.node_id) for claim in held for grant in claim.grants]
        offline = not held or any(one is None or one.status is NodeStatus.OFFLINE for one in nodes)
        hold(Invariant.CLAIM_HOLDS, offline, f"{job_id} was lost, and no node of it is offline")

    def _check_expired(self, claim_id: str, job_id: str) -> None:
        promised = self._promised.get(job_id)
        if promised is not None and promised.claim.claim_id == claim_id:
            due = promised.claim.expires_at <= self._cluster.world.now
            hold(Invariant.CLAIM_HOLDS, due, f"{job_id} was granted until {promised.claim.expires_at:.3f}")

    def _check(self) -> None:
        claims = self._cluster.claims()
        for job_id, promised in self._promised.items():
            if self._ended.get(job_id, 0) > promised.turn:
                continue
            held, claim = claims.get(job_id), promised.claim
            if held is None or (held.claim_id, held.grants) != (claim.claim_id, claim.grants):
                hold(Invariant.CLAIM_HOLDS, holds=False, detail=f"{job_id} was granted {claim}, has {held}")
        for job_id, claim_id in self._released.items():
            if job_id in claims and claims[job_id].claim_id == claim_id:
                hold(Invariant.CLAIM_HOLDS, holds=False, detail=f"{job_id} released {claims[job_id]}")


# Who gets new claims, and that no place and no memory is promised twice.


_RESERVES_WITHIN_SECONDS = 2.0
_BOTH = 2


class CapacityInvariants(Observer):
    """Watches grants, and the books behind them."""

    def __init__(self, cluster: Cluster, desired: DesiredStateInvariants) -> None:
        self._cluster = cluster
        self._desired = desired
        self._held: Claim | None = None
        self._unreserved: Waiting | None = None
        """What the last look found without a reservation."""

    def before(self, event: Event | None) -> None:
        if isinstance(event, ClaimRequested):
            self._held = self._cluster.claims().get(event.job.job_id)

    def decided(self, event: Event | None, output: Output) -> None:
        effects = output.effects
        for effect in effects:
            if isinstance(effect, LogEvent) and effect.event == "job_assigned":
                claim = self._cluster.claims().get(str(effect.fields["job_id"]))
                if claim is not None:
                    self._granted(claim)
        held = self._held
        if isinstance(event, ClaimRequested) and held is not None:
            claim = self._cluster.claims().get(event.job.job_id)
            same = claim is not None and (claim.claim_id, claim.grants) == (held.claim_id, held.grants)
            over = held.expires_at <= self._cluster.world.now
            hold(Invariant.ONE_CLAIM, same or over, f"{event.job.job_id} holds {claim} besides")
        if effects and not isinstance(event, HeartbeatReceived | ConnectionLost | Stored):
            self._audit()

    def check_all(self) -> None:
        self._audit()
        before, self._unreserved = self._unreserved, self._without_reservation()
        if before is not None and before is self._unreserved:
            hold(Invariant.NO_STARVATION, holds=False, detail=f"{before} has reserved nothing for long")

    def _without_reservation(self) -> Waiting | None:
        """Return the job whose turn it is to reserve capacity, if it has reserved none of what it could."""
        fleet, now = self._cluster.fleet, self._cluster.world.now
        due = now - self._cluster.profile.thresholds.queue_reserve_after_seconds
        may = (one for one in fleet.queue() if one.since <= due and sharing_of(one.job) is Sharing.EXCLUSIVE)
        first = next(may, None)
        if (
            first is None
            or first.since >= due - _RESERVES_WITHIN_SECONDS
            or first.reserved
            or not first.requests
            or fleet._unstored.store_fails
            or self._changed_since_the_scan()
        ):
            return None
        return first if fleet._dispatch.nodes_to_reserve(first.job, frozenset(first.given_up)) else None

    def _changed_since_the_scan(self) -> bool:
        """Whether capacity has changed a moment ago, and the next scan is to reserve it."""
        queue, now = self._cluster.fleet._claims.queue, self._cluster.world.now
        within = self._cluster.profile.thresholds.scan_interval_seconds
        return queue._reserved_at_change != queue._dispatch.changes and now - queue._reserved_at <= within

    def _granted(self, claim: Claim) -> None:
        for grant in claim.grants:
            node_id = grant.node_id
            record = self._cluster.fleet.node(node_id)
            assert record is not None
            trouble = self._why_not(record)
            hold(Invariant.ONLY_READY, trouble is None, f"{claim.job_id} was given to {node_id}: {trouble}")
            jobs = {one.job_id for one in self._cluster.claims().values() if one.on(node_id) is not None}
            taken = len(jobs | (record.jobs.ids or set()))
            hold(
                Invariant.NO_SLOT_TWICE,
                taken <= record.slots,
                f"{node_id} has {record.slots} slots, {taken} taken",
            )
            self._check_reservation(claim, record)
            self._check_cordons(claim, record)

    def _check_reservation(self, claim: Claim, record: NodeRecord) -> None:
        """What a waiting job reserved is left for it once the claims from before its reservation end."""
        reservation = self._cluster.fleet._dispatch._index.candidates[record.node_id].reservation
        if reservation is None or claim.job_id == reservation.job_id:
            return
        if claim.job.priority > reservation.priority or claim.granted_at <= reservation.since:
            return  # at the very moment of its reservation it was granted before
        later = [one for one in record.claims.values() if one.granted_at > reservation.since]
        taken = {uuid for one in later if (grant := one.on(record.node_id)) for uuid in grant.gpu_uuids}
        never = taken | record.desired.gpu_cordons.keys()
        free = [gpu for gpu in record.gpus.values() if gpu.usable and not never & {gpu.uuid, gpu.parent_uuid}]
        left = sum(reservation.demand.fits(gpu.kind) for gpu in free)
        enough = left >= reservation.demand.number and record.slots > len(later)
        hold(Invariant.NO_STARVATION, enough, f"{claim} takes what {reservation} waits for")

    def _check_cordons(self, claim: Claim, record: NodeRecord) -> None:
        """No new claim gets a GPU that is cordoned, or is a part of one that is."""
        grant = claim.on(record.node_id)
        for uuid in () if grant is None else grant.gpu_uuids:
            for one in (uuid, parent_of(uuid)):
                cordoned = one in record.desired.gpu_cordons or self._desired.is_cordoned(record.node_id, one)
                hold(
                    Invariant.GPU_CORDON, not cordoned, f"{claim.job_id} was given {uuid}: {one} is cordoned"
                )

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
        granted = sum(len(claim.grants) for claim in claims.values())
        hold(Invariant.ONE_CLAIM, standing == granted, f"{standing} claims on nodes, {granted} in all")
        needs: Counter[tuple[str, str]] = Counter()
        for job_id, claim in claims.items():
            nodes = {grant.node_id for grant in claim.grants}
            whole = len(nodes) == claim.job.nodes
            for grant in claim.grants:
                candidate = candidates.get(grant.node_id)
                there = candidate is not None and candidate.record.claims.get(job_id) is claim
                if not there and claim.job.nodes == 1:
                    hold(Invariant.ONE_CLAIM, holds=False, detail=f"{claim} is not on its node")
                whole = whole and there
            hold(Invariant.GANG_IS_WHOLE, whole, f"{claim} is not on each of its nodes")
        for claim, node_id, uuids in self._holders():
            for uuid in uuids if sharing_of(claim.job) is Sharing.MEMORY else ():
                needs[node_id, uuid] += claim.job.min_gpu_memory_mb or 0
        self._check_gpus()
        for node_id, candidate in candidates.items():
            for uuid, promise in candidate.reserved.items():
                if promise.needs_mb != needs.get((node_id, uuid)):
                    hold(
                        Invariant.RESERVATIONS_ADD_UP,
                        holds=False,
                        detail=f"{node_id} {uuid}: {promise}, claims need {needs.get((node_id, uuid))}",
                    )

    def _holders(self) -> Iterator[tuple[Claim, str, tuple[str, ...]]]:
        """List what every claim, and every ended one, holds on each node."""
        for claim in self._cluster.claims().values():
            for grant in claim.grants:
                yield claim, grant.node_id, grant.gpu_uuids
        for one in self._cluster.fleet.held():
            yield one.claim, one.node_id, one.gpu_uuids

    def _check_gpus(self) -> None:
        """Hold every two claims on one GPU to each other: both must share it, on the same node."""
        seen: dict[str, tuple[Claim, str]] = {}
        for claim, node_id, uuids in self._holders():
            whole_or_mig = len({parent_of(uuid) is None for uuid in uuids}) < _BOTH
            hold(Invariant.WHOLE_OR_MIG, whole_or_mig, f"{claim} has whole GPUs and MIG devices on {node_id}")
            exclusive = sharing_of(claim.job) is Sharing.EXCLUSIVE
            for uuid in uuids:
                other, other_node = seen.setdefault(uuid, (claim, node_id))
                if other.claim_id == claim.claim_id and other_node == node_id:
                    continue
                other_exclusive = sharing_of(other.job) is Sharing.EXCLUSIVE
                if node_id == other_node and not (exclusive or other_exclusive):
                    continue
                hold(
                    self._broken(claim, other, same_node=node_id == other_node),
                    holds=False,
                    detail=f"{uuid} on {other_node} is in {other}, and on {node_id} in {claim}",
                )

        self._check_parts(seen)

    def _check_parts(self, seen: Mapping[str, tuple[Claim, str]]) -> None:
        """While a claim holds a MIG device, none holds its parent."""
        for uuid, (claim, node_id) in seen.items():
            other = seen.get(parent_of(uuid) or "")
            if other is not None:
                hold(
                    Invariant.WHOLE_OR_MIG,
                    holds=False,
                    detail=f"{uuid} on {node_id} is in {claim}, and its parent on {other[1]} in {other[0]}",
                )

    def _broken(self, claim: Claim, other: Claim, *, same_node: bool) -> Invariant:
        if not same_node:
            return Invariant.ONE_GPU
        live = {one.claim_id for one in self._cluster.claims().values()}
        if not {claim.claim_id, other.claim_id} <= live:
            return Invariant.HELD_IS_NOT_GIVEN
        both = sharing_of(claim.job) is sharing_of(other.job) is Sharing.EXCLUSIVE
        return Invariant.EXCLUSIVE_ALONE if both else Invariant.NEVER_MIXED


# Every node is eligible or excluded, each for a reason, and dispatch does what it explains (A-3).


_WHAT_IF = (
    Job(job_id="what-if"),
    Job(job_id="what-if", public=True, required_models=("nmt",), min_gpu_memory_mb=40_000),
    Job(job_id="what-if", gpu_count=2, labels={"zone": "a"}, required_features=("emotion_detection",)),
    Job(job_id="what-if", gpu_count=1, labels={"zone": ("a", "b")}, excluded_nodes=("agent-1",)),
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
            fleet, job_id = self._cluster.fleet, event.job.job_id
            fresh = fleet.claim_of(job_id) is None and not fleet.held_of(job_id) and not fleet.queue()
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
                eligible = all(grant.node_id in said.eligible for grant in result.grants)
                hold(Invariant.EVERY_REASON, eligible, f"{result} was not eligible: {said}")
            elif isinstance(result, NoAvailableNode) and (
                len(said.eligible) >= event.job.nodes or dict(result.counts) != said.counts
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
