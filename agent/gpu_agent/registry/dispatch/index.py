"""Every node by what it can do and by its score, so that the best eligible node is found without a scan.

A node has a position; an ability is a bitset of the positions that have it, a score is a column of bits. A
query is a handful of `&`, whatever the size of the fleet. What the index holds follows from the keys of the
filters. It is exact in everything but free GPU memory, which it holds in steps: of the nodes that it finds,
those within one step of what a job needs are looked at one by one.
"""

from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from itertools import chain
from operator import neg
from typing import assert_never

from gpu_agent.registry.dispatch.bitset import FEW, Column, Postings, bitset_of, members, pick
from gpu_agent.registry.dispatch.candidate import Candidate, QueueReservation, best_score, score
from gpu_agent.registry.dispatch.filter_row import Filter, GpuKey, Keys, NodeIds, NodeState
from gpu_agent.registry.dispatch.filters import (
    FILTERS,
    lacks_only_capacity,
    unschedulable_reason,
)
from gpu_agent.registry.dispatch.gpu_allocation import (
    availability,
    available_mb,
    declared_set,
    gpu_set,
    has_a_step_more,
    has_foreign_jobs,
    has_free_gpus,
    reading_at,
    sharable_gpus,
    used_without_claim,
)
from gpu_agent.registry.dispatch.node_filters import is_gpu_busy
from gpu_agent.registry.dispatch.reservation import is_kept_from, left_after_claims
from gpu_agent.registry.gpus import STEP_MB, Difference, GpuState
from gpu_agent.registry.job import Demand, GpuDemand, GpuKind, GpuSet, Sharing, meets
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.codes import ExclusionReason

RANKS = (8, 4, 2, 1)
"""For each of these k the index knows how much memory the k-th freest usable GPU of a node has."""

_PLACES = tuple(bisect_left(RANKS, -number, key=neg) for number in range(RANKS[0] + 1))
"""By how many GPUs a job needs: the place among `RANKS` of the largest that is not more."""

_LEVEL_WIDTH = 12
"""Bits of a number of steps of free memory; 0 is no such GPU, or less than one step."""

_TAKEN_WIDTH = 8
"""Bits of the number of GPUs that exclusive claims hold on a node."""

_REMEMBERED_DEMANDS = 128
"""Beyond so many different demands for GPUs all answers are dropped, and computed again when needed."""

_Query = Callable[[Demand, int], int]
"""Returns those of a set of positions whose nodes may pass a filter."""


