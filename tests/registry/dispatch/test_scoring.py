import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_agent.registry.dispatch.scoring import BEST_SCORE, score
from tests.registry.dispatch.nodes import node, usage

BEST = node(usage=usage())
PERCENT = st.one_of(st.none(), st.floats(0, 100))


def test_an_idle_node_scores_best() -> None:
    assert score(BEST, 0) == BEST_SCORE


def test_a_node_that_is_full_and_busy_scores_nothing() -> None:
    assert score(node(usage=usage(gpu_percent=100, gpu_memory=100)), 4) == 0


@pytest.mark.parametrize(
    "worse",
    [
        node(usage=usage(gpu_percent=60)),
        node(usage=usage(gpu_memory=60)),
    ],
    ids=["GPU use", "GPU memory"],
)
def test_each_figure_counts(worse: object) -> None:
    assert score(worse, 0) < BEST_SCORE  # type: ignore[arg-type] # records, made at import


def test_load_counts_as_a_share_of_the_places() -> None:
    assert score(BEST, 1) > score(BEST, 2)
    assert score(node(max_concurrent_jobs=8, usage=usage()), 2) == score(
        node(max_concurrent_jobs=4, usage=usage()), 1
    )


def test_an_unknown_figure_counts_as_half() -> None:
    known = score(node(usage=usage(gpu_percent=50)), 0)
    assert score(node(usage=usage(gpu_percent=None)), 0) == known


def test_a_figure_that_trembles_within_a_tenth_moves_no_node() -> None:
    trembling = {score(node(usage=usage(gpu_percent=percent)), 0) for percent in (30.0, 33.3, 39.9)}
    assert len(trembling) == 1


@given(
    st.tuples(st.integers(0, 20), st.integers(0, 10)),
    st.tuples(PERCENT, PERCENT),
)
def test_no_figures_lead_outside_the_scale(
    jobs: tuple[int, int], percents: tuple[float | None, float | None]
) -> None:
    places, in_flight = jobs
    record = node(
        max_concurrent_jobs=places,
        usage=usage(gpu_percent=percents[0], gpu_memory=percents[1]),
    )
    assert 0 <= score(record, in_flight) <= BEST_SCORE


@pytest.mark.parametrize("percent", [-5.0, 100.5, 5000.0])
def test_a_figure_outside_its_range_counts_as_unknown(percent: float) -> None:
    unknown = score(node(usage=usage(gpu_percent=None, gpu_memory=None)), 0)
    assert score(node(usage=usage(gpu_percent=percent, gpu_memory=percent)), 0) == unknown


def test_a_node_that_has_not_beaten_yet_has_a_score() -> None:
    assert 0 < score(node(usage=None), 0) < BEST_SCORE
