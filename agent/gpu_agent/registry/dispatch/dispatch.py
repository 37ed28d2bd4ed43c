"""Dispatch: which nodes take a job, which GPUs, and which job holds which claim. Pure; chance is handed in.

Only this module writes `NodeRecord.claims` and `NodeRecord.held`. It changes no status, stores and sends
nothing: the fleet stores what it returns before anything is sent.
"""

import heapq
from collections.abc import Callable, Iterator, KeysView, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from gpu_agent.registry.dispatch.candidate import (
    Candidate,
    GpuHolder,
    QueueReservation,
    ReservedMemory,
)
from gpu_agent.registry.dispatch.exclusions import Eligible, Excluded, Explanation, NoAvailableNode
from gpu_agent.registry.dispatch.explain import count_exclusions, explain_each, explain_node
from gpu_agent.registry.dispatch.filters import first_exclusion, lacks_only_capacity
from gpu_agent.registry.dispatch.gpu_allocation import choose_gpus, has_free_gpus, reclaimable, used_mb
from gpu_agent.registry.dispatch.gpu_identity import GpuIdentities
from gpu_agent.registry.dispatch.gpu_status import gpu_statuses
from gpu_agent.registry.dispatch.index import Freed, Index
from gpu_agent.registry.gpus import Difference, GpuState
from gpu_agent.registry.job import (
    LARGEST_CLAIM_BYTES,
    Claim,
    ClaimEnd,
    Demand,
    GpuDemand,
    Grant,
    HeldGrant,
    Job,
    Sharing,
    sharing_of,
    size_of,
    size_of_grants,
)
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.api import NodeExplanation
from gpu_agent.wire.codes import GpuStatus, NodeStatus

AFFINITY_SECONDS = 600.0
"""How long the node that last held an affinity key is preferred: its caches may still be warm."""

REMEMBERED_KEYS = 65536
"""Beyond so many affinity keys the one held longest ago is forgotten."""

LOST_PER_NODE = 1024
"""Beyond so many lost claims without GPUs of one node the one lost longest ago is forgotten."""

SLOT_ONLY = GpuDemand(None, 1, "", 0, (0, 0))
"""What a job without GPUs of its own needs: one GPU that no exclusive claim holds."""

_FEW = 64
"""A heap with at most this many outdated entries is not rebuilt."""


class Choice(NamedTuple):
    """The best nodes for a job at this moment; nothing is reserved by it."""

    grants: tuple[Grant, ...]
    score: int
    """Of the first node, by `candidate.score`, affinity included."""


@dataclass(slots=True, eq=False)
class _Placing:
    """One node of a placement."""

    candidate: Candidate
    gpus: list[GpuState]
    score: int


