"""Every node by what it can do and by its score, so that the best eligible node is found without a scan.

A node has a position; an ability is a bitset of the positions that have it, a score is a column of bits. A query is a
handful of `&`, whatever the size of the fleet. The index is exact in everything but free GPU memory, which it stores in
steps: the filters check each node that it finds, and only nodes within one step of what a job needs are checked one
by one.
"""

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet

from gpu_agent.registry.dispatch.bitset import Column, Postings, bitset_of, members, pick
from gpu_agent.registry.dispatch.candidate import Candidate, GpuSet, free_mb, gpu_set
from gpu_agent.registry.dispatch.filters import first_exclusion, has_memory, unschedulable_reason
from gpu_agent.registry.dispatch.refusals import ExclusionReason
from gpu_agent.registry.dispatch.scoring import best_score, score
from gpu_agent.registry.job import Demand
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.codes import NodeStatus

# Every node filed by what it can do and how good it is, so that the best able one is found without a scan.
#
# A node has a slot; an ability is the set of slots that have it, a score a column of them. A question is a
# handful of `&`, whatever the fleet. Exact in everything but free GPU memory, which is filed in steps:
# what
# is found is judged by `filters`, and only nodes within one step of what a job needs are looked at one by
# one.


RANKS = (8, 4, 2, 1)
"""For each of these k the index knows how much memory the k-th freest usable GPU of a node has."""

LEVEL_MB = 256
"""Free memory is filed in steps of this size; level 0 is no such GPU, or less than one step."""

_LEVEL_WIDTH = 12


