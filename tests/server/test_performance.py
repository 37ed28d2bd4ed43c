from gpu_agent.server.performance import Meter


def test_beats_are_counted_over_the_period() -> None:
    meter = Meter(now=10.0)
    assert meter.read(now=20.0, beats=500).beats_per_second == 50.0
    assert meter.read(now=30.0, beats=500).beats_per_second == 0.0


def test_the_longest_lag_of_the_period_is_told_in_milliseconds() -> None:
    meter = Meter(now=0.0)
    for seconds in (0.001, 0.0254, 0.002):
        meter.lagged(seconds)
    assert meter.read(now=1.0, beats=0).loop_lag_ms == 25.4
    assert meter.read(now=2.0, beats=0).loop_lag_ms == 0.0


def test_how_late_the_loop_was_is_told_at_the_median_and_the_99th_percentile() -> None:
    meter = Meter(now=0.0)
    for milliseconds in range(1, 201):
        meter.lagged(milliseconds / 1e3)
    figures = meter.read(now=1.0, beats=0)
    assert (figures.loop_lag_p50_ms, figures.loop_lag_p99_ms) == (101.0, 199.0)
    assert meter.read(now=2.0, beats=0).loop_lag_p99_ms is None


def test_the_99th_percentile_of_placements_is_told_in_microseconds() -> None:
    meter = Meter(now=0.0)
    for microseconds in range(1, 201):
        meter.selected(microseconds / 1e6)
    assert meter.read(now=1.0, beats=0).select_p99_us == 199.0


def test_no_placement_has_no_percentile() -> None:
    assert Meter(now=0.0).read(now=1.0, beats=0).select_p99_us is None
