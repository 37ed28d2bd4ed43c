"""Dispatch: which node takes a job, which GPUs, and which job holds which claim. Pure; chance is handed in.

Only this module writes `NodeRecord.claims`. It changes no status, stores and sends nothing: the fleet stores
what it returns before anything is sent.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from gpu_agent.registry.dispatch.candidate import (
    Candidate,
    ReservedMemory,
    free_mb,
    known_percent,
    usable_gpus,
    used_mb,
)
from gpu_agent.registry.dispatch.exclusions import Eligible, Excluded, Explanation, NoAvailableNode
from gpu_agent.registry.dispatch.explain import count_exclusions, explain_each, explain_node
from gpu_agent.registry.dispatch.filters import first_exclusion
from gpu_agent.registry.dispatch.index import Index
from gpu_agent.registry.gpus import GpuState
from gpu_agent.registry.job import Claim, Demand, Job
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.api import NodeExplanation

AFFINITY_SECONDS = 600.0
"""How long the node that last held an affinity key is preferred: its caches may still be warm."""

REMEMBERED_KEYS = 65536
"""Beyond so many affinity keys the one held longest ago is forgotten."""

_UNKNOWN_USE_PERCENT = 50.0

_FEW = 64
"""A heap with at most this many outdated entries is not rebuilt."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The best node for a job at this moment; nothing is reserved by it."""

    node_id: str
    gpu_uuids: tuple[str, ...]
    endpoint: str | None
    score: int
    """Of `candidate.score`, affinity included."""


class Dispatch:
    """All nodes and claims. Times are monotonic seconds; call `expire` before a claim is requested."""

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

    def update(self, record: NodeRecord) -> None:
        """Add a node, or take in whatever may have changed about it. O(1) in the size of the fleet."""
        self._index.update(record)

    def update_figures(self, record: NodeRecord, *, gpus: bool, load: bool) -> None:
        """Take in a known node of which only the GPUs' figures or the load may have changed."""
        self._index.update_figures(record, gpus=gpus, load=load)

    def update_suspected(self, records: Sequence[NodeRecord]) -> None:
        """Take in nodes that are suspected now, and changed in nothing else."""
        self._index.update_suspected(records)

    def remove(self, node_id: str) -> None:
        """Remove a node, with the claims on it."""
        self.lose(node_id)
        self._index.remove(node_id)

    def select(self, job: Job, now: float) -> Choice | NoAvailableNode:
        """Find the best eligible node (§5), or count what excludes every node (D-06)."""
        demand = Demand.of(job)
        found = self._best(demand, now)
        if found is None:
            return count_exclusions(self._index, demand)
        candidate, score = found
        record = candidate.record
        endpoint = record.declared.registration.endpoint
        return Choice(record.node_id, choose_gpus(candidate, demand), endpoint, score)

    def claim(self, job: Job, now: float) -> Claim | NoAvailableNode:
        """Select a node and reserve a slot in one step; the same job gets the same claim again."""
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
        return self._reserve(self._index.candidates[choice.node_id], claim, now)

    def claims(self) -> list[Claim]:
        """Return every claim, in no order."""
        return self._claims.all()

    def claim_of(self, job_id: str) -> Claim | None:
        """Return the claim that a job holds."""
        return self._claims.of(job_id)

    def release(self, job_id: str) -> Claim | None:
        """End a job's claim; None when it holds none."""
        claim = self._claims.end(job_id)
        if claim is not None:
            self._free(claim)
        return claim

    def renew(self, job_id: str, now: float) -> Claim | None:
        """Give a claim one more TTL; None when the job holds none."""
        claim = self._claims.renew(job_id, now)
        if claim is not None:
            self._index.candidates[claim.node_id].record.claims[job_id] = claim
            self._affinities.remember(claim.affinity_key, claim.node_id, now)
        return claim

    def renew_all(self, now: float) -> None:
        """Give every claim one fresh TTL (§4, restart)."""
        for claim in self._claims.all():
            self.renew(claim.job_id, now)

    def expire(self, now: float, *, most: int | None = None, of_job: str | None = None) -> list[Claim]:
        """End claims whose time is over, at most `most` and in any case that of `of_job`; returns them."""
        over = self._claims.end_due(now, most)
        left = None if of_job is None else self._claims.of(of_job)
        if left is not None and left.expires_at <= now:
            self._claims.end(left.job_id)
            over.append(left)
        for claim in over:
            self._free(claim)
        return over

    def lose(self, node_id: str) -> list[Claim]:
        """End a node's claims because it went offline; returns them."""
        candidate = self._index.candidates.get(node_id)
        held = () if candidate is None else tuple(candidate.record.claims)
        return [claim for job_id in held if (claim := self.release(job_id)) is not None]

    def attach(self, claim: Claim) -> Claim | None:
        """Hold a claim exactly as it is: a lost one whose job still runs, or one from before a restart (§5).

        No filter is asked, since the job may run already. Returns None when the node is not known, or when
        the job has meanwhile been claimed on another.
        """
        candidate = self._index.candidates.get(claim.node_id)
        held = self._claims.of(claim.job_id)
        if candidate is None or (held is not None and held.node_id != claim.node_id):
            return None
        self.release(claim.job_id)
        return self._reserve(candidate, claim, claim.granted_at)

    def explain(self, job: Job, now: float) -> Explanation:
        """Explain a job for each node (A-3): the eligible ones, best first, and each other's reason.

        O(nodes).
        """
        return Explanation.of(job.job_id, self.explain_each(job, now))

    def explain_each(self, job: Job, now: float) -> Iterator[Eligible | Excluded]:
        """Explain a job node by node; nodes that are added or removed meanwhile may be left out."""
        return explain_each(
            self._index,
            Demand.of(job),
            affinity_node=self._affinities.node_of(job.affinity_key, now),
            affinity_bonus=self._affinity_bonus,
        )

    def explain_node(self, node_id: str, now: float, model: str | None = None) -> NodeExplanation | None:
        """Explain which jobs a node is excluded from; None when the id is not known."""
        candidate = self._index.candidates.get(node_id)
        return None if candidate is None else explain_node(candidate, now, model)

    def _best(self, demand: Demand, now: float) -> tuple[Candidate, int] | None:
        """Find the best eligible node and its score, with the affinity bonus."""
        best = self._index.best(demand, self._draw)
        if best is None:
            return None
        near = self._index.candidates.get(self._affinities.node_of(demand.job.affinity_key, now) or "")
        if (
            near is None
            or near.score + self._affinity_bonus < best.score
            or first_exclusion(near, demand) is not None
        ):
            return best, best.score
        return near, near.score + self._affinity_bonus

    def _reserve(self, candidate: Candidate, claim: Claim, now: float) -> Claim:
        record = candidate.record
        shown = claim.job_id in (record.jobs.ids or ())
        for uuid in claim.gpu_uuids:
            gpu = record.gpus.get(uuid)
            used = 0 if gpu is None else used_mb(record, gpu)
            candidate.reserved.setdefault(uuid, ReservedMemory()).add(claim.memory_mb, used, shown=shown)
        self._claims.hold(claim)
        record.claims[claim.job_id] = claim
        self._affinities.remember(claim.affinity_key, claim.node_id, now)
        self._index.update_claims(candidate)
        return claim

    def _free(self, claim: Claim) -> None:
        candidate = self._index.candidates[claim.node_id]
        candidate.record.claims.pop(claim.job_id, None)
        for uuid in claim.gpu_uuids:
            reserved = candidate.reserved[uuid]
            reserved.remove(claim.memory_mb)
            if not reserved.claims:
                del candidate.reserved[uuid]
        self._index.update_claims(candidate)