class Index:
    """All nodes, found by ability and score."""

    def __init__(
        self,
        limits: Thresholds,
        candidates: dict[str, Candidate] | None = None,
        *,
        why_elsewhere: Callable[[Candidate, GpuState], str | None] = lambda *_: None,
    ) -> None:
        self._limits = limits
        self._why_elsewhere = why_elsewhere
        self._by_position: list[Candidate | None] = []
        self._spare: list[int] = []
        self.candidates = {} if candidates is None else candidates
        self.unschedulable: dict[ExclusionReason | None, int] = dict.fromkeys((None, *ExclusionReason), 0)
        """Positions by what excludes their node whatever the job; None holds the nodes open to jobs."""
        self._keys = [(one.key, Postings[Hashable]()) for one in FILTERS if isinstance(one.key, Keys)]
        """Each row's own; `Candidate.keys` has the same order."""
        self._declared = GpuCounts(lambda position: self.at(position).sound)
        self._usable = GpuCounts(lambda position: self.at(position).usable)
        self._unheld = GpuCounts(lambda position: self.at(position).unheld)
        self._free = GpuCounts(lambda position: self.at(position).free)
        self._left = GpuCounts(lambda position: self.at(position).left)
        """Of the sets of GPUs of `Candidate`."""
        self._busy = 0
        """Positions with GPU use above its limit."""
        self._reserved: dict[int, Candidate] = {}
        """By position: the nodes on which a waiting job keeps others from what it needs."""
        self._scores = Column(best_score(limits).bit_length())
        self._taken = Column(_TAKEN_WIDTH)
        self.changed_nodes: set[str] = set()
        """Nodes, removed ones too, of which something that people see may have changed; the fleet's view
        empties it."""
        self.changes = 0
        """Grows whenever something changed that may let a waiting job in, or moves a reservation."""
        self._freed: set[int] = set()
        """Positions of the nodes that may take jobs that they did not take at the last `take_freed`."""
        self._room = tuple(Column(_LEVEL_WIDTH) for _ in RANKS)
        self.queries = [(one, self._query(one)) for one in FILTERS]
        """How each filter is asked of all nodes, in the order of the filters."""
        self._job_queries = [
            query
            for one, query in self.queries
            if not isinstance(one.key, NodeState | Keys) and one.key is not GpuKey.USABLE
        ]
        """What jobs are asked besides `_keys`; a node whose GPUs are free has them usable."""

    def candidate_of(self, record: NodeRecord) -> Candidate:
        """Return a node with this record; one that is not known is added."""
        candidate = self.candidates.get(record.node_id)
        if candidate is None:
            candidate = self._add(record)
        if candidate.record is not record:
            record.claims.update(candidate.record.claims)
            candidate.record = record
        return candidate

    def update(self, record: NodeRecord, *, identity: bool = False) -> Candidate:
        """Add a node, or take in whatever may have changed about it; with `identity` whose its GPUs are."""
        candidate = self.candidate_of(record)
        if record.declared is not candidate.declared:
            self._update_keys(candidate)
            self.changes += 1
        self.changed_nodes.add(record.node_id)
        self._freed.add(candidate.position)
        if identity:
            self._update_gpu_sets(candidate)
        else:
            self._update_gpus(candidate)
        self._update_state(candidate)
        return candidate

    def update_figures(self, record: NodeRecord, *, gpus: Difference, load: Difference) -> None:
        """Take in a node of which only these figures have changed."""
        candidate = self.candidates[record.node_id]
        if gpus:
            self._freed.add(candidate.position)
            if gpus is Difference.AMOUNT:
                self._update_room(candidate)
            elif self._update_gpus(candidate):
                load = Difference.MORE
        if load is Difference.MORE:
            self._update_state(candidate)
        elif load:
            self._update_score(candidate)

    def update_claims(self, candidate: Candidate, *, made: bool = False) -> None:
        """Take in that a claim on a node was made or has ended, or what keeps its GPUs from being free."""
        if not made:
            self._freed.add(candidate.position)
        self._update_gpu_sets(candidate)
        self._update_state(candidate)

    def reserve(self, candidate: Candidate, reservation: QueueReservation | None) -> None:
        """Keep others from what a waiting job needs on a node; None ends that."""
        candidate.reservation = reservation
        self.changed_nodes.add(candidate.record.node_id)
        if self._reserved.pop(candidate.position, None) is not None:
            self._freed.add(candidate.position)
        if reservation is None:
            self.changes += 1
        else:
            self._reserved[candidate.position] = candidate

    def update_suspected(self, records: Sequence[NodeRecord]) -> None:
        """Take in nodes, perhaps most of a fleet, that became suspected and changed in nothing else."""
        moved: dict[tuple[ExclusionReason | None, ExclusionReason | None], list[int]] = {}
        self.changed_nodes.update(record.node_id for record in records)
        for record in records:
            candidate = self.candidates[record.node_id]
            before, now = candidate.unschedulable, unschedulable_reason(record, self._limits)
            if now is not before:
                moved.setdefault((before, now), []).append(candidate.position)
                candidate.unschedulable = now
        for (before, now), positions in moved.items():
            bits = bitset_of(positions)
            self.unschedulable[before] ^= bits
            self.unschedulable[now] ^= bits

    def remove(self, node_id: str) -> None:
        """Remove a node; its position serves another."""
        candidate = self.candidates.pop(node_id, None)
        if candidate is None:
            return
        self.changed_nodes.add(node_id)
        position, bit = candidate.position, 1 << candidate.position
        for (_, postings), keys in zip(self._keys, candidate.keys, strict=True):
            postings.move(position, keys, frozenset())
        self._declared.move(position, candidate.sound, None)
        self._usable.move(position, candidate.usable, None)
        self._unheld.move(position, candidate.unheld, None)
        self._free.move(position, candidate.free, None)
        self._left.move(position, candidate.left, None)
        self._taken.change(bit, candidate.taken, 0)
        self._busy &= ~bit
        self._reserved.pop(position, None)
        self._freed.discard(position)
        for column, level in zip(self._room, candidate.room, strict=True):
            column.change(bit, level, 0)
        self._scores.change(bit, candidate.score, 0)
        self.unschedulable[candidate.unschedulable] ^= bit
        self._by_position[position] = None
        self._spare.append(position)

    def at(self, position: int) -> Candidate:
        """Return the node at an occupied position."""
        candidate = self._by_position[position]
        if candidate is None:
            raise KeyError(position)
        return candidate

    def best(self, demand: Demand, draw: Callable[[], float], *, but: int = 0) -> Candidate | None:
        """Return an eligible node of the best score, ties at random, or None when no node is eligible.

        Exclusive claims prefer the nodes with the most GPUs taken, so that whole nodes stay free (§5.2).
        `but` holds positions to leave out.
        """
        eligible = self._may_take(demand, ~but if but else -1)
        packs = demand.gpus.sharing is Sharing.EXCLUSIVE
        while eligible:
            leaders = self._scores.best(self._taken.best(eligible) if packs else eligible)
            candidate = self.at(pick(leaders, draw()))
            if self._takes(candidate, demand):
                return candidate
            eligible ^= leaders
            leaders = self._with_memory(demand, leaders)
            while leaders:
                candidate = self.at(pick(leaders, draw()))
                if self._takes(candidate, demand):
                    return candidate
                leaders ^= 1 << candidate.position
        return None

    def has_freed(self) -> bool:
        """Whether a node may take jobs that it did not take at the last `take_freed`."""
        return bool(self._freed)

    def take_freed(self, besides: "Freed | None" = None) -> "Freed":
        """Return the nodes that may take jobs that they did not take at the last call, and `besides`.

        A job that no node could take then needs at least one of them now.
        """
        positions = bitset_of(tuple(self._freed)) | (0 if besides is None else besides.positions)
        positions &= self.unschedulable[None]
        self._freed.clear()
        return Freed(positions, [self.at(position) for position in members(positions)])

    def may_take(self, demand: Demand, freed: "Freed", *, own: Sequence[str] = ()) -> bool:
        """Whether a job may find its nodes now that these were freed; on its `own` GPUs are held for it."""
        kept = self._positions(own) if own else 0
        served = not freed.has_less or freed.may_serve(demand.gpus)  # else its caller has looked
        found = self._may_take(demand, freed.positions) if served else 0
        if demand.sharing is Sharing.MEMORY:
            found = self.with_free_gpus(demand, found)
        found |= kept & freed.positions
        if not found or demand.job.nodes == 1:
            return bool(found)
        return (self._may_take(demand, -1) | kept).bit_count() >= demand.job.nodes

    def is_left(self, freed: "Freed", demand: Demand) -> bool:
        """Whether one of these nodes is reserved for no other job than this one."""
        return bool(self._without_reserved(demand, freed.positions))

    def could_ever_take(self, demand: Demand) -> bool:
        """Whether enough nodes could take a job if they were ready, connected, sound and empty (§5.4)."""
        among = self._declared.holders(demand.gpus)
        states: list[NodeState] = []
        for one, query in self.queries:
            if one.permanent and isinstance(one.key, NodeState):
                states.append(one.key)  # its query knows only the nodes of which it is the first reason
            elif one.permanent:
                among = query(demand, among)
        found = 0
        for position in members(among):
            record = self.at(position).record
            found += (
                record.slots > 0
                and record.declared.enabled_models.issuperset(demand.job.required_models)
                and not any(state.excludes(record, self._limits) for state in states)
            )
            if found == demand.job.nodes:
                return True
        return False

    def with_fewest_missing(self, demand: Demand, but: Iterable[str]) -> list[Candidate]:
        """Return as many nodes as a job needs, those that lack the fewest GPUs, and nothing but capacity.

        An empty list where there are not enough.
        """
        among = self._left.holders(demand.gpus) & ~self._positions(but)
        for one, query in self.queries:
            if one.reason is not ExclusionReason.CAPACITY_EXCEEDED:
                among = query(demand, among)
        found: list[Candidate] = []
        for gpus in sorted(self._free.sets, key=demand.gpus.missing):
            for position in members(among & self._free.positions(gpus)):
                candidate = self.at(position)
                if lacks_only_capacity(candidate, demand):
                    found.append(candidate)
                if len(found) == demand.job.nodes:
                    return found
        return []

    def with_free_gpus(self, demand: Demand, among: int) -> int:
        """Keep those of `among` that do have the free GPUs and memory; looks at each node."""
        bits = 0
        for position in members(among):
            if has_free_gpus(self.at(position), demand.gpus):
                bits |= 1 << position
        return bits

    def _takes(self, candidate: Candidate, demand: Demand) -> bool:
        """Whether a node that was found is still open to jobs, and has the memory that was held in steps."""
        if unschedulable_reason(candidate.record, self._limits) is not None:
            return False
        gpus = demand.gpus
        return (
            gpus.sharing is not Sharing.MEMORY
            or has_a_step_more(candidate, gpus)  # and the index has found enough that are unheld
            or has_free_gpus(candidate, gpus)
        )

    def _with_memory(self, demand: Demand, among: int) -> int:
        """Keep those of `among` with the free GPUs, as `with_free_gpus` does, but look at fewer nodes.

        A node that has a step of memory more than a job needs is kept unseen. With GPUs of several kinds it
        may lack one that fits, so each node is looked at once it is picked.
        """
        sure, steps = 0, _steps_of(demand.gpus)
        if demand.sharing is Sharing.MEMORY and demand.gpus.number in RANKS and steps < self._room[0].top:
            sure = self._room[_place_of(demand.gpus)].at_least(steps + 1, among)
        return sure | self.with_free_gpus(demand, among ^ sure)

    def _may_take(self, demand: Demand, among: int) -> int:
        """Keep those of `among` that are eligible; for memory those that may be."""
        among = _with_keys(self._keys, demand, among & self.unschedulable[None])
        for query in self._job_queries:
            if not among:
                break
            among = query(demand, among)
        return among

    def _query(self, one: Filter) -> _Query:
        """Return how a filter is asked of all nodes: by its key."""
        match one.key:
            case NodeState():
                return lambda _, among: among ^ among & self.unschedulable[one.reason]
            case NodeIds():
                return partial(self._with_ids, one.key)
            case Keys():
                return partial(_with_keys, [row for row in self._keys if row[0] is one.key])
            case GpuKey.USABLE:
                return lambda demand, among: self._usable.meeting(demand.gpus, among)
            case GpuKey.FREE:
                return self._with_free
            case GpuKey.RESERVED:
                return self._without_reserved
            case GpuKey.BUSY:
                return lambda demand, among: among if demand.gpus.sharing else among ^ among & self._busy
            case _ as unreachable:
                assert_never(unreachable)

    def _with_ids(self, key: NodeIds, demand: Demand, among: int) -> int:
        allowed = key.allowed(demand)
        if allowed is not None:
            among &= self._positions(allowed)
        excluded = key.excluded(demand)
        return among & ~self._positions(excluded) if excluded else among

    def _positions(self, node_ids: Iterable[str]) -> int:
        bits = 0
        for node_id in node_ids:
            candidate = self.candidates.get(node_id)
            if candidate is not None:
                bits |= 1 << candidate.position
        return bits

    def _with_free(self, demand: Demand, among: int) -> int:
        """Keep those of `among` that have the free GPUs; for memory those that may have it."""
        gpus = demand.gpus
        if gpus.sharing is Sharing.EXCLUSIVE:
            return self._free.meeting(gpus, among)
        among = self._unheld.meeting(gpus, among)
        return among if gpus.sharing is None else self._room[_place_of(gpus)].at_least(_steps_of(gpus), among)

    def _without_reserved(self, demand: Demand, among: int) -> int:
        for position, candidate in self._reserved.items():
            if among >> position & 1 and is_kept_from(candidate, demand):
                among ^= 1 << position
        return among

    def _add(self, record: NodeRecord) -> Candidate:
        position = self._spare.pop() if self._spare else len(self._by_position)
        candidate = Candidate(
            record, position, self._limits, why_elsewhere=self._why_elsewhere, room=(0,) * len(RANKS)
        )
        candidate.keys = [frozenset()] * len(self._keys)
        if position == len(self._by_position):
            self._by_position.append(candidate)
        else:
            self._by_position[position] = candidate
        self.candidates[record.node_id] = candidate
        self.unschedulable[candidate.unschedulable] |= 1 << position
        return candidate

    def _update_keys(self, candidate: Candidate) -> None:
        for row, (key, postings) in enumerate(self._keys):
            keys = frozenset(key.of_node(candidate.record))
            postings.move(candidate.position, candidate.keys[row], keys)
            candidate.keys[row] = keys
        candidate.declared = candidate.record.declared

    def _update_gpus(self, candidate: Candidate) -> bool:
        """Take in the GPUs' figures; returns whether the number of GPUs that can take jobs may differ."""
        states, record = candidate.record.gpus, candidate.record
        if (
            states is not candidate.gpu_states
            or record.recheck_gpus
            or states.conditions != candidate.conditions
            or states.in_use != candidate.in_use
            or has_foreign_jobs(record) is not candidate.has_foreign_jobs
        ):
            self._update_gpu_sets(candidate)
            return True
        self._update_room(candidate)
        return False

    def _update_gpu_sets(self, candidate: Candidate) -> None:
        states, position = candidate.record.gpus, candidate.position
        self.changed_nodes.add(candidate.record.node_id)
        is_new = candidate.gpu_states is None
        if states is not candidate.gpu_states:
            sound = declared_set(states)
            self._declared.move(position, None if is_new else candidate.sound, sound)
            candidate.sound = sound
        candidate.gpu_states, candidate.conditions = states, states.conditions
        candidate.in_use = states.in_use
        candidate.has_foreign_jobs = has_foreign_jobs(candidate.record)
        usable, unheld, free = availability(candidate)
        candidate.record.unclaimed_use = used_without_claim(candidate, usable)
        before = candidate.usable, candidate.unheld, candidate.free, candidate.left
        left = left_after_claims(candidate, usable)
        now = _sets_of(usable, unheld, free, left=left)
        candidate.usable, candidate.unheld, candidate.free, candidate.left = now
        if is_new or now != before:
            kinds = self._usable, self._unheld, self._free, self._left
            for counts, old, new in zip(kinds, before, now, strict=True):
                if is_new or old != new:
                    counts.move(position, None if is_new else old, new)
            self.changes += 1
            if not candidate.reclaiming and any(map(_grew, before, now)):
                self._freed.add(position)
        candidate.shared = [gpu.place for gpu in sharable_gpus(candidate, unheld)]
        ranked = free if len(candidate.free) == 1 else sorted(free, key=_rank)
        candidate.free_places = [gpu.place for gpu in ranked]
        taken = min(len(candidate.exclusive), self._taken.top)
        self._taken.change(1 << position, candidate.taken, taken)
        candidate.taken = taken
        candidate.record.recheck_gpus = _must_recheck(candidate)
        self._update_room(candidate)

    def _update_room(self, candidate: Candidate) -> None:
        free = _free_steps(candidate)
        if free == candidate.free_memory:
            return
        candidate.free_memory = free
        self.changes += 1
        count, top = len(free), self._room[0].top
        freest = [free[rank - 1] if rank <= count else 0 for rank in RANKS]
        room = tuple([0 if steps < 0 else min(top, steps) for steps in freest])
        if room == candidate.room:
            return
        bit = 1 << candidate.position
        for column, old, new in zip(self._room, candidate.room, room, strict=True):
            if old != new:
                column.change(bit, old, new)
        candidate.room = room

    def _update_state(self, candidate: Candidate) -> None:
        record = candidate.record
        unschedulable = unschedulable_reason(record, self._limits)
        if unschedulable is not candidate.unschedulable:
            bit = 1 << candidate.position
            self.unschedulable[candidate.unschedulable] ^= bit
            self.unschedulable[unschedulable] ^= bit
            candidate.unschedulable = unschedulable
            self.changed_nodes.add(record.node_id)
            self.changes += 1
            if unschedulable is None:
                self._freed.add(candidate.position)
        busy = is_gpu_busy(record, self._limits)
        if busy is not candidate.is_gpu_busy:
            self._busy ^= 1 << candidate.position
            candidate.is_gpu_busy = busy
            self.changes += 1
            if not busy:
                self._freed.add(candidate.position)
        self._update_score(candidate)

    def _update_score(self, candidate: Candidate) -> None:
        record = candidate.record
        now_score = score(record, record.in_flight_jobs, self._limits)
        if now_score != candidate.score:
            self._scores.change(1 << candidate.position, candidate.score, now_score)
            candidate.score = now_score


