"""Dispatch: which node takes a job, which GPUs, and who holds which claim. Pure; chance is handed in.

Only this module writes `NodeRecord.claims`. It changes no status, stores and sends nothing: the fleet stores what it
returns before anything is sent.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from gpu_agent.registry.dispatch.candidate import Candidate, ReservedMemory, free_mb, usable_gpus, used_mb
from gpu_agent.registry.dispatch.explain import count_refusal, explain_each
from gpu_agent.registry.dispatch.filters import first_exclusion
from gpu_agent.registry.dispatch.index import Index
from gpu_agent.registry.dispatch.refusals import Eligible, Excluded, Explanation, NoAvailableNode
from gpu_agent.registry.dispatch.scoring import known_percent
from gpu_agent.registry.gpus import GpuState
from gpu_agent.registry.job import Claim, Demand, Job
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.settings import Thresholds

# Dispatch: which node takes a job, and who holds which place. Pure; chance is handed in.
#
# Alone writes `NodeRecord.claims`; everything else of a record is the fleet's. Changes no status, saves
# and
# sends nothing: what it returns is the fleet's to save before it is told.


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
        self._claims = ClaimTable(thresholds.claim_ttl_seconds)
        self._affinities = AffinityTable()

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
            return count_refusal(self._index, demand)
        view, score = found
        return Choice(view.record.node_id, choose_gpus(view, demand), view.record.endpoint, score)

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

    def view(self, node_id: str) -> Candidate | None:
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

    def renew_all(self, now: float) -> None:
        """Give every claim one fresh TTL (§4, restart)."""
        for claim in self._claims.all():
            self.renew(claim.job_id, now)

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
        """Hold a claim exactly as it is: attached again, or loaded after a restart (§5).

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

    def explaining(self, job: Job, now: float) -> Iterator[Eligible | Excluded]:
        """Judge the nodes for a job one by one; those that come or go meanwhile may be left out."""
        return explain_each(
            self._index,
            Demand.of(job),
            warm=self._affinities.warm(job.affinity_key, now),
            affinity_bonus=self._affinity_bonus,
        )

    def _best(self, demand: Demand, now: float) -> tuple[Candidate, int] | None:
        """Find the best able node and its score; the node warm for the job is tried beside the index."""
        best = self._index.best(demand, self._draw)
        if best is None:
            return None
        warm = self._index.views.get(self._affinities.warm(demand.job.affinity_key, now) or "")
        if (
            warm is None
            or warm.score + self._affinity_bonus < best.score
            or first_exclusion(warm, demand) is not None
        ):
            return best, best.score
        return warm, warm.score + self._affinity_bonus

    def _hold(self, view: Candidate, claim: Claim, now: float) -> Claim:
        record = view.record
        shown = claim.job_id in (record.reported_job_ids or ())
        for uuid in claim.gpu_uuids:
            gpu = record.gpus.get(uuid)
            used = 0 if gpu is None else used_mb(record, gpu)
            view.promises.setdefault(uuid, ReservedMemory()).make(claim.memory_mb, used, shown=shown)
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


# Which of a node's GPUs a job gets. Presumes that the node is able; judges and reserves nothing.


_UNKNOWN_USE_PERCENT = 50.0


def choose_gpus(view: Candidate, demand: Demand) -> tuple[str, ...]:
    """Choose GPUs with enough free memory: fewest claims first, then most free memory, then least busy."""
    record, promises, needed = view.record, view.promises, demand.memory_mb

    def rating(gpu: GpuState, free: int) -> tuple[int, int, float]:
        promise = promises.get(gpu.uuid)
        busy = known_percent(gpu.utilization_percent)
        return (
            0 if promise is None else promise.claims,
            -free,
            _UNKNOWN_USE_PERCENT if busy is None else busy,
        )

    fitting: list[tuple[tuple[int, int, float], str]] = []
    for gpu in usable_gpus(record, demand.gpu_name):
        free = free_mb(record, gpu, promises)
        if not needed or (free is not None and free >= needed):
            fitting.append((rating(gpu, free or 0), gpu.uuid))
    fitting.sort()
    return tuple(uuid for _, uuid in fitting[: max(demand.gpu_count, 0)])


