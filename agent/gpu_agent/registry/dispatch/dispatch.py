"""Dispatch: which node takes a job, and who holds which place. Pure; chance is handed in.

Alone writes `NodeRecord.claims`; everything else of a record is the fleet's. Changes no status, saves and
sends nothing: what it returns is the fleet's to save before it is told.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from gpu_agent.registry.dispatch.affinity import Affinities
from gpu_agent.registry.dispatch.claims import Claims
from gpu_agent.registry.dispatch.demand import Demand
from gpu_agent.registry.dispatch.explain import judged, refusal
from gpu_agent.registry.dispatch.filters import exclusion
from gpu_agent.registry.dispatch.index import Index
from gpu_agent.registry.dispatch.memory import Promise, used_mb
from gpu_agent.registry.dispatch.placement import fittest
from gpu_agent.registry.dispatch.verdict import Able, Excluded, Explanation, NoAvailableNode
from gpu_agent.registry.dispatch.view import NodeView
from gpu_agent.registry.job import Claim, Job
from gpu_agent.registry.record import NodeRecord
from gpu_agent.registry.thresholds import Thresholds


@dataclass(frozen=True, slots=True)
class Choice:
    """The best place for a job at this moment; nothing is reserved by it."""

    node_id: str
    gpu_uuids: tuple[str, ...]
    endpoint: str | None
    score: int
    """As `scoring` rates it, affinity included."""


class Dispatch:
    """All nodes and claims. Times are monotonic seconds; call `expire` before asking for a place."""

    def __init__(self, thresholds: Thresholds, draw: Callable[[], float]) -> None:
        self._draw = draw
        self._affinity_bonus = thresholds.affinity_bonus
        self._index = Index(thresholds)
        self._claims = Claims(thresholds.claim_ttl_seconds)
        self._affinities = Affinities()

    @property
    def next_expiry(self) -> float | None:
        """When the next claim ends unless renewed."""
        return self._claims.next_expiry

    def refresh(self, record: NodeRecord) -> None:
        """Take in a node, or whatever may have changed about it. O(1) in the size of the fleet."""
        self._index.file(record)

    def refresh_figures(self, record: NodeRecord, *, gpus: bool, load: bool) -> None:
        """Take in that of a known node nothing but its GPUs' figures may have changed, or its load."""
        self._index.file_figures(record, gpus=gpus, load=load)

    def doubt(self, records: Sequence[NodeRecord]) -> None:
        """Take in that these nodes are suspected now, and nothing else about them has changed."""
        self._index.file_doubts(records)

    def forget(self, node_id: str) -> None:
        """Let a node go, with the claims on it."""
        self.lose(node_id)
        self._index.drop(node_id)

    def select(self, job: Job, now: float) -> Choice | NoAvailableNode:
        """Find the best able node (§5), or say what every node failed on (D-06)."""
        demand = Demand.of(job)
        found = self._best(demand, now)
        if found is None:
            return refusal(self._index, demand)
        view, score = found
        return Choice(view.record.node_id, fittest(view, demand), view.record.endpoint, score)

    def claim(self, job: Job, now: float) -> Claim | NoAvailableNode:
        """Select a place and take it in one step; asking again returns the same claim."""
        held = self._claims.of(job.job_id)
        if held is not None:
            return held
        choice = self.select(job, now)
        if isinstance(choice, NoAvailableNode):
            return choice
        claim = Claim(
            job_id=job.job_id,
            node_id=choice.node_id,
            gpu_uuids=choice.gpu_uuids,
            endpoint=choice.endpoint,
            granted_at=now,
            expires_at=self._claims.end_after(now),
            memory_mb=Demand.of(job).memory_mb,
            affinity_key=job.affinity_key,
        )
        return self._hold(self._index.views[choice.node_id], claim, now)

    def claims(self) -> list[Claim]:
        """Return every claim that is held, in no order."""
        return self._claims.all()

    def claim_of(self, job_id: str) -> Claim | None:
        """Return the claim that a job holds."""
        return self._claims.of(job_id)

    def view(self, node_id: str) -> NodeView | None:
        """Return a node as dispatch sees it, to be read at once; None when the id is not known."""
        return self._index.views.get(node_id)

    def release(self, job_id: str) -> Claim | None:
        """Give a job's place back; None when it holds none."""
        claim = self._claims.end(job_id)
        if claim is not None:
            self._vacate(claim)
        return claim

    def renew(self, job_id: str, now: float) -> Claim | None:
        """Keep a claim for one more TTL; None when it is not held."""
        claim = self._claims.renew(job_id, now)
        if claim is not None:
            self._index.views[claim.node_id].record.claims[job_id] = claim
            self._affinities.hold(claim.affinity_key, claim.node_id, now)
        return claim

    def expire(self, now: float, *, most: int | None = None, of_job: str | None = None) -> list[Claim]:
        """End claims whose time is over, and return them: so many, and that of `of_job` in any case."""
        over = self._claims.end_due(now, most)
        left = None if of_job is None else self._claims.of(of_job)
        if left is not None and left.expires_at <= now:
            self._claims.end(left.job_id)
            over.append(left)
        for claim in over:
            self._vacate(claim)
        return over

    def lose(self, node_id: str) -> list[Claim]:
        """End a node's claims because it went offline, and return them."""
        view = self._index.views.get(node_id)
        held = () if view is None else tuple(view.record.claims)
        return [claim for job_id in held if (claim := self.release(job_id)) is not None]

    def attach(self, claim: Claim) -> Claim | None:
        """Hold a claim exactly as it stands: found again, kept over a restart, or a change undone (§5).

        Asks no filter: its job may run already. None when its node is not known, or when its job has
        meanwhile been claimed on another.
        """
        view = self._index.views.get(claim.node_id)
        held = self._claims.of(claim.job_id)
        if view is None or (held is not None and held.node_id != claim.node_id):
            return None
        self.release(claim.job_id)
        return self._hold(view, claim, claim.granted_at)

    def explain(self, job: Job, now: float) -> Explanation:
        """Judge every node for a job (A-3): the able, best first, and each other's reason. O(nodes)."""
        return Explanation.of(job.job_id, self.explaining(job, now))

    def explaining(self, job: Job, now: float) -> Iterator[Able | Excluded]:
        """Judge the nodes for a job one by one; those that come or go meanwhile may be left out."""
        return judged(
            self._index,
            Demand.of(job),
            warm=self._affinities.warm(job.affinity_key, now),
            affinity_bonus=self._affinity_bonus,
        )

    def _best(self, demand: Demand, now: float) -> tuple[NodeView, int] | None:
        """Find the best able node and its score; the node warm for the job is tried beside the index."""
        best = self._index.best(demand, self._draw)
        if best is None:
            return None
        warm = self._index.views.get(self._affinities.warm(demand.job.affinity_key, now) or "")
        if (
            warm is None
            or warm.score + self._affinity_bonus < best.score
            or exclusion(warm, demand) is not None
        ):
            return best, best.score
        return warm, warm.score + self._affinity_bonus

    def _hold(self, view: NodeView, claim: Claim, now: float) -> Claim:
        record = view.record
        shown = claim.job_id in (record.reported_job_ids or ())
        for uuid in claim.gpu_uuids:
            gpu = record.gpus.get(uuid)
            used = 0 if gpu is None else used_mb(record, gpu)
            view.promises.setdefault(uuid, Promise()).make(claim.memory_mb, used, shown=shown)
        self._claims.hold(claim)
        record.claims[claim.job_id] = claim
        self._affinities.hold(claim.affinity_key, claim.node_id, now)
        self._index.file_promises(view)
        return claim

    def _vacate(self, claim: Claim) -> None:
        view = self._index.views[claim.node_id]
        view.record.claims.pop(claim.job_id, None)
        for uuid in claim.gpu_uuids:
            promise = view.promises[uuid]
            promise.end(claim.memory_mb)
            if not promise.claims:
                del view.promises[uuid]
        self._index.file_promises(view)