class Freed:
    """Nodes that may take jobs that they did not take before, and the most that one of them has."""

    def __init__(self, positions: int, candidates: Sequence[Candidate]) -> None:
        self.positions = positions
        self.has_less = False
        """True once a job got one of the nodes."""
        self._candidates = candidates
        self._sum_up()

    def update(self) -> None:
        """Take in that a job got one of the nodes; of many nodes it may then be one that has less."""
        self.has_less = True
        if len(self._candidates) <= FEW:
            self._sum_up()

    def may_serve(self, gpus: GpuDemand) -> bool:
        """Whether one of the nodes may have the free GPUs for such jobs."""
        exclusively = gpus.sharing is Sharing.EXCLUSIVE
        if gpus.number > (self._most_free if exclusively else self._most_unheld):
            return False
        if gpus.sharing is Sharing.MEMORY and self._room[_place_of(gpus)] < _steps_of(gpus):
            return False
        return gpus.missing(self._free if exclusively else self._unheld) == 0

    def _sum_up(self) -> None:
        self._free = _most_of_each(one.free for one in self._candidates)
        self._unheld = _most_of_each(one.unheld for one in self._candidates)
        self._most_free = sum(number for _, number in self._free)
        self._most_unheld = sum(number for _, number in self._unheld)
        self._room = [max(column) for column in zip(*(one.room for one in self._candidates), strict=True)]