def choose_gpus(candidate: Candidate, demand: Demand) -> tuple[str, ...]:
    """Choose GPUs of an eligible node for a job.

    Those with enough free memory: fewest claims first, then most free memory, then least busy.
    """
    record, reserved, needed = candidate.record, candidate.reserved, demand.memory_mb

    def rating(gpu: GpuState, free: int) -> tuple[int, int, float]:
        here = reserved.get(gpu.uuid)
        busy = known_percent(gpu.utilization_percent)
        return (0 if here is None else here.claims, -free, _UNKNOWN_USE_PERCENT if busy is None else busy)

    fitting: list[tuple[tuple[int, int, float], str]] = []
    for gpu in usable_gpus(record, demand.gpu_name):
        free = free_mb(record, gpu, reserved)
        if not needed or (free is not None and free >= needed):
            fitting.append((rating(gpu, free or 0), gpu.uuid))
    fitting.sort()
    return tuple(uuid for _, uuid in fitting[: max(demand.gpu_count, 0)])


class ClaimTable:
    """All claims by job, and their ends in order.

    A renewed claim leaves its old entry in the heap, where it is passed over.
    """

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
        """How many ends the heap holds, with the outdated ones."""
        return len(self._ends)

    def all(self) -> list[Claim]:
        """Return every claim, in no order."""
        return list(self._held.values())

    def of(self, job_id: str) -> Claim | None:
        """Return the claim that a job holds."""
        return self._held.get(job_id)

    def hold(self, claim: Claim) -> None:
        """Add a claim, or replace the one of its job."""
        self._held[claim.job_id] = claim
        heapq.heappush(self._ends, (claim.expires_at, claim.job_id))
        if len(self._ends) > 2 * len(self._held) + _FEW:
            self._ends = [(one.expires_at, job_id) for job_id, one in self._held.items()]
            heapq.heapify(self._ends)

    def end_after(self, now: float) -> float:
        """Return when a claim granted or renewed now ends."""
        return now + self._ttl

    def renew(self, job_id: str, now: float) -> Claim | None:
        """Give a claim one more TTL from now; None when the job holds none."""
        held = self._held.get(job_id)
        if held is None:
            return None
        renewed = replace(held, expires_at=self.end_after(now))
        self.hold(renewed)
        return renewed

    def end(self, job_id: str) -> Claim | None:
        """Remove a claim; None when the job holds none."""
        return self._held.pop(job_id, None)

    def end_due(self, now: float, most: int | None = None) -> list[Claim]:
        """Remove claims whose time is over, the earliest first, at most `most` of them; returns them."""
        over: list[Claim] = []
        while self._ends and self._ends[0][0] <= now and len(over) != most:
            at, job_id = heapq.heappop(self._ends)
            if self._is_end(at, job_id):
                over.append(self._held.pop(job_id))
        return over

    def _is_end(self, at: float, job_id: str) -> bool:
        held = self._held.get(job_id)
        return held is not None and held.expires_at == at


class AffinityTable:
    """Affinity keys with the node that last held each, the one held longest ago first."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[str, float]] = {}

    def remember(self, key: str | None, node_id: str, now: float) -> None:
        """Remember that a node holds a key now."""
        if key is None:
            return
        self._held.pop(key, None)
        self._held[key] = (node_id, now)
        if len(self._held) > REMEMBERED_KEYS:
            del self._held[next(iter(self._held))]

    def node_of(self, key: str | None, now: float) -> str | None:
        """Return the node that is preferred for a key."""
        held = None if key is None else self._held.get(key)
        return None if held is None or now - held[1] > AFFINITY_SECONDS else held[0]