# The book of claims: who holds which place, and when each ends unless renewed.
#
# Chooses no node and no GPU, touches no record. A claim that is renewed leaves its old entry in the heap,
# where it is passed over.


_FEW = 64
"""So many entries that are passed over are no reason to tidy up."""


class ClaimTable:
    """All claims by job, and their ends in order."""

    def __init__(self, ttl_seconds: float) -> None:
        self._ttl = ttl_seconds
        self._held: dict[str, Claim] = {}
        self._ends: list[tuple[float, str]] = []

    @property
    def next_expiry(self) -> float | None:
        """When the next claim ends unless renewed (monotonic seconds)."""
        ends = self._ends
        while ends and not self._is_end(*ends[0]):
            heapq.heappop(ends)
        return ends[0][0] if ends else None

    @property
    def entries(self) -> int:
        """How many ends are kept, with those that renewals have moved and that will be passed over."""
        return len(self._ends)

    def all(self) -> list[Claim]:
        """Return every claim that is held, in no order."""
        return list(self._held.values())

    def of(self, job_id: str) -> Claim | None:
        """Return the claim that a job holds."""
        return self._held.get(job_id)

    def hold(self, claim: Claim) -> None:
        """Enter a claim as it stands."""
        self._held[claim.job_id] = claim
        heapq.heappush(self._ends, (claim.expires_at, claim.job_id))
        if len(self._ends) > 2 * len(self._held) + _FEW:
            self._ends = [(one.expires_at, job_id) for job_id, one in self._held.items()]
            heapq.heapify(self._ends)

    def end_after(self, now: float) -> float:
        """Return when a claim granted or renewed now ends."""
        return now + self._ttl

    def renew(self, job_id: str, now: float) -> Claim | None:
        """Give a claim one more TTL from now; None when it is not held."""
        held = self._held.get(job_id)
        if held is None:
            return None
        renewed = replace(held, expires_at=self.end_after(now))
        self.hold(renewed)
        return renewed

    def end(self, job_id: str) -> Claim | None:
        """Strike a claim out; None when it is not held."""
        return self._held.pop(job_id, None)

    def end_due(self, now: float, most: int | None = None) -> list[Claim]:
        """Strike out claims whose time is over, the earliest first, and at most so many."""
        over: list[Claim] = []
        while self._ends and self._ends[0][0] <= now and len(over) != most:
            at, job_id = heapq.heappop(self._ends)
            if self._is_end(at, job_id):
                over.append(self._held.pop(job_id))
        return over

    def _is_end(self, at: float, job_id: str) -> bool:
        held = self._held.get(job_id)
        return held is not None and held.expires_at == at


# Which node last held an affinity key, for as long as its caches may still be warm. Scores nothing.


AFFINITY_SECONDS = 600.0
"""So long after a key was last held its node counts as warm."""

REMEMBERED_KEYS = 65536
"""Beyond so many keys the one held longest ago is forgotten."""


class AffinityTable:
    """Keys by when they were last held, the earliest first."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[str, float]] = {}

    def hold(self, key: str | None, node_id: str, now: float) -> None:
        """Remember that a node holds a key now."""
        if key is None:
            return
        self._held.pop(key, None)
        self._held[key] = (node_id, now)
        if len(self._held) > REMEMBERED_KEYS:
            del self._held[next(iter(self._held))]

    def warm(self, key: str | None, now: float) -> str | None:
        """Return the node that is warm for a key."""
        held = None if key is None else self._held.get(key)
        return None if held is None or now - held[1] > AFFINITY_SECONDS else held[0]
