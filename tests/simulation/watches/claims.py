"""No acknowledged claim or release is lost; claims that nobody renews end, and none ends before its time."""

from collections.abc import Sequence
from dataclasses import dataclass

from gpu_agent.registry.actions import Action, Answer, Kept, Note, Refusal, Save
from gpu_agent.registry.dispatch.verdict import NoAvailableNode
from gpu_agent.registry.events import (
    BeatArrived,
    ClaimAsked,
    CordonAsked,
    DrainAsked,
    Event,
    ReleaseAsked,
    RemovalAsked,
    RenewalAsked,
    ResumeAsked,
    SaveFailed,
)
from gpu_agent.registry.job import Claim
from gpu_agent.server.clerk import Doing
from gpu_agent.store.base import Loaded
from gpu_agent.wire.codes import NodeStatus
from tests.simulation.broken import Invariant, hold
from tests.simulation.scene import Scene
from tests.simulation.watching import Watch

_UNDOABLE = (DrainAsked, ResumeAsked, CordonAsked, RemovalAsked, ClaimAsked, RenewalAsked, ReleaseAsked)
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


class ClaimsWatch(Watch):
    """Keeps account of what schedulers were promised."""

    def __init__(self, scene: Scene) -> None:
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
        if not actions or isinstance(event, BeatArrived):
            self._take_notes(event, actions)
            return
        match event:
            case ClaimAsked() | RenewalAsked():
                self._granted(event, actions)
            case ReleaseAsked():
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

    def _granted(self, event: ClaimAsked | RenewalAsked, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Answer) and isinstance(action.result, Claim):
                claim = action.result
                self._claimed[event.ref] = _Told(claim, self._turn)
                self._asked[claim.job_id] = self._turn

    def _released_by(self, event: ReleaseAsked, first: Action) -> None:
        self._given_back[event.ref] = (event.job_id, self._turn)
        if isinstance(first, Save):
            self._excuse(event.job_id, _Excuse(self._turn, first.save, undoable=True))

    def _excuse(self, job_id: str, excuse: _Excuse) -> None:
        self._excuses.setdefault(job_id, []).append(excuse)

    def _take_notes(self, event: Event | None, actions: Sequence[Action]) -> None:
        save = next((one.save for one in actions if isinstance(one, Save)), None)
        for action in actions:
            if isinstance(action, Note) and action.event in _ENDED:
                job_id = str(action.fields["job_id"])
                lost = action.event == "claim_lost"
                self._check_end(job_id, lost=lost, node_id=str(action.fields["node_id"]))
                undoable = lost and isinstance(event, _UNDOABLE) and _is_granted(actions)
                self._excuse(job_id, _Excuse(self._turn, save, undoable))
            elif isinstance(action, Note) and action.event == "claim_found_again":
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
            if self._scene.fleet._saves._unkept.holds((Kept.CLAIM, job_id)):
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