class GpuCounts:
    """Positions by the set of GPUs that their nodes have: nodes with the same set share one answer.

    A fleet has few different sets, and jobs ask for few different numbers of GPUs of a kind. So the answer to
    each demand is computed once, and then updated as nodes change. It does not know free memory.
    """

    def __init__(self, set_at: Callable[[int], GpuSet]) -> None:
        self._set_at = set_at
        self._sets = Postings[GpuSet]()
        self._answers: dict[GpuDemand, int] = {}

    @property
    def sets(self) -> Postings[GpuSet]:
        """All sets that nodes have."""
        return self._sets

    def positions(self, gpus: GpuSet) -> int:
        """Return the positions with exactly these GPUs."""
        return self._sets.holders(gpus)

    def holders(self, demand: GpuDemand) -> int:
        """Return the positions whose GPUs meet a demand."""
        answer = self._answers.get(demand)
        return self._compute(demand) if answer is None else answer

    def meeting(self, demand: GpuDemand, among: int) -> int:
        """Keep those of `among` whose GPUs meet a demand; a question about few nodes displaces no answer."""
        answer = self._answers.get(demand)
        if answer is None and among >= 0 and among.bit_count() <= FEW:
            return bitset_of([one for one in members(among) if meets(self._set_at(one), demand)])
        return among & (self._compute(demand) if answer is None else answer)

    def move(self, position: int, old: GpuSet | None, new: GpuSet | None) -> None:
        """Hold a position under another set; None is no node there, `()` a node without such GPUs."""
        self._sets.move(position, _one(old), _one(new))
        for demand, answer in self._answers.items():
            if _meets(old, demand) is not _meets(new, demand):
                self._answers[demand] = answer ^ 1 << position

    def _compute(self, demand: GpuDemand) -> int:
        if len(self._answers) >= _REMEMBERED_DEMANDS:
            self._answers.clear()
        answer = 0
        for gpus in self._sets:
            if meets(gpus, demand):
                answer |= self._sets.holders(gpus)
        self._answers[demand] = answer
        return answer