class Index:
    """All nodes, found by ability and score."""

    def __init__(self, limits: Thresholds) -> None:
        self._limits = limits
        self._by_slot: list[Candidate | None] = []
        self._spare: list[int] = []
        self.views: dict[str, Candidate] = {}
        self.standing: dict[ExclusionReason | None, int] = dict.fromkeys((None, *ExclusionReason), 0)
        """Slots by what bars their node whatever the job; None holds the nodes open to jobs."""
        self._public = Postings[bool]()
        self._models = Postings[str]()
        self._features = Postings[str]()
        self._labels = Postings[tuple[str, str]]()
        self._gpus = GpuSets()
        self._scores = Column(best_score(limits).bit_length())
        self._room = tuple(Column(_LEVEL_WIDTH) for _ in RANKS)

    def file(self, record: NodeRecord) -> Candidate:
        """File a node, or file it anew after anything about it may have changed."""
        view = self.views.get(record.node_id)
        if view is None:
            view = self._admit(record)
        if view.record is not record:
            record.claims.update(view.record.claims)
            view.record = record
        if (
            record.ready_models is not view.models
            or record.features is not view.features
            or record.accept_public_jobs is not view.public
            or record.labels != view.labels
        ):
            self._file_abilities(view)
        self._file_gpus(view)
        self._file_standing(view)
        return view

    def file_figures(self, record: NodeRecord, *, gpus: bool, load: bool) -> None:
        """File a node anew of which nothing but these figures has changed."""
        view = self.views[record.node_id]
        if gpus:
            self._file_gpus(view)
        if load:
            self._file_standing(view)

    def file_promises(self, view: Candidate) -> None:
        """File a node anew after a claim on it was made or ended."""
        self._file_room(view)
        self._file_standing(view)

    def file_doubts(self, records: Sequence[NodeRecord]) -> None:
        """File by their standing alone nodes that have just become suspected; most of a fleet at a time."""
        moved: dict[ExclusionReason | None, list[int]] = {}
        for record in records:
            view = self.views[record.node_id]
            if view.barred is not ExclusionReason.STATUS_NOT_READY and record.status is NodeStatus.READY:
                moved.setdefault(view.barred, []).append(view.slot)
                view.barred = ExclusionReason.DISCONNECTED
        for before, slots in moved.items():
            bits = bitset_of(slots)
            self.standing[before] ^= bits
            self.standing[ExclusionReason.DISCONNECTED] ^= bits

    def drop(self, node_id: str) -> None:
        """Let a node go; its slot serves another."""
        view = self.views.pop(node_id, None)
        if view is None:
            return
        slot, bit = view.slot, 1 << view.slot
        self._public.move(slot, {view.public}, set())
        self._models.move(slot, view.models, frozenset())
        self._features.move(slot, view.features, frozenset())
        self._labels.move(slot, view.labels.items(), set())
        self._gpus.move(slot, view.gpus, None)
        for column, level in zip(self._room, view.room, strict=True):
            column.change(bit, level, 0)
        self._scores.change(bit, view.score, 0)
        self.standing[view.barred] ^= bit
        self._by_slot[slot] = None
        self._spare.append(slot)

    def at(self, slot: int) -> Candidate:
        """Return the node in an occupied slot."""
        view = self._by_slot[slot]
        if view is None:
            raise KeyError(slot)
        return view

    def slots(self, node_ids: frozenset[str]) -> int:
        """Return the slots of those of these nodes that there are."""
        bits = 0
        for node_id in node_ids:
            view = self.views.get(node_id)
            if view is not None:
                bits |= 1 << view.slot
        return bits

    def demanded(self, demand: Demand) -> Iterator[tuple[ExclusionReason, int]]:
        """List what a job demands of a node's abilities, in the order of §5: the reason, and who passes."""
        job = demand.job
        if demand.allowed is not None:
            yield ExclusionReason.NOT_ALLOWED, self.slots(demand.allowed)
        if job.public:
            yield ExclusionReason.NOT_IN_PUBLIC_POOL, self._public.holders(True)  # noqa: FBT003 - a key, not a flag
        yield ExclusionReason.GPU_UNAVAILABLE, self._gpus.holders(demand.gpu_name, demand.gpu_count)
        for model in job.required_models:
            yield ExclusionReason.MODEL_NOT_AVAILABLE, self._models.holders(model)
        for feature in job.required_features:
            yield ExclusionReason.FEATURE_NOT_SUPPORTED, self._features.holders(feature)
        for label in job.labels.items():
            yield ExclusionReason.LABEL_MISMATCH, self._labels.holders(label)

    def roomy(self, demand: Demand, among: int) -> int:
        """Keep those of `among` whose GPUs may have the free memory that a job demands."""
        if not demand.memory_mb:
            return among
        rank = next(place for place, rank in enumerate(RANKS) if rank <= demand.gpu_count)
        column = self._room[rank]
        return column.at_least(min(demand.memory_mb // LEVEL_MB, column.top), among)

    def best(self, demand: Demand, draw: Callable[[], float]) -> Candidate | None:
        """Return an able node of the best score, ties at random, or None when nobody is able."""
        able = self._able(demand)
        while able:
            leaders = self._scores.best(able)
            view = self.at(pick(leaders, draw()))
            if first_exclusion(view, demand) is None:
                return view
            able ^= leaders
            leaders = self.with_memory(demand, leaders)
            while leaders:
                view = self.at(pick(leaders, draw()))
                if first_exclusion(view, demand) is None:
                    return view
                leaders ^= 1 << view.slot
        return None

    def with_memory(self, demand: Demand, among: int) -> int:
        """Keep those of `among` whose GPUs do have the free memory; looks at each one."""
        bits = 0
        for slot in members(among):
            if has_memory(self.at(slot), demand):
                bits |= 1 << slot
        return bits

    def _able(self, demand: Demand) -> int:
        able = self.standing[None]
        for _, passing in self.demanded(demand):
            able &= passing
            if not able:
                return 0
        return self.roomy(demand, able)

    def _admit(self, record: NodeRecord) -> Candidate:
        slot = self._spare.pop() if self._spare else len(self._by_slot)
        view = Candidate(record, slot, self._limits, room=(0,) * len(RANKS))
        if slot == len(self._by_slot):
            self._by_slot.append(view)
        else:
            self._by_slot[slot] = view
        self.views[record.node_id] = view
        self.standing[view.barred] |= 1 << slot
        self._public.move(slot, set(), {view.public})
        self._gpus.move(slot, None, view.gpus)
        return view

    def _file_abilities(self, view: Candidate) -> None:
        record, slot = view.record, view.slot
        self._public.move(slot, {view.public}, {record.accept_public_jobs})
        self._models.move(slot, view.models, record.ready_models)
        self._features.move(slot, view.features, record.features)
        self._labels.move(slot, view.labels.items(), record.labels.items())
        view.public = record.accept_public_jobs
        view.models = record.ready_models
        view.features = record.features
        view.labels = dict(record.labels)

    def _file_gpus(self, view: Candidate) -> None:
        states = view.record.gpus
        healths = states.healths
        if healths != view.healths or states is not view.states:
            self._file_gpu_set(view)
            view.states, view.healths = states, healths
        self._file_room(view)

    def _file_gpu_set(self, view: Candidate) -> None:
        states = view.record.gpus.values()
        view.usable = [place for place, gpu in enumerate(states) if gpu.usable]
        gpus = gpu_set(view.record)
        if gpus != view.gpus:
            self._gpus.move(view.slot, view.gpus, gpus)
            view.gpus = gpus

    def _file_room(self, view: Candidate) -> None:
        free = _free_steps(view)
        if free == view.free:
            return
        view.free = free
        count, top, bit = len(free), self._room[0].top, 1 << view.slot
        freest = [free[rank - 1] if rank <= count else 0 for rank in RANKS]
        room = tuple([0 if steps < 0 else min(top, steps) for steps in freest])
        for column, old, new in zip(self._room, view.room, room, strict=True):
            if old != new:
                column.change(bit, old, new)
        view.room = room

    def _file_standing(self, view: Candidate) -> None:
        record = view.record
        in_flight = record.in_flight_jobs
        now_barred = unschedulable_reason(record, in_flight, self._limits)
        if now_barred is not view.barred:
            bit = 1 << view.slot
            self.standing[view.barred] ^= bit
            self.standing[now_barred] ^= bit
            view.barred = now_barred
        now_score = score(record, in_flight, self._limits)
        if now_score != view.score:
            self._scores.change(1 << view.slot, view.score, now_score)
            view.score = now_score


def _free_steps(view: Candidate) -> list[int]:
    """Measure the free memory of the usable GPUs in steps, the freest first."""
    record, promises = view.record, view.promises
    steps = None if promises else record.gpus.free_steps
    if steps is not None:
        return sorted([steps[place] for place in view.usable], reverse=True)
    free = [free_mb(record, gpu, promises) or 0 for gpu in record.gpus.values() if gpu.usable]
    return sorted([one // LEVEL_MB for one in free], reverse=True)


# Which nodes have enough usable GPUs of a name: nodes with the same set of GPUs share one verdict.
#
# A fleet has few different sets, and jobs ask for few different things, so each demand's answer is worked
# out
# once and then kept right as nodes change. Knows no memory: that is filed apart.


_REMEMBERED_DEMANDS = 256
"""Beyond so many different demands all are forgotten and worked out again when asked."""


class GpuSets:
    """Slots by the set of usable GPUs that their nodes have."""

    def __init__(self) -> None:
        self._sets = Postings[GpuSet]()
        self._answers: dict[tuple[str, int], int] = {}

    def holders(self, name: str, count: int) -> int:
        """Return the slots with at least `count` GPUs whose name contains `name` (lower case)."""
        answer = self._answers.get((name, count))
        if answer is None:
            answer = self._work_out(name, count)
        return answer

    def move(self, slot: int, old: GpuSet | None, new: GpuSet | None) -> None:
        """File a slot under another set; None is no node there, `()` a node without usable GPUs."""
        self._sets.move(slot, _one(old), _one(new))
        for (name, count), answer in self._answers.items():
            if _suffices(old, name, count) is not _suffices(new, name, count):
                self._answers[name, count] = answer ^ 1 << slot

    def _work_out(self, name: str, count: int) -> int:
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
