"""The index finds what a scan finds, whatever changed before."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_agent.registry.dispatch import filters
from gpu_agent.registry.dispatch.explain import count_exclusions
from gpu_agent.registry.dispatch.filters import FILTERS, first_exclusion
from gpu_agent.registry.dispatch.index import GpuCounts, Index
from gpu_agent.registry.gpus import STEP_MB
from gpu_agent.registry.job import Demand, GpuDemand, GpuKind, GpuSet, Job, Sharing, sharing_of
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.codes import ExclusionReason, NodeStatus
from tests.registry.dispatch.nodes import change, gpu, gpus, job, node, usage
from tests.registry.dispatch.random_fleet import NODE_IDS, random_fleet, random_job, random_node

DICE = st.randoms(use_true_random=True)
"""A seed for a whole run, shown when the run fails."""


def index_of(*records: NodeRecord) -> Index:
    index = Index(Thresholds())
    for record in records:
        index.update(record)
    return index


def best(index: Index, wanted: Job, chance: float = 0.0) -> str | None:
    candidate = index.best(Demand.of(wanted), lambda: chance)
    return None if candidate is None else candidate.record.node_id


@settings(max_examples=150, deadline=None)
@given(DICE)
def test_the_best_is_as_good_as_a_scan_finds_whatever_changed_before(dice: Random) -> None:
    index = Index(Thresholds())
    for _ in range(40):
        node_id = dice.choice(NODE_IDS)
        if dice.random() < 1 / 4:
            index.remove(node_id)
        else:
            index.update(random_node(dice, node_id))
        demand = Demand.of(random_job(dice))
        eligible = [
            candidate for candidate in index.candidates.values() if first_exclusion(candidate, demand) is None
        ]
        found = index.best(demand, dice.random)
        assert (found in eligible) if eligible else found is None
        if found is not None:
            packs = sharing_of(demand.job) is Sharing.EXCLUSIVE
            ratings = [(one.taken if packs else 0, one.score) for one in eligible]
            assert (found.taken if packs else 0, found.score) == max(ratings)


@settings(max_examples=20, deadline=None)
@given(DICE)
def test_nothing_is_left_of_nodes_that_were_removed(dice: Random) -> None:
    index = index_of(*random_fleet(dice), *random_fleet(dice))
    for node_id in NODE_IDS:
        index.remove(node_id)
    assert not any(index.unschedulable.values())
    index.update(node("node-new"))
    for wanted in (job(required_models=("asr",)), job(public=True), job(labels={"zone": "a"})):
        assert best(index, wanted) is None
    assert best(index, job()) == "node-new"


def test_equals_are_chosen_from_at_random() -> None:
    index = index_of(*(node(node_id) for node_id in NODE_IDS))
    assert {best(index, job(), place / 8) for place in range(8)} == set(NODE_IDS)


def test_a_node_changed_in_place_is_found_by_what_it_is_now() -> None:
    record = node()
    index = index_of(record)
    change(record, ready_models=frozenset({"asr"}), labels={"zone": "a"})
    index.update(record)
    assert best(index, job(required_models=("asr",), labels={"zone": "a"})) == "node-A"
    change(record, ready_models=frozenset(), labels={"zone": "b"})
    index.update(record)
    assert best(index, job(labels={"zone": "a"})) is None
    assert best(index, job(required_models=("asr",))) is None


def test_gpus_that_fail_fill_up_or_are_replaced_count_as_they_are_now() -> None:
    record = node(gpus=gpus(gpu("a"), gpu("b")))
    index = index_of(record)
    assert best(index, job(gpu_count=2, gpu_sharing="memory", min_gpu_memory_mb=24_000)) == "node-A"
    record.gpus["a"].memory_used_mb = 5_000
    index.update(record)
    assert best(index, job(gpu_count=2, gpu_sharing="memory", min_gpu_memory_mb=24_000)) is None
    assert best(index, job(min_gpu_memory_mb=24_000)) == "node-A"
    record.gpus["b"].health = "lost"
    index.update(record)
    assert best(index, job(min_gpu_memory_mb=24_000)) is None
    assert best(index, job(gpu_count=2)) is None
    record.gpus = gpus(gpu("c", name="NVIDIA H200", memory_mb=143_771))
    index.update(record)
    assert best(index, job(gpu_name="h200", min_gpu_memory_mb=140_000)) == "node-A"


def test_where_no_gpu_reports_its_memory_use_the_nodes_mean_counts() -> None:
    record = node(gpus=gpus(gpu("a", memory_mb=20_000, used_mb=None)), usage=usage(gpu_memory=90))
    index = index_of(record)
    assert best(index, job(min_gpu_memory_mb=10_000)) is None
    record.liveness.usage = usage(gpu_memory=10)
    index.update(record)
    assert best(index, job(min_gpu_memory_mb=10_000)) == "node-A"


def test_nodes_within_one_step_below_the_memory_needed_are_passed_over() -> None:
    short = [node(f"short-{n}", gpus=gpus(gpu("g", used_mb=STEP_MB - n))) for n in range(1, 4)]
    enough = node("enough", gpus=gpus(gpu("g", used_mb=10)), count=3)
    assert best(index_of(*short, enough), job(min_gpu_memory_mb=24_560)) == "enough"


def test_a_node_that_has_changed_since_its_last_update_is_never_the_answer() -> None:
    stale = [node(node_id) for node_id in ("node-A", "node-B", "node-C")]
    index = index_of(*stale)
    for record in stale:
        record.desired.cordoned = "fans"
    assert best(index, job(min_gpu_memory_mb=24_000)) is None
    assert best(index, job()) is None
    index.update(node("node-D", count=1))
    assert best(index, job()) == "node-D"


def test_gpus_larger_than_any_step_are_distinguished_by_the_filters() -> None:
    index = index_of(node(gpus=gpus(gpu("g", memory_mb=1_000_000))))
    assert best(index, job(min_gpu_memory_mb=900_000)) == "node-A"
    assert best(index, job(min_gpu_memory_mb=1_000_001)) is None


def test_another_record_may_come_to_stand_for_a_node() -> None:
    index = index_of(node(ready_models=frozenset({"asr"})))
    index.update(node(ready_models=frozenset({"nmt"})))
    assert best(index, job(required_models=("asr",))) is None
    assert best(index, job(required_models=("nmt",))) == "node-A"
    assert len(index.candidates) == 1


def test_two_filters_by_keys_may_share_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = {ExclusionReason.FEATURE_NOT_SUPPORTED: ExclusionReason.MODEL_NOT_AVAILABLE}
    rows = tuple(replace(one, reason=shared.get(one.reason, one.reason)) for one in FILTERS)
    monkeypatch.setattr("gpu_agent.registry.dispatch.index.FILTERS", rows)
    models, features = frozenset({"asr"}), frozenset({"kv_cache"})
    both = node("both", ready_models=models, features=features)
    index = index_of(both, node("models", ready_models=models), node("features", features=features))
    assert best(index, job(required_models=("asr",), required_features=("kv_cache",))) == "both"
    index.remove("both")
    assert best(index, job(required_models=("asr",), required_features=("kv_cache",))) is None
    assert best(index, job(required_features=("kv_cache",))) == "features"


def test_a_position_serves_one_node_after_another() -> None:
    index = index_of(node("node-A"), node("node-B"))
    freed = index.candidates["node-A"].position
    index.remove("node-A")
    index.remove("node-A")
    with pytest.raises(KeyError):
        index.at(freed)
    assert index.update(node("node-C")).position == freed


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (job(public=True), ExclusionReason.NOT_IN_PUBLIC_POOL),
        (job(gpu_name="h200"), ExclusionReason.GPU_UNAVAILABLE),
        (job(gpu_count=2), ExclusionReason.GPU_UNAVAILABLE),
        (job(required_models=("asr",)), ExclusionReason.MODEL_NOT_AVAILABLE),
        (job(required_features=("kv_cache",)), ExclusionReason.FEATURE_NOT_SUPPORTED),
        (job(labels={"zone": "a"}), ExclusionReason.LABEL_MISMATCH),
        (job(min_gpu_memory_mb=100_000), ExclusionReason.GPU_UNAVAILABLE),
        (job(allowed_nodes=("rich",)), ExclusionReason.NOT_ALLOWED),
        (job(excluded_nodes=("bare",)), ExclusionReason.NOT_ALLOWED),
        (job(min_compute_capability="9.0"), ExclusionReason.GPU_UNAVAILABLE),
        (job(gpu_count=1, min_gpu_memory_mb=100_000), ExclusionReason.GPU_UNAVAILABLE),
        (job(labels={"zone": ("b", "a")}), ExclusionReason.LABEL_MISMATCH),
    ],
)
def test_a_freed_position_remembers_nothing_that_its_node_could_do(
    wanted: Job, reason: ExclusionReason
) -> None:
    """Queried before the node is removed and after, so that an answer from before is caught too."""
    big = [gpu(uuid, name="NVIDIA H200", memory_mb=143_771, compute_capability="9.0") for uuid in "ab"]
    rich = node(
        "rich",
        gpus=gpus(*big),
        ready_models=frozenset({"asr"}),
        features=frozenset({"kv_cache"}),
        labels={"zone": "a"},
        accept_public_jobs=True,
    )
    index = index_of(rich)
    freed = index.candidates["rich"].position
    assert best(index, wanted) == "rich"
    index.remove("rich")
    assert best(index, wanted) is None
    assert count_exclusions(index, Demand.of(wanted)).counts == {}
    assert index.update(node("bare")).position == freed
    assert best(index, wanted) is None
    assert count_exclusions(index, Demand.of(wanted)).counts == {reason: 1}
    index.remove("bare")
    index.update(rich)
    assert best(index, wanted) == "rich"


def test_a_freed_position_remembers_neither_the_score_nor_the_state_of_its_node() -> None:
    index = index_of(node("best"), node("good", count=1))
    freed = index.candidates["best"].position
    for following, reported_jobs, expected in (("again", 0, "again"), ("worst", 2, "good")):
        index.remove(index.at(freed).record.node_id)
        assert index.update(node(following, count=reported_jobs)).position == freed
        assert best(index, job()) == expected
    index.remove("worst")
    index.update(node("away", connection=None))
    index.remove("good")
    assert best(index, job()) is None
    assert count_exclusions(index, Demand.of(job())).counts == {ExclusionReason.DISCONNECTED: 1}
    index.remove("away")
    index.update(node("best"))
    assert (best(index, job()), len(index.candidates)) == ("best", 1)


def test_nodes_that_take_no_job_are_counted_by_their_reason() -> None:
    index = index_of(node("node-A"), node("node-B", connection=None), node("node-C", count=4))
    assert {reason: bits.bit_count() for reason, bits in index.unschedulable.items() if bits} == {
        None: 1,
        ExclusionReason.DISCONNECTED: 1,
        ExclusionReason.CAPACITY_EXCEEDED: 1,
    }


@settings(max_examples=100, deadline=None)
@given(DICE)
def test_suspected_nodes_updated_at_once_leave_what_updating_each_leaves(dice: Random) -> None:
    assert_updated_at_once_as_one_by_one(random_fleet(dice), dice)


@settings(max_examples=20, deadline=None)
@given(DICE)
def test_suspected_nodes_are_updated_at_once_whatever_the_order_of_the_filters(dice: Random) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filters, "_NODE_STATES", filters._NODE_STATES[::-1])
        assert_updated_at_once_as_one_by_one(random_fleet(dice), dice)


def test_what_excludes_a_node_permanently_counts_whatever_else_excludes_it_now() -> None:
    table = tuple(
        replace(one, permanent=True) if one.reason is ExclusionReason.CORDONED else one for one in FILTERS
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpu_agent.registry.dispatch.index.FILTERS", table)
        assert index_of(node(status=NodeStatus.OFFLINE)).could_ever_take(Demand.of(job()))
        assert not index_of(node(status=NodeStatus.OFFLINE, cordoned="")).could_ever_take(Demand.of(job()))
        assert not index_of(node(cordoned="")).could_ever_take(Demand.of(job()))


def assert_updated_at_once_as_one_by_one(fleet: Sequence[NodeRecord], dice: Random) -> None:
    at_once, one_by_one = index_of(*fleet), index_of(*fleet)
    doubted = [record for record in fleet if dice.random() < 2 / 3]
    for record in doubted:
        record.liveness.suspected_until = 9.0
    at_once.update_suspected(doubted)
    for record in doubted:
        one_by_one.update(record)
    assert at_once.unschedulable == one_by_one.unschedulable
    assert [candidate.unschedulable for candidate in at_once.candidates.values()] == [
        candidate.unschedulable for candidate in one_by_one.candidates.values()
    ]


def test_without_weights_each_able_node_is_drawn_as_likely_as_any_other() -> None:
    index = Index(Thresholds(weight_load=0, weight_gpu_use=0, weight_free_memory=0))
    for place, node_id in enumerate(NODE_IDS):
        index.update(node(node_id, count=place % 4))
    assert {best(index, job(), place / 8) for place in range(8)} == set(NODE_IDS)


def test_the_weights_decide_who_is_best() -> None:
    busy, full = node("busy", usage=usage(gpu_percent=80)), node("full", count=3)
    for favoured, weights in (
        ("full", Thresholds(weight_gpu_use=900, weight_load=100)),
        ("busy", Thresholds(weight_gpu_use=100, weight_load=900)),
    ):
        index = Index(weights)
        for record in (busy, full):
            index.update(record)
        assert best(index, job()) == favoured


def kind(name: str, memory_mb: int = 24_576) -> GpuKind:
    return GpuKind(name, memory_mb, (8, 0), "mig" in name)


def demand_of(name: str, number: int, sharing: Sharing | None = Sharing.EXCLUSIVE) -> GpuDemand:
    return GpuDemand(sharing, number, name, 0, (0, 0))


KINDS = [
    kind("nvidia l4"),
    kind("rtx 3090"),
    kind("rtx 4090"),
    kind("h100", 81_559),
    kind("h100 mig 3g", 40_960),
]
SETS = st.none() | st.dictionaries(st.sampled_from(KINDS), st.integers(1, 8), max_size=3).map(
    lambda counts: tuple(sorted(counts.items()))
)
DEMANDS = st.builds(
    GpuDemand,
    st.sampled_from([None, *Sharing]),
    st.integers(1, 8),
    st.sampled_from(["", "rtx", "l4", "h100", "h100 mig", "mi300"]),
    st.sampled_from([0, 24_576, 60_000]),
    st.sampled_from([(0, 0), (8, 0), (9, 0)]),
)


@settings(max_examples=80)
@given(st.lists(st.one_of(st.tuples(st.integers(0, 9), SETS), DEMANDS), max_size=40))
def test_answers_stay_right_while_nodes_change(
    steps: list[tuple[int, GpuSet | None] | GpuDemand],
) -> None:
    state = dict[int, GpuSet | None](dict.fromkeys(range(10)))
    sets = GpuCounts(lambda slot: state[slot] or ())
    for step in steps:
        if isinstance(step, GpuDemand):
            known = sum(1 << slot for slot, gpus in state.items() if gpus is not None)
            eligible = {slot for slot, gpus in state.items() if gpus is not None and has_enough(gpus, step)}
            expected = sum(1 << slot for slot in eligible)
            assert [sets.meeting(step, known), sets.holders(step), sets.meeting(step, known)] == [
                expected
            ] * 3
        else:
            sets.move(step[0], state[step[0]], step[1])
            state[step[0]] = step[1]


def has_enough(gpus: GpuSet, demand: GpuDemand) -> bool:
    """Count GPU by GPU: whole ones or MIG devices, never both; a name without MIG is no MIG device."""
    fitting = {False: 0, True: 0}
    for one, number in gpus:
        named = demand.name in one.name and ("mig" in demand.name or not demand.name or not one.is_mig)
        if named and one.memory_mb >= demand.memory_mb and one.capability >= demand.capability:
            fitting[one.is_mig] += number
    return max(fitting.values()) >= demand.number


def test_more_different_demands_than_are_remembered_are_still_answered() -> None:
    sets = GpuCounts(lambda _: ())
    sets.move(3, None, ((kind("h100"), 8),))
    answers = [sets.holders(demand_of(f"{'x' * n}h100", 1)) for n in range(300)]
    assert answers == [1 << 3] + [0] * 299
    assert sets.holders(demand_of("h100", 8)) == 1 << 3