def _place_of(gpus: GpuDemand) -> int:
    """Return the place among `RANKS` that says most about a demand for free memory."""
    return _PLACES[min(gpus.number, RANKS[0])]


def _steps_of(gpus: GpuDemand) -> int:
    """Return the steps of free memory that a demand needs on each GPU, as far as the index counts."""
    return min(gpus.memory_mb // STEP_MB, (1 << _LEVEL_WIDTH) - 1)


def _most_of_each(sets: Iterable[GpuSet]) -> GpuSet:
    """Return of each kind the most GPUs that one of the sets has."""
    most: dict[GpuKind, int] = {}
    for kind, number in chain.from_iterable(sets):
        most[kind] = max(most.get(kind, 0), number)
    return tuple(most.items())


def _sets_of(
    usable: list[GpuState], unheld: list[GpuState], free: list[GpuState], *, left: list[GpuState]
) -> tuple[GpuSet, GpuSet, GpuSet, GpuSet]:
    """Count each by kind; those that are as many as what they are a part of are the same."""
    of_usable = gpu_set(usable)
    of_unheld = of_usable if len(unheld) == len(usable) else gpu_set(unheld)
    of_free = of_unheld if len(free) == len(unheld) else gpu_set(free)
    return of_usable, of_unheld, of_free, of_usable if len(left) == len(usable) else gpu_set(left)


def _rank(gpu: GpuState) -> tuple[bool, int]:
    """Rank what is given out first: what serves jobs of one GPU only, then the smallest."""
    return not gpu.kind.is_single, gpu.kind.memory_mb


def _grew(before: GpuSet, now: GpuSet) -> bool:
    """Whether there are more GPUs of some kind than before."""
    had = dict(before)
    return any(number > had.get(kind, 0) for kind, number in now)


def _one(gpus: GpuSet | None) -> AbstractSet[GpuSet]:
    return set() if gpus is None else {gpus}


def _meets(gpus: GpuSet | None, demand: GpuDemand) -> bool:
    return gpus is not None and meets(gpus, demand)


def _must_recheck(candidate: Candidate) -> bool:
    """Whether processes may still be those of a claim that ended after the last reading."""
    if not candidate.ended_at:
        return False
    read = reading_at(candidate.record)
    candidate.ended_at = {uuid: at for uuid, at in candidate.ended_at.items() if at >= read}
    return bool(candidate.ended_at)


def _with_keys(rows: list[tuple[Keys, Postings[Hashable]]], demand: Demand, among: int) -> int:
    for key, postings in rows:
        for group in key.of_job(demand):
            among &= postings.holders_of_any(group)
    return among


def _free_steps(candidate: Candidate) -> list[int]:
    """Return the free memory of the GPUs that jobs may share, in steps, the freest first."""
    record = candidate.record
    steps = None if candidate.reserved else record.gpus.free_steps
    if steps is not None:
        places = candidate.shared
        return sorted(
            steps if len(places) == len(steps) else [steps[place] for place in places], reverse=True
        )
    gpus = list(record.gpus.values())
    free = [available_mb(candidate, gpus[place]) or 0 for place in candidate.shared]
    return sorted([one // STEP_MB for one in free], reverse=True)