class Dispatch:
    """All nodes and claims. Times are monotonic seconds; call `expire` before a claim is requested."""

    def __init__(self, thresholds: Thresholds, draw: Callable[[], float]) -> None:
        self._draw = draw
        self._affinity_bonus = thresholds.affinity_bonus
        candidates: dict[str, Candidate] = {}
        self._identities = GpuIdentities(candidates)
        self._index = Index(thresholds, candidates, why_elsewhere=self._identities.why_not)
        self._claims = ClaimTable(thresholds.claim_ttl_seconds)
        self._held_by_key: dict[str, HeldGrant] = {}
        self._held_of_job: dict[str, dict[str, None]] = {}
        """The keys of what ended claims of a job still hold."""
        self._affinities = AffinityTable()

    @property
    def next_expiry(self) -> float | None:
        """When the next claim ends unless renewed."""
        return self._claims.next_expiry

    @property
    def changes(self) -> int:
        """Grows whenever something changed that may let a waiting job in, or moves a reservation."""
        return self._index.changes

    @property
    def changed_nodes(self) -> set[str]:
        """Nodes of which something that people see may have changed; the fleet's view empties it."""
        return self._index.changed_nodes

    def gpu_statuses(self, node_id: str, is_idle: Callable[[str], bool]) -> tuple[GpuStatus, ...]:
        """Return what each GPU of a node is for jobs now, without the parents of MIG devices.

        `is_idle` says of a job whether its claim leaves its GPUs idle.
        """
        candidate = self._index.candidates.get(node_id)
        return () if candidate is None else gpu_statuses(candidate, is_idle)

    def has_freed(self) -> bool:
        """Whether a node may take jobs that it did not take at the last `take_freed`."""
        return self._index.has_freed()

    def take_freed(self, besides: Freed | None = None) -> Freed:
        """Return the nodes that may take jobs that they did not take at the last call, and `besides`."""
        return self._index.take_freed(besides)

    def is_left(self, freed: Freed, demand: Demand) -> bool:
        """Whether a reservation leaves one of these nodes to a job, and so to all of its `claimant_of`."""
        return self._index.is_left(freed, demand)

    def jobs_with_held(self) -> KeysView[str]:
        """Return the ids of the jobs whose ended claims still hold something."""
        return self._held_of_job.keys()

    def may_take(self, demand: Demand, freed: Freed) -> bool:
        """Whether a job that found no node may find one, now that these were freed."""
        job_id = demand.job.job_id
        own = [one.node_id for one in self.held_of(job_id)] if job_id in self._held_of_job else ()
        return self._index.may_take(demand, freed, own=own)

    def update(self, record: NodeRecord) -> None:
        """Add a node, or take in whatever may have changed about it. O(1) in the size of the fleet."""
        candidate = self._index.candidate_of(record)
        gpus, offline, registered_at = candidate.identity
        identity = (record.gpus, record.status is NodeStatus.OFFLINE, record.registered_at)
        is_other = gpus is not record.gpus or (offline, registered_at) != identity[1:]
        affected: list[Candidate] = []
        if is_other:
            candidate.identity = identity
            affected = self._identities.update(candidate)
        self._index.update(record, identity=is_other)  # a claim elsewhere may be on a MIG relative
        for one in affected:
            if one is not candidate:
                self._index.update_claims(one)

    def update_figures(self, record: NodeRecord, *, gpus: Difference, load: Difference) -> None:
        """Take in a known node of which nothing but the GPUs' figures and the load has changed."""
        self._index.update_figures(record, gpus=gpus, load=load)

    def update_suspected(self, records: Sequence[NodeRecord]) -> None:
        """Take in nodes that are suspected now, and changed in nothing else."""
        self._index.update_suspected(records)

    def update_cordons(self, record: NodeRecord) -> None:
        """Take in that one GPU of a node was cordoned, or its cordon lifted."""
        self._index.update_claims(self._index.candidates[record.node_id])

    def remove(self, node_id: str) -> list[HeldGrant]:
        """Remove a node, with the claims on it; returns what they held there."""
        for claim in self.claims_on(node_id):
            self.end(claim.job_id, ClaimEnd.LOST, claim.granted_at)
        candidate = self._index.candidates.get(node_id)
        held = [] if candidate is None else list(candidate.record.held.values())
        for one in held:
            self.drop_held(one)
        self._index.remove(node_id)
        for affected in self._identities.remove(node_id):
            self._index.update_claims(affected)
        return held

    def select(self, job: Job, now: float) -> Choice | NoAvailableNode:
        """Find the best eligible nodes (§5), or count what excludes every node (D-06)."""
        demand = Demand.of(job)
        placed = self._place(demand, now)
        if placed is None:
            return count_exclusions(self._index, demand)
        return Choice(tuple([_grant(one) for one in placed]), placed[0].score)

    def held_at(self, key: str) -> HeldGrant | None:
        """Return what an ended claim still holds on a node, by its `HeldGrant.key`."""
        return self._held_by_key.get(key)

    def claim(
        self, job: Job, now: float, *, claim_id: str, owner: str | None
    ) -> tuple[Claim, list[HeldGrant]] | NoAvailableNode | None:
        """Select nodes and reserve them in one step, all or none; the job must hold no claim.

        Returns the claim, and what earlier claims of this job held on its nodes and hold no more; None where
        the claim would take more than `LARGEST_CLAIM_BYTES`.
        """
        demand = Demand.of(job)
        own = [one for one in self.held_of(job.job_id) if one.claim.owner == owner]
        self._reclaim(own)
        placed = self._place(demand, now)
        if placed is None:
            self._end_reclaim(own)
            return count_exclusions(self._index, demand)
        grants = tuple(_grant(one) for one in placed)
        if size_of(job) + size_of_grants(grants) > LARGEST_CLAIM_BYTES:
            self._end_reclaim(own)
            return None
        nodes = {grant.node_id for grant in grants}
        ended = [one for one in own if one.node_id in nodes]
        for one in ended:
            self.drop_held(one)
        ttl = self._claims.ttl_of(job)
        claim = Claim(
            claim_id=claim_id,
            job=job,
            owner=owner,
            grants=grants,
            granted_at=now,
            expires_at=now + ttl,
            ttl_seconds=ttl,
        )
        self._reserve(claim, now)
        self._end_reclaim(own)
        return claim, ended

    def claims(self) -> list[Claim]:
        """Return every claim, in no order."""
        return self._claims.all()

    def claims_on(self, node_id: str) -> list[Claim]:
        """Return the claims on a node."""
        candidate = self._index.candidates.get(node_id)
        return [] if candidate is None else list(candidate.record.claims.values())

    def claim_of(self, job_id: str) -> Claim | None:
        """Return the claim that a job holds."""
        return self._claims.of(job_id)

    def held_of(self, job_id: str) -> list[HeldGrant]:
        """Return what ended claims of a job still hold."""
        return [self._held_by_key[key] for key in self._held_of_job.get(job_id, ())]

    def held(self) -> list[HeldGrant]:
        """Return all that ended claims still hold."""
        return list(self._held_by_key.values())

    def renew(self, job_id: str, now: float, ttl_seconds: float | None = None) -> Claim | None:
        """Give a claim one more TTL, or another one; None when the job holds none."""
        claim = self._claims.renew(job_id, now, ttl_seconds)
        if claim is not None:
            for grant in claim.grants:
                self._index.candidates[grant.node_id].record.claims[job_id] = claim
            self._affinities.remember(claim.job.affinity_key, claim.grants[0].node_id, now)
        return claim

    def renew_all(self, now: float) -> list[Claim]:
        """Give every claim one fresh TTL (§4, restart); returns them."""
        renewed = (self.renew(claim.job_id, now) for claim in list(self._claims.all()))
        return [claim for claim in renewed if claim is not None]

    def due(self, now: float, *, most: int | None = None, of_job: str | None = None) -> list[Claim]:
        """Return claims whose time is over, at most `most` and in any case that of `of_job`."""
        over = self._claims.due(now, most)
        asked = None if of_job is None else self._claims.of(of_job)
        if asked is not None and asked.expires_at <= now and asked not in over:
            over.append(asked)
        return over

    def end(self, job_id: str, end: ClaimEnd, now: float) -> tuple[Claim, list[HeldGrant]] | None:
        """End a job's claim; None when it holds none.

        After anything but a release its job may still run: what the claim reserved stays held, and is
        returned besides, with what is forgotten for it.
        """
        claim = self._claims.end(job_id)
        if claim is None:
            return None
        held = []
        for grant in claim.grants:
            candidate = self._index.candidates.get(grant.node_id)
            if candidate is None:
                continue
            candidate.record.claims.pop(job_id, None)
            self._vacate(candidate, claim, grant.gpu_uuids)
            if end is ClaimEnd.RELEASED:
                self._note_end(candidate, grant.gpu_uuids, now)
                candidate.record.jobs = candidate.record.jobs.without(job_id)
            elif grant.gpu_uuids or end is ClaimEnd.LOST:
                one = HeldGrant(
                    claim=claim, node_id=grant.node_id, gpu_uuids=grant.gpu_uuids, end=end, ended_at=now
                )
                self._occupy(candidate, one.claim, one.gpu_uuids, ended=True)
                held += [one, *self._list_held(candidate, one)]
            self._taken_in(candidate, grant.gpu_uuids)
        return claim, held

    def note_worker_use(self, claim: Claim, now: float) -> None:
        """Write when a job without GPUs of its own last used a worker on its nodes."""
        if sharing_of(claim.job) is None:
            for grant in claim.grants:
                candidate = self._index.candidates.get(grant.node_id)
                if candidate is not None:
                    candidate.record.last_job_at = now

    def hold(self, held: HeldGrant) -> bool:
        """Hold what an ended claim held, as after a restart; False when its node is not known."""
        candidate = self._index.candidates.get(held.node_id)
        if candidate is None:
            return False
        self._occupy(candidate, held.claim, held.gpu_uuids, ended=True)
        self._list_held(candidate, held)
        self._taken_in(candidate, held.gpu_uuids)
        return True

    def hold_lost(self, claim: Claim, now: float) -> list[HeldGrant]:
        """Hold what a claim reserved on those of its nodes that are known, as one of them is not."""
        lost = [
            HeldGrant(
                claim=claim, node_id=one.node_id, gpu_uuids=one.gpu_uuids, end=ClaimEnd.LOST, ended_at=now
            )
            for one in claim.grants
        ]
        return [one for one in lost if self.hold(one)]

    def shrink_held(self, held: HeldGrant, left: tuple[str, ...], now: float) -> HeldGrant | None:
        """Let some of the held GPUs go; returns what is still held."""
        self.drop_held(held)
        candidate = self._index.candidates[held.node_id]
        self._note_end(candidate, [uuid for uuid in held.gpu_uuids if uuid not in left], now)
        if not left:
            self._taken_in(candidate, held.gpu_uuids)
            return None
        still = replace(held, gpu_uuids=left)
        self.hold(still)
        return still

    def replace_held(self, held: HeldGrant) -> None:
        """Write how long a node has reported nothing about what is held there."""
        candidate = self._index.candidates[held.node_id]
        self._list_held(candidate, held)

    def drop_held(self, held: HeldGrant) -> None:
        """Hold nothing any more for an ended claim on a node."""
        claim, node_id = held.claim, held.node_id
        self._held_by_key.pop(held.key, None)
        of_job = self._held_of_job.get(claim.job_id, {})
        of_job.pop(held.key, None)
        if not of_job:
            self._held_of_job.pop(claim.job_id, None)
        candidate = self._index.candidates.get(node_id)
        if candidate is not None and candidate.record.held.pop(claim.claim_id, None) is not None:
            self._vacate(candidate, claim, held.gpu_uuids, ended=True)
            self._taken_in(candidate, held.gpu_uuids)

    def attach(self, claim: Claim) -> Claim | None:
        """Hold a claim exactly as it is: a lost one whose job still runs, or one from before a restart (§5).

        No filter is asked, since the job may run already. Returns None when one of its nodes is not known, or
        when the job holds another claim meanwhile.
        """
        current = self._claims.of(claim.job_id)
        if current is not None and current.claim_id != claim.claim_id:
            return None
        if any(grant.node_id not in self._index.candidates for grant in claim.grants):
            return None
        if current is not None:
            self.end(claim.job_id, ClaimEnd.RELEASED, claim.granted_at)
        for held in self.held_of(claim.job_id):
            if held.claim.claim_id == claim.claim_id:
                self.drop_held(held)
        self._reserve(claim, claim.granted_at)
        return claim

    def explain(self, job: Job, now: float) -> Explanation:
        """Explain a job for each node (A-3): the eligible ones, best first, and each other's reason.

        O(nodes).
        """
        return Explanation.of(job, self.explain_each(job, now))

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

    def could_ever_take(self, job: Job) -> bool:
        """Whether today's nodes could take a job if they were all ready, connected and empty (§5.4)."""
        return self._index.could_ever_take(Demand.of(job))

    def nodes_to_reserve(self, job: Job, but: frozenset[str]) -> list[str]:
        """Return the nodes with the fewest missing GPUs among those that only lack capacity (§5.4)."""
        return [one.record.node_id for one in self._index.with_fewest_missing(Demand.of(job), but)]

    def lacks_only_capacity(self, job: Job, node_id: str) -> bool:
        """Whether a node would take a job if it had the free GPUs and a slot."""
        candidate = self._index.candidates.get(node_id)
        return candidate is not None and lacks_only_capacity(candidate, Demand.of(job))

    def takes_slots(self, node_id: str) -> bool:
        """Whether a node has a GPU for a job without GPUs of its own: no claim's, and not cordoned."""
        candidate = self._index.candidates.get(node_id)
        return candidate is not None and has_free_gpus(candidate, SLOT_ONLY)

    def reserve(self, node_id: str, job: Job | None, since: float = 0.0) -> None:
        """Keep others from what a waiting job needs on a node; None ends that."""
        candidate = self._index.candidates.get(node_id)
        if candidate is not None:
            reservation = (
                None
                if job is None
                else QueueReservation(job.job_id, job.priority, Demand.of(job).gpus, since)
            )
            self._index.reserve(candidate, reservation)

    def _place(self, demand: Demand, now: float) -> list[_Placing] | None:
        """Choose a job's nodes and GPUs, all or none."""
        if demand.job.nodes == 1:
            best = self._best(demand, now, but=0)
            return None if best is None else [best]
        placed: list[_Placing] = []
        uuids, parents = set[str](), set[str]()
        left_out = 0
        while len(placed) < demand.job.nodes:
            found = self._best(demand, now, but=left_out)
            if found is None:
                return None
            left_out |= 1 << found.candidate.position
            if not any(_is_among(gpu, uuids, parents) for gpu in found.gpus):
                placed.append(found)
                uuids.update(gpu.uuid for gpu in found.gpus if not gpu.uuid.startswith("#"))
                parents.update(gpu.parent_uuid for gpu in found.gpus if gpu.parent_uuid is not None)
        return placed

    def _best(self, demand: Demand, now: float, *, but: int) -> _Placing | None:
        """Find the best eligible node and its score, with the affinity bonus."""
        best = self._index.best(demand, self._draw, but=but)
        if best is None:
            return None
        chosen, score = best, best.score
        node_id = self._affinities.node_of(demand.job.affinity_key, now)
        near = None if node_id is None else self._index.candidates.get(node_id)
        if (
            near is not None
            and not but >> near.position & 1
            and near.score + self._affinity_bonus >= best.score
            and first_exclusion(near, demand) is None
        ):
            chosen, score = near, near.score + self._affinity_bonus
        return _Placing(chosen, choose_gpus(chosen, demand.gpus), score)

    def _reclaim(self, own: Sequence[HeldGrant]) -> None:
        """Let what is held for a job be no obstacle to the job itself."""
        for one in own:
            candidate = self._index.candidates[one.node_id]
            candidate.reclaiming, candidate.reclaimed = reclaimable(candidate, one), one.claim.claim_id
            self._index.update_claims(candidate, made=True)  # this frees nothing for others

    def _end_reclaim(self, own: Sequence[HeldGrant]) -> None:
        for one in own:
            candidate = self._index.candidates[one.node_id]
            candidate.reclaiming, candidate.reclaimed = {}, None
            self._index.update_claims(candidate, made=True)

    def _reserve(self, claim: Claim, now: float) -> None:
        self._claims.hold(claim)
        for grant in claim.grants:
            candidate = self._index.candidates[grant.node_id]
            candidate.record.claims[claim.job_id] = claim
            self._occupy(candidate, claim, grant.gpu_uuids)
            self._taken_in(candidate, grant.gpu_uuids, made=True)
        self._affinities.remember(claim.job.affinity_key, claim.grants[0].node_id, now)

    def _occupy(
        self, candidate: Candidate, claim: Claim, uuids: Sequence[str], *, ended: bool = False
    ) -> None:
        """Count a claim's GPUs on a node as held."""
        record, sharing = candidate.record, sharing_of(claim.job)
        if not record.gpus.keys() >= set(uuids):
            self._identities.remember_parents(claim.on(record.node_id))
        if sharing is None:
            candidate.slot_only += not ended
        elif sharing is Sharing.EXCLUSIVE:
            holder = GpuHolder(claim.claim_id, claim.job_id, record.node_id, exclusive=True, ended=ended)
            candidate.exclusive.update(dict.fromkeys(uuids, holder))
            for uuid in uuids:
                self._identities.hold(record.node_id, uuid, str(holder))
        else:
            ids = record.jobs.ids
            for uuid in uuids:
                shown = uuid in candidate.reclaiming if ids is None else claim.job_id in ids
                gpu = record.gpus.get(uuid)
                used = 0 if gpu is None else used_mb(record, gpu)
                reserved = candidate.reserved.setdefault(uuid, ReservedMemory())
                reserved.add(claim.job.min_gpu_memory_mb or 0, used, shown=shown)
                self._identities.hold(record.node_id, uuid, "shared by claims")

    def _vacate(
        self, candidate: Candidate, claim: Claim, uuids: Sequence[str], *, ended: bool = False
    ) -> None:
        """Count a claim's GPUs on a node as held no more."""
        sharing = sharing_of(claim.job)
        if sharing is None:
            candidate.slot_only -= not ended
        elif sharing is Sharing.EXCLUSIVE:
            for uuid in uuids:
                holder = candidate.exclusive.get(uuid)
                if holder is not None and holder.claim_id == claim.claim_id:
                    del candidate.exclusive[uuid]
                    self._identities.free(candidate.record.node_id, uuid)
        else:
            for uuid in uuids:
                reserved = candidate.reserved[uuid]
                reserved.remove(claim.job.min_gpu_memory_mb or 0)
                if not reserved.claims:
                    del candidate.reserved[uuid]
                    self._identities.free(candidate.record.node_id, uuid)

    def _note_end(self, candidate: Candidate, uuids: Sequence[str], now: float) -> None:
        """Only readings made from now on show what uses these GPUs."""
        candidate.ended_at.update(dict.fromkeys(uuids, now))

    def _taken_in(self, candidate: Candidate, uuids: Sequence[str], *, made: bool = False) -> None:
        """Take in that a claim on these GPUs of a node was made, or has changed."""
        self._index.update_claims(candidate, made=made)
        for concerned in self._identities.concerned(candidate.record.node_id, uuids):
            self._index.update_claims(concerned, made=made)

    def _list_held(self, candidate: Candidate, held: HeldGrant) -> list[HeldGrant]:
        """List what an ended claim holds; returns what is forgotten because a node has too many of these."""
        record = candidate.record
        record.held[held.claim.claim_id] = held
        self._held_by_key[held.key] = held
        self._held_of_job.setdefault(held.claim.job_id, {})[held.key] = None
        if held.gpu_uuids or len(record.held) <= LOST_PER_NODE:
            return []
        without_gpus = [one for one in record.held.values() if not one.gpu_uuids]
        forgotten = without_gpus[: max(0, len(without_gpus) - LOST_PER_NODE)]
        for one in forgotten:
            self.drop_held(one)
        return forgotten


