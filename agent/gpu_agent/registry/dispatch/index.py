"""Every node by what it can do and by its score, so that the best eligible node is found without a scan.

A node has a position; an ability is a bitset of the positions that have it, a score is a column of bits. A
query is a handful of `&`, whatever the size of the fleet. What the index holds follows from the keys of the
filters. It is exact in everything but free GPU memory, which it holds in steps: the filters check each node
that it finds, and only nodes within one step of what a job needs are checked one by one.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from typing import assert_never

from gpu_agent.registry.dispatch.bitset import Column, Postings, bitset_of, members, pick
from gpu_agent.registry.dispatch.candidate import Candidate, GpuSet, best_score, free_mb, gpu_set, score
from gpu_agent.registry.dispatch.filters import (
    FILTERS,
    Filter,
    GpuKey,
    Keys,
    NodeIds,
    NodeState,
    first_exclusion,
    has_memory,
    unschedulable_reason,
)
from gpu_agent.registry.gpus import STEP_MB
from gpu_agent.registry.job import Demand
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.codes import ExclusionReason

RANKS = (8, 4, 2, 1)
"""For each of these k the index knows how much memory the k-th freest usable GPU of a node has."""

_LEVEL_WIDTH = 12
"""Bits of a number of steps of free memory; 0 is no such GPU, or less than one step."""

_REMEMBERED_DEMANDS = 256
"""Beyond so many different demands for GPUs all answers are dropped, and computed again when needed."""

_Query = Callable[[Demand, int], int]
"""Returns those of a set of positions whose nodes may pass a filter."""


class Index:
    """All nodes, found by ability and score."""

    def __init__(self, limits: Thresholds) -> None:
        self._limits = limits
        self._by_position: list[Candidate | None] = []
        self._spare: list[int] = []
        self.candidates: dict[str, Candidate] = {}
        self.unschedulable: dict[ExclusionReason | None, int] = dict.fromkeys((None, *ExclusionReason), 0)
        """Positions by what excludes their node whatever the job; None holds the nodes open to jobs."""
        self._keys = [(one.key, Postings[Hashable]()) for one in FILTERS if isinstance(one.key, Keys)]
        """Each row's own; `Candidate.keys` has the same order."""
        self._gpus = GpuCounts()
        self._scores = Column(best_score(limits).bit_length())
        self._room = tuple(Column(_LEVEL_WIDTH) for _ in RANKS)
        self.queries = [(one, self._query(one)) for one in FILTERS]
        """How each filter is asked of all nodes, in the order of the filters."""
        self._job_queries = [query for one, query in self.queries if not isinstance(one.key, NodeState)]

    def update(self, record: NodeRecord) -> Candidate:
        """Add a node, or take in whatever may have changed about it."""
        candidate = self.candidates.get(record.node_id)
        if candidate is None:
            candidate = self._add(record)
        if candidate.record is not record:
            record.claims.update(candidate.record.claims)
            candidate.record = record
        if record.declared is not candidate.declared:
            self._update_keys(candidate)
        self._update_gpus(candidate)
        self._update_state(candidate)
        return candidate

    def update_figures(self, record: NodeRecord, *, gpus: bool, load: bool) -> None:
        """Take in a node of which only these figures have changed."""
        candidate = self.candidates[record.node_id]
        if gpus:
            self._update_gpus(candidate)
        if load:
            self._update_state(candidate)

    def update_claims(self, candidate: Candidate) -> None:
        """Take in that a claim on a node was made or has ended."""
        self._update_room(candidate)
        self._update_state(candidate)

    def update_suspected(self, records: Sequence[NodeRecord]) -> None:
        """Take in nodes, perhaps most of a fleet, that became suspected and changed in nothing else."""
        moved: dict[tuple[ExclusionReason | None, ExclusionReason | None], list[int]] = {}
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
        position, bit = candidate.position, 1 << candidate.position
        for (_, postings), keys in zip(self._keys, candidate.keys, strict=True):
            postings.move(position, keys, frozenset())
        self._gpus.move(position, candidate.gpus, None)
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

    def best(self, demand: Demand, draw: Callable[[], float]) -> Candidate | None:
        """Return an eligible node of the best score, ties at random, or None when no node is eligible."""
        eligible = self.unschedulable[None]
        for query in self._job_queries:
            eligible = query(demand, eligible)
            if not eligible:
                return None
        while eligible:
            leaders = self._scores.best(eligible)
            candidate = self.at(pick(leaders, draw()))
            if first_exclusion(candidate, demand) is None:
                return candidate
            eligible ^= leaders
            leaders = self.with_memory(demand, leaders)
            while leaders:
                candidate = self.at(pick(leaders, draw()))
                if first_exclusion(candidate, demand) is None:
                    return candidate
                leaders ^= 1 << candidate.position
        return None

    def with_memory(self, demand: Demand, among: int) -> int:
        """Keep those of `among` whose GPUs do have the free memory; looks at each node."""
        bits = 0
        for position in members(among):
            if has_memory(self.at(position), demand):
                bits |= 1 << position
        return bits

    def _query(self, one: Filter) -> _Query:
        """Return how a filter is asked of all nodes: by its key."""
        match one.key:
            case NodeState():
                return lambda _, among: among & ~self.unschedulable[one.reason]
            case NodeIds(of_job):
                return partial(self._with_ids, of_job)
            case Keys(_, of_job):
                return _with_keys(next(postings for key, postings in self._keys if key is one.key), of_job)
            case GpuKey.COUNT:
                return lambda demand, among: among & self._gpus.holders(demand.gpu_name, demand.gpu_count)
            case GpuKey.FREE_MEMORY:
                return self._with_room
            case _ as unreachable:
                assert_never(unreachable)

    def _with_ids(self, of_job: Callable[[Demand], frozenset[str] | None], demand: Demand, among: int) -> int:
        node_ids = of_job(demand)
        if node_ids is None:
            return among
        bits = 0
        for node_id in node_ids:
            candidate = self.candidates.get(node_id)
            if candidate is not None:
                bits |= 1 << candidate.position
        return among & bits

    def _with_room(self, demand: Demand, among: int) -> int:
        """Keep those of `among` whose GPUs may have the free memory that a job needs."""
        if not demand.memory_mb:
            return among
        place = next(place for place, rank in enumerate(RANKS) if rank <= demand.gpu_count)
        column = self._room[place]
        return column.at_least(min(demand.memory_mb // STEP_MB, column.top), among)

    def _add(self, record: NodeRecord) -> Candidate:
        position = self._spare.pop() if self._spare else len(self._by_position)
        candidate = Candidate(record, position, self._limits, room=(0,) * len(RANKS))
        candidate.keys = [frozenset()] * len(self._keys)
        if position == len(self._by_position):
            self._by_position.append(candidate)
        else:
            self._by_position[position] = candidate
        self.candidates[record.node_id] = candidate
        self.unschedulable[candidate.unschedulable] |= 1 << position
        self._gpus.move(position, None, candidate.gpus)
        return candidate

    def _update_keys(self, candidate: Candidate) -> None:
        for row, (key, postings) in enumerate(self._keys):
            keys = frozenset(key.of_node(candidate.record))
            postings.move(candidate.position, candidate.keys[row], keys)
            candidate.keys[row] = keys
        candidate.declared = candidate.record.declared

    def _update_gpus(self, candidate: Candidate) -> None:
        states = candidate.record.gpus
        healths = states.healths
        if healths != candidate.healths or states is not candidate.gpu_states:
            self._update_gpu_set(candidate)
            candidate.gpu_states, candidate.healths = states, healths
        self._update_room(candidate)

    def _update_gpu_set(self, candidate: Candidate) -> None:
        states = candidate.record.gpus.values()
        candidate.usable = [place for place, gpu in enumerate(states) if gpu.usable]
        gpus = gpu_set(candidate.record)
        if gpus != candidate.gpus:
            self._gpus.move(candidate.position, candidate.gpus, gpus)
            candidate.gpus = gpus

    def _update_room(self, candidate: Candidate) -> None:
        free = _free_steps(candidate)
        if free == candidate.free:
            return
        candidate.free = free
        count, top, bit = len(free), self._room[0].top, 1 << candidate.position
        freest = [free[rank - 1] if rank <= count else 0 for rank in RANKS]
        room = tuple([0 if steps < 0 else min(top, steps) for steps in freest])
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
        now_score = score(record, record.in_flight_jobs, self._limits)
        if now_score != candidate.score:
            self._scores.change(1 << candidate.position, candidate.score, now_score)
            candidate.score = now_score


class GpuCounts:
    """Positions by the set of usable GPUs that their nodes have: nodes with the same set share one answer.

    A fleet has few different sets, and jobs ask for few different numbers of GPUs of a name. So the answer to
    each demand is computed once, and then updated as nodes change. It does not know memory.
    """

    def __init__(self) -> None:
        self._sets = Postings[GpuSet]()
        self._answers: dict[tuple[str, int], int] = {}

    def holders(self, name: str, count: int) -> int:
        """Return the positions with at least `count` GPUs whose name contains `name` (lower case)."""
        answer = self._answers.get((name, count))
        return self._compute(name, count) if answer is None else answer

    def move(self, position: int, old: GpuSet | None, new: GpuSet | None) -> None:
        """Hold a position under another set; None is no node there, `()` a node without usable GPUs."""
        self._sets.move(position, _one(old), _one(new))
        for (name, count), answer in self._answers.items():
            if _suffices(old, name, count) is not _suffices(new, name, count):
                self._answers[name, count] = answer ^ 1 << position

    def _compute(self, name: str, count: int) -> int:
        if len(self._answers) >= _REMEMBERED_DEMANDS:
            self._answers.clear()
        answer = 0
        for gpus in self._sets:
            if _suffices(gpus, name, count):
                answer |= self._sets.holders(gpus)
        self._answers[name, count] = answer
        return answer


def _one(gpus: GpuSet | None) -> AbstractSet[GpuSet]:
    return set() if gpus is None else {gpus}


def _suffices(gpus: GpuSet | None, name: str, count: int) -> bool:
    return gpus is not None and sum(number for one, number in gpus if name in one) >= count


def _with_keys(postings: Postings[Hashable], of_job: Callable[[Demand], Iterable[Hashable]]) -> _Query:
    def query(demand: Demand, among: int) -> int:
        for key in of_job(demand):
            among &= postings.holders(key)
        return among

    return query


def _free_steps(candidate: Candidate) -> list[int]:
    """Return the free memory of the usable GPUs in steps, the freest first."""
    record, reserved = candidate.record, candidate.reserved
    steps = None if reserved else record.gpus.free_steps
    if steps is not None:
        return sorted([steps[place] for place in candidate.usable], reverse=True)
    free = [free_mb(record, gpu, reserved) or 0 for gpu in record.gpus.values() if gpu.usable]
    return sorted([one // STEP_MB for one in free], reverse=True)
