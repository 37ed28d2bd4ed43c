from math import inf

from gpu_agent.server.histogram import Histogram


def test_a_value_counts_for_its_bound_and_all_above() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.add(value)
    assert list(histogram.cumulative()) == [(1.0, 2), (2.0, 3), (inf, 4)]
    assert histogram.sum == 12.0


def test_nothing_measured_is_nothing_counted() -> None:
    assert list(Histogram((1.0,)).cumulative()) == [(1.0, 0), (inf, 0)]