def _grant(placing: _Placing) -> Grant:
    record, gpus = placing.candidate.record, placing.gpus
    registration = record.declared.registration
    parents = [gpu.parent_uuid or "" for gpu in gpus] if record.gpus.devices else ()
    return Grant(
        node_id=record.node_id,
        hostname=registration.hostname,
        endpoint=registration.endpoint,
        gpu_uuids=tuple([gpu.uuid for gpu in gpus]),
        gpu_indices=tuple([gpu.index for gpu in gpus]),
        gpu_parents=tuple(parents) if any(parents) else (),
        gpu_list=record.gpus.list_id,
    )


def _is_among(gpu: GpuState, uuids: set[str], parents: set[str]) -> bool:
    """Whether a GPU is one of these of other nodes, or a part of one, or one of their MIG parents."""
    return gpu.uuid in uuids or gpu.parent_uuid in uuids or gpu.uuid in parents


class ClaimTable:
    """All claims by job, and their ends in order.

    A renewed claim leaves its old entry in the heap, where it is passed over.
    """

    def __init__(self, default_ttl_seconds: float) -> None:
        self._default_ttl_seconds = default_ttl_seconds
        self._held: dict[str, Claim] = {}
        self._ends: list[tuple[float, str]] = []

    @property
    def next_expiry(self) -> float | None:
        """When the next claim ends unless renewed (monotonic seconds)."""
        self._drop_outdated()
        return self._ends[0][0] if self._ends else None

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

    def ttl_of(self, job: Job) -> float:
        """Return the TTL that a job's claim gets."""
        return self._default_ttl_seconds if job.ttl_seconds is None else job.ttl_seconds

    def hold(self, claim: Claim) -> None:
        """Add a claim, or replace the one of its job."""
        self._held[claim.job_id] = claim
        heapq.heappush(self._ends, (claim.expires_at, claim.job_id))
        if len(self._ends) > 2 * len(self._held) + _FEW:
            self._ends = [(one.expires_at, job_id) for job_id, one in self._held.items()]
            heapq.heapify(self._ends)

    def renew(self, job_id: str, now: float, ttl_seconds: float | None = None) -> Claim | None:
        """Give a claim one more TTL from now, or another one; None when the job holds none."""
        held = self._held.get(job_id)
        if held is None:
            return None
        ttl = held.ttl_seconds if ttl_seconds is None else ttl_seconds
        renewed = replace(held, expires_at=now + ttl, ttl_seconds=ttl)
        self.hold(renewed)
        return renewed

    def end(self, job_id: str) -> Claim | None:
        """Remove a claim; None when the job holds none."""
        return self._held.pop(job_id, None)

    def due(self, now: float, most: int | None = None) -> list[Claim]:
        """Return claims whose time is over, the earliest first, at most `most` of them."""
        over: list[Claim] = []
        while self._ends and self._ends[0][0] <= now and len(over) != most:
            at, job_id = heapq.heappop(self._ends)
            entered_twice = bool(over) and over[-1].job_id == job_id
            if self._is_end(at, job_id) and not entered_twice:
                over.append(self._held[job_id])
        return over

    def _drop_outdated(self) -> None:
        while self._ends and not self._is_end(*self._ends[0]):
            heapq.heappop(self._ends)

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
