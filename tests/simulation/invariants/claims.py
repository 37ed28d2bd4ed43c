"""No acknowledged claim or release is lost; claims that nobody renews end, and none ends before its time."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from gpu_agent.registry.actions import Action, Answer, DocumentKind, LogEvent, Refusal, Save
from gpu_agent.registry.dispatch.refusals import Excluded, Explanation, NoAvailableNode
from gpu_agent.registry.events import (
    ClaimRequested,
    ConnectionLost,
    CordonRequested,
    DrainRequested,
    Event,
    HeartbeatReceived,
    ReleaseRequested,
    RemovalRequested,
    RenewalRequested,
    ResumeRequested,
    Saved,
    SaveFailed,
)
from gpu_agent.registry.job import Claim, Demand, Job
from gpu_agent.registry.node import NodeRecord
from gpu_agent.server.effects import Doing
from gpu_agent.store.base import Loaded
from gpu_agent.wire.codes import NodeStatus
from tests.simulation.cluster import Cluster
from tests.simulation.invariants.base import Invariant, Observer, hold
from tests.simulation.invariants.desired_state import DesiredStateInvariants

_UNDOABLE = (
    DrainRequested,
    ResumeRequested,
    CordonRequested,
    RemovalRequested,
    ClaimRequested,
    RenewalRequested,
    ReleaseRequested,
)
_ENDED = frozenset({"claim_expired", "claim_lost"})


@dataclass(frozen=True, slots=True)
class _Told:
    """A claim that a scheduler was told of, and after how many decisions it was decided."""

    claim: Claim
    turn: int


@dataclass(slots=True)
class _Excuse:
    """Why a claim that was told may be gone."""

    turn: int
    save: int | None
    undoable: bool


class ClaimInvariants(Observer):
    """Keeps account of what schedulers were promised."""

    def __init__(self, scene: Cluster) -> None:
        self._scene = scene
        self._turn = 0
        self._told: dict[str, _Told] = {}
        self._excuses: dict[str, list[_Excuse]] = {}
        self._released: dict[str, int] = {}
        """Jobs whose release was acknowledged, and when it was decided."""
        self._found_again: dict[str, int] = {}
        """When a registration last took up what was lost."""
        self._asked: dict[str, int] = {}
        """When a claim was last granted for a job."""
        self._overdue: set[Claim] = set()
        """Claims that should have ended when they were last looked at."""
        self._glanced_at = 0.0
        self._claimed: dict[int, _Told] = {}
        self._given_back: dict[int, tuple[str, int]] = {}

    def decided(self, event: Event | None, actions: Sequence[Action]) -> None:
        self._turn += 1
        if not actions or isinstance(event, HeartbeatReceived):
            self._take_notes(event, actions)
            return
        match event:
            case ClaimRequested() | RenewalRequested():
                self._granted(event, actions)
            case ReleaseRequested():
                self._released_by(event, actions[0])
            case SaveFailed(save=save):
                self._undone(save)
            case _:
                pass
        self._take_notes(event, actions)
        if event is None or isinstance(event, _UNDOABLE):
            self._check()

    def carried(self, doing: Doing) -> None:
        if not isinstance(doing, Answer):
            return
        claimed = self._claimed.pop(doing.ref, None)
        released = self._given_back.pop(doing.ref, None)
        if isinstance(doing.result, Refusal | NoAvailableNode):
            return
        if claimed is not None:
            self._told[claimed.claim.job_id] = claimed
        if released is not None:
            job_id, turn = released
            self._told.pop(job_id, None)
            self._released[job_id] = turn

    def crashed(self) -> None:
        self._overdue.clear()
        self._claimed.clear()
        self._given_back.clear()
        for excuse in (excuse for excuses in self._excuses.values() for excuse in excuses):
            excuse.save = None  # the next process counts its saves anew

    def restored(self, actions: Sequence[Action], loaded: Loaded) -> None:
        self._check()

    def glance(self) -> None:
        self._check()
        before, now = self._overdue, self._scene.world.now
        if now - self._glanced_at <= self._scene.climate.thresholds.scan_interval_seconds:
            return  # no scan has been since
        self._glanced_at = now
        self._overdue = {claim for claim in self._scene.claims().values() if claim.expires_at < now}
        # One whose renewal could not be kept is overdue all at once: it ends with the next scan.
        for claim in before & self._overdue:
            hold(Invariant.CLAIM_ENDS, holds=False, detail=f"{claim} ended long ago")

    def _granted(self, event: ClaimRequested | RenewalRequested, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Answer) and isinstance(action.result, Claim):
                claim = action.result
                self._claimed[event.ref] = _Told(claim, self._turn)
                self._asked[claim.job_id] = self._turn

    def _released_by(self, event: ReleaseRequested, first: Action) -> None:
        self._given_back[event.ref] = (event.job_id, self._turn)
        if isinstance(first, Save):
            self._excuse(event.job_id, _Excuse(self._turn, first.save, undoable=True))

    def _excuse(self, job_id: str, excuse: _Excuse) -> None:
        self._excuses.setdefault(job_id, []).append(excuse)

    def _take_notes(self, event: Event | None, actions: Sequence[Action]) -> None:
        save = next((one.save for one in actions if isinstance(one, Save)), None)
        for action in actions:
            if isinstance(action, LogEvent) and action.event in _ENDED:
                job_id = str(action.fields["job_id"])
                lost = action.event == "claim_lost"
                self._check_end(job_id, lost=lost, node_id=str(action.fields["node_id"]))
                undoable = lost and isinstance(event, _UNDOABLE) and _is_granted(actions)
                self._excuse(job_id, _Excuse(self._turn, save, undoable))
            elif isinstance(action, LogEvent) and action.event == "claim_reattached":
                self._found_again[str(action.fields["job_id"])] = self._turn

    def _check_end(self, job_id: str, *, lost: bool, node_id: str) -> None:
        told = self._told.get(job_id)
        record = self._scene.fleet.node(node_id)
        if lost:
            offline = record is None or record.status is NodeStatus.OFFLINE
            hold(Invariant.CLAIM_KEPT, offline, f"{job_id} was lost with {node_id}, which is not offline")
        elif told is not None and told.claim.node_id == node_id:
            due = told.claim.expires_at <= self._scene.world.now
            hold(Invariant.CLAIM_KEPT, due, f"{job_id} was told to last until {told.claim.expires_at:.3f}")

    def _undone(self, save: int) -> None:
        """What a request that could not be saved brought about did not happen, nor what built on one.

        A claim that is back because it was found again says nothing of that: it may be lost once more.
        """
        for job_id, excuses in self._excuses.items():
            back, found_again = self._is_back(job_id), self._found_again.get(job_id, 0)
            excuses[:] = [
                one
                for one in excuses
                if one.save != save or not (one.undoable or (back and found_again < one.turn))
            ]

    def _is_back(self, job_id: str) -> bool:
        told, held = self._told.get(job_id), self._scene.claims().get(job_id)
        return told is not None and held is not None and held.granted_at == told.claim.granted_at

    def _check(self) -> None:
        claims = self._scene.claims()
        for job_id, told in self._told.items():
            held = claims.get(job_id)
            if any(excuse.turn > told.turn for excuse in self._excuses.get(job_id, ())):
                continue
            if self._scene.fleet._saves._unkept.holds((DocumentKind.CLAIM, job_id)):
                continue  # a verdict on it waits for the disk: what it was shows once it is noted
            promised = (told.claim.node_id, told.claim.gpu_uuids)
            if held is None or (held.node_id, held.gpu_uuids) != promised:
                hold(Invariant.CLAIM_KEPT, holds=False, detail=f"{job_id} was told {promised}, has {held}")
        for job_id, turn in self._released.items():
            if job_id in claims and self._asked.get(job_id, 0) < turn:
                hold(Invariant.CLAIM_KEPT, holds=False, detail=f"{job_id} gave {claims[job_id]} back")


def _is_granted(actions: Sequence[Action]) -> bool:
    """Say whether somebody is to be told that what they asked for is done."""
    return any(
        isinstance(one, Answer) and not isinstance(one.result, Refusal | NoAvailableNode) for one in actions
    )


# Who gets new claims, and that no place and no memory is promised twice.


class CapacityInvariants(Observer):
    """Watches grants, and the books behind them."""

    def __init__(self, scene: Cluster, wishes: DesiredStateInvariants) -> None:
        self._scene = scene
        self._wishes = wishes
        self._held: Claim | None = None

    def before(self, event: Event | None) -> None:
        if isinstance(event, ClaimRequested):
            self._held = self._scene.claims().get(event.job.job_id)

    def decided(self, event: Event | None, actions: Sequence[Action]) -> None:
        if isinstance(event, ClaimRequested):
            claim = self._scene.claims().get(event.job.job_id)
            if self._held is None and claim is not None:
                self._granted(claim)
            elif self._held is not None and self._held.expires_at > self._scene.world.now:
                hold(Invariant.ONE_CLAIM, claim is self._held, f"{event.job.job_id} holds {claim} besides")
        if actions and not isinstance(event, HeartbeatReceived | ConnectionLost | Saved):
            self._audit()

    def glance(self) -> None:
        self._audit()

    def _granted(self, claim: Claim) -> None:
        record = self._scene.fleet.node(claim.node_id)
        assert record is not None
        trouble = self._why_not(record)
        hold(Invariant.ONLY_READY, trouble is None, f"{claim.job_id} was given to {claim.node_id}: {trouble}")
        jobs = {one.job_id for one in self._scene.claims().values() if one.node_id == claim.node_id}
        taken = len(jobs | (record.reported_job_ids or set()))
        room = record.max_concurrent_jobs
        hold(Invariant.NO_PLACE_TWICE, taken <= room, f"{claim.node_id} has {room} places, {taken} taken")

    def _why_not(self, record: NodeRecord) -> str | None:
        if record.status is not NodeStatus.READY:
            return f"it is {record.status}"
        if record.connection is None or record.suspected:
            return "it has no connection, or one in doubt"
        if record.cordoned is not None or record.drain is not None:
            return "it is cordoned or to be drained"
        if self._wishes.must_stay_empty(record.node_id):
            return "an operator was told that it gets none"
        return None

    def _audit(self) -> None:
        """Hold the book of claims, the records and the promised memory to each other."""
        claims = self._scene.claims()
        views = self._scene.fleet._dispatch._index.views
        standing = sum(len(view.record.claims) for view in views.values())
        hold(
            Invariant.ONE_CLAIM, standing == len(claims), f"{standing} claims on nodes, {len(claims)} in all"
        )
        needs: Counter[tuple[str, str]] = Counter()
        for job_id, claim in claims.items():
            view = views.get(claim.node_id)
            if view is None or view.record.claims.get(job_id) is not claim:
                hold(Invariant.ONE_CLAIM, holds=False, detail=f"{claim} is not on its node")
            for uuid in claim.gpu_uuids:
                needs[claim.node_id, uuid] += claim.memory_mb
        for node_id, view in views.items():
            for uuid, promise in view.promises.items():
                if promise.needs_mb != needs.get((node_id, uuid)):
                    hold(
                        Invariant.PROMISES_ADD_UP,
                        holds=False,
                        detail=f"{node_id} {uuid}: {promise}, claims need {needs.get((node_id, uuid))}",
                    )


# Every node is able or excluded, each for a reason, and dispatch does what it explains (A-3).


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

    def __init__(self, scene: Cluster) -> None:
        self._scene = scene
        self._said: Explanation | None = None
        self._glances = 0

    def before(self, event: Event | None) -> None:
        if isinstance(event, ClaimRequested) and self._scene.fleet.size <= _MANY_NODES:
            fresh = self._scene.fleet.claim_of(event.job.job_id) is None
            # A claim that ends at this very moment makes room that the explanation does not know of.
            due = self._scene.fleet._dispatch.next_expiry
            settled = due is None or due > self._scene.world.now
            self._said = self._explained(event.job) if fresh and settled else None

    def decided(self, event: Event | None, actions: Sequence[Action]) -> None:
        if not isinstance(event, ClaimRequested) or self._said is None:
            return
        said, self._said = self._said, None
        for action in actions:
            if not isinstance(action, Answer):
                continue
            result = action.result
            if isinstance(result, Claim):
                hold(Invariant.EVERY_REASON, result.node_id in said.able, f"{result} was not able: {said}")
            elif isinstance(result, NoAvailableNode) and (said.able or dict(result.counts) != said.counts):
                hold(Invariant.EVERY_REASON, holds=False, detail=f"{result} was answered, not {said}")

    def glance(self) -> None:
        """Explain one job to the whole fleet, and ask a few nodes whether they agree."""
        records = self._scene.records()
        if not 0 < len(records) <= _MANY_NODES:
            return
        self._glances += 1
        job = _WHAT_IF[self._glances % len(_WHAT_IF)]
        said, demand = self._explained(job), Demand.of(job)
        excluded = {one.node_id: one for one in said.excluded}
        for turn in range(_ASKED_AT_ONCE):
            node_id = records[(self._glances + turn) % len(records)].node_id
            self._ask_why(node_id, demand, excluded.get(node_id))

    def _ask_why(self, node_id: str, demand: Demand, excluded: Excluded | None) -> None:
        """A node says of itself that it refuses a job just when the explanation of the job says so."""
        why = self._scene.fleet.why(node_id, self._scene.world.now)
        own = () if why is None else (*why.objections, *why.limits)
        against = {one.reason for one in own if one.scope.covers(demand)}
        if excluded is None:
            hold(Invariant.EVERY_REASON, why and not against, f"{node_id} is able, but says {against}")
        else:
            agrees = excluded.reason in against
            hold(Invariant.EVERY_REASON, agrees, f"{excluded}, but it says of itself {against}")

    def _explained(self, job: Job) -> Explanation:
        said = self._scene.fleet.explain(job, self._scene.world.now)
        named = [*said.able, *(one.node_id for one in said.excluded)]
        known = [record.node_id for record in self._scene.records()]
        hold(Invariant.EVERY_REASON, sorted(named) == sorted(known), f"{named} explained of {known}")
        for one in said.excluded:
            if not one.need or not one.have:
                hold(Invariant.EVERY_REASON, holds=False, detail=f"{one} says nothing")
        return said
