"""Who gets new claims, and that no place and no memory is promised twice."""

from collections import Counter
from collections.abc import Sequence

from gpu_agent.registry.actions import Action
from gpu_agent.registry.events import BeatArrived, ClaimAsked, ConnectionLost, Event, Saved
from gpu_agent.registry.job import Claim
from gpu_agent.registry.record import NodeRecord
from gpu_agent.wire.codes import NodeStatus
from tests.simulation.broken import Invariant, hold
from tests.simulation.scene import Scene
from tests.simulation.watches.wishes import WishesWatch
from tests.simulation.watching import Watch


class PlacesWatch(Watch):
    """Watches grants, and the books behind them."""

    def __init__(self, scene: Scene, wishes: WishesWatch) -> None:
        self._scene = scene
        self._wishes = wishes
        self._held: Claim | None = None

    def before(self, event: Event | None) -> None:
        if isinstance(event, ClaimAsked):
            self._held = self._scene.claims().get(event.job.job_id)

    def decided(self, event: Event | None, actions: Sequence[Action]) -> None:
        if isinstance(event, ClaimAsked):
            claim = self._scene.claims().get(event.job.job_id)
            if self._held is None and claim is not None:
                self._granted(claim)
            elif self._held is not None and self._held.expires_at > self._scene.world.now:
                hold(Invariant.ONE_CLAIM, claim is self._held, f"{event.job.job_id} holds {claim} besides")
        if actions and not isinstance(event, BeatArrived | ConnectionLost | Saved):
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
