"""Scores and loads: one whole number per node, and nothing that dispatch cannot see moves it."""

from dataclasses import replace

import pytest
from hypothesis import given, strategies
from hypothesis import strategies as st

from gpu_agent.registry.dispatch import candidate as scoring
from gpu_agent.registry.dispatch.candidate import best_score, load_of
from gpu_agent.registry.dispatch.filters import unschedulable_reason
from gpu_agent.registry.node import Liveness, NodeRecord
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.codes import NodeStatus
from gpu_agent.wire.heartbeat import Usage
from tests.registry.dispatch.nodes import node as dispatch_node
from tests.registry.dispatch.nodes import usage
from tests.registry.harness import node_record

WEIGHTS = Thresholds()
BEST_SCORE = best_score(WEIGHTS)
BEST = dispatch_node(usage=usage())
PERCENT = st.one_of(st.none(), st.floats(0, 100))


def score(record: NodeRecord, in_flight: int, weights: Thresholds = WEIGHTS) -> int:
    return scoring.score(record, in_flight, weights)


def test_an_idle_node_scores_best() -> None:
    assert score(BEST, 0) == BEST_SCORE


def test_a_node_that_is_full_busy_and_far_scores_nothing() -> None:
    full = dispatch_node(usage=usage(gpu_percent=100, gpu_memory=100), round_trip_seconds=0.1)
    assert score(full, 4) == 0


@pytest.mark.parametrize(
    "worse",
    [
        dispatch_node(usage=usage(gpu_percent=60)),
        dispatch_node(usage=usage(gpu_memory=60)),
        dispatch_node(usage=usage(), round_trip_seconds=0.06),
    ],
    ids=["GPU use", "GPU memory", "round trip"],
)
def test_each_figure_counts(worse: object) -> None:
    assert score(worse, 0) < BEST_SCORE  # type: ignore[arg-type] # records, made at import


def test_load_counts_as_a_share_of_the_slots() -> None:
    assert score(BEST, 1) > score(BEST, 2)
    assert score(dispatch_node(max_concurrent_jobs=8, usage=usage()), 2) == score(
        dispatch_node(max_concurrent_jobs=4, usage=usage()), 1
    )


def test_an_unknown_figure_counts_as_half() -> None:
    known = score(dispatch_node(usage=usage(gpu_percent=50)), 0)
    assert score(dispatch_node(usage=usage(gpu_percent=None)), 0) == known


def test_the_nearer_of_two_nodes_scores_more_and_how_far_a_far_one_is_makes_no_difference() -> None:
    near, there, far, farther, unknown = (
        score(dispatch_node(round_trip_seconds=seconds), 0) for seconds in (0.0, 0.03, 0.1, 2.0, None)
    )
    assert near > there > far == farther
    assert unknown == score(dispatch_node(round_trip_seconds=0.05), 0)


def test_a_figure_that_trembles_within_a_tenth_moves_no_node() -> None:
    trembling = {score(dispatch_node(usage=usage(gpu_percent=percent)), 0) for percent in (30.0, 33.3, 39.9)}
    assert len(trembling) == 1


@given(
    st.tuples(st.integers(0, 20), st.integers(0, 10)),
    st.tuples(PERCENT, PERCENT),
)
def test_no_figures_lead_outside_the_scale(
    jobs: tuple[int, int], percents: tuple[float | None, float | None]
) -> None:
    slots, in_flight = jobs
    record = dispatch_node(
        max_concurrent_jobs=slots,
        usage=usage(gpu_percent=percents[0], gpu_memory=percents[1]),
    )
    assert 0 <= score(record, in_flight) <= BEST_SCORE


@pytest.mark.parametrize("percent", [-5.0, 100.5, 5000.0])
def test_a_figure_outside_its_range_counts_as_unknown(percent: float) -> None:
    unknown = score(dispatch_node(usage=usage(gpu_percent=None, gpu_memory=None)), 0)
    assert score(dispatch_node(usage=usage(gpu_percent=percent, gpu_memory=percent)), 0) == unknown


def test_a_node_that_has_not_beaten_yet_has_a_score() -> None:
    assert 0 < score(dispatch_node(usage=None), 0) < BEST_SCORE


NOTHING = Thresholds(weight_load=0, weight_gpu_use=0, weight_free_memory=0, weight_round_trip=0)


@pytest.mark.parametrize(
    ("small", "large", "without", "component", "in_flight"),
    [
        (
            replace(NOTHING, weight_load=100),
            replace(NOTHING, weight_load=1000),
            Thresholds(weight_load=0),
            dispatch_node(),
            2,
        ),
        (
            replace(NOTHING, weight_gpu_use=100),
            replace(NOTHING, weight_gpu_use=1000),
            Thresholds(weight_gpu_use=0),
            dispatch_node(usage=usage(gpu_percent=50)),
            0,
        ),
        (
            replace(NOTHING, weight_free_memory=100),
            replace(NOTHING, weight_free_memory=1000),
            Thresholds(weight_free_memory=0),
            dispatch_node(usage=usage(gpu_memory=50)),
            0,
        ),
        (
            replace(NOTHING, weight_round_trip=100),
            replace(NOTHING, weight_round_trip=1000),
            Thresholds(weight_round_trip=0),
            dispatch_node(round_trip_seconds=0.05),
            0,
        ),
    ],
    ids=["load", "GPU use", "free memory", "round trip"],
)
def test_each_share_counts_by_its_weight_and_0_leaves_it_out(
    small: Thresholds, large: Thresholds, without: Thresholds, component: NodeRecord, in_flight: int
) -> None:
    assert score(component, in_flight, small) == 50
    assert score(component, in_flight, large) == 500
    assert score(component, in_flight, without) == best_score(without)


def test_without_weights_all_able_nodes_are_equals() -> None:
    busy = dispatch_node(usage=usage(gpu_percent=99))
    assert score(BEST, 0, NOTHING) == score(busy, 3, NOTHING) == best_score(NOTHING) == 0


SETTINGS = Thresholds(max_cpu_percent=90.0, max_gpu_percent=85.5, max_memory_percent=90.0)

percents = strategies.floats(min_value=-20.0, max_value=120.0, allow_nan=False)
near_limits = strategies.sampled_from([0.0, 9.9, 10.0, 85.4, 85.5, 85.6, 90.0, 90.1, 100.0, 110.0])
figures = percents | near_limits
usages = strategies.builds(
    Usage,
    cpu_percent=figures,
    mem_percent=figures,
    gpu_percent=figures | strategies.none(),
    gpu_mem_percent=figures | strategies.none(),
)


def node(usage: Usage) -> NodeRecord:
    return node_record(status=NodeStatus.READY, connection=1, liveness=Liveness(usage=usage))


@given(usages, usages)
def test_heartbeats_of_the_same_load_are_the_same_to_dispatch(one: Usage, other: Usage) -> None:
    if load_of(one, SETTINGS) == load_of(other, SETTINGS):
        assert scoring.score(node(one), 0, SETTINGS) == scoring.score(node(other), 0, SETTINGS)
        assert unschedulable_reason(node(one), SETTINGS) == unschedulable_reason(node(other), SETTINGS)
