import pytest

from gpu_agent.registry.pacing import SPREAD, interval_for, worth_telling
from gpu_agent.registry.thresholds import Thresholds

SETTINGS = Thresholds()


def test_a_small_fleet_beats_as_configured_whatever_was_drawn() -> None:
    assert interval_for(1, SETTINGS, share=0.9) == 15.0
    assert interval_for(3000, SETTINGS, share=0.9) == 15.0


def test_a_large_fleet_is_spread() -> None:
    assert interval_for(5000, SETTINGS, share=0.0) == 15.0
    assert interval_for(5000, SETTINGS, share=0.5) == pytest.approx(15.0 * (1 + SPREAD / 2))


@pytest.mark.parametrize("nodes", [1, 100, 30_000, 30_001, 100_000, 1_000_000])
def test_the_fleet_never_beats_oftener_than_the_rate_allows(nodes: int) -> None:
    interval = interval_for(nodes, SETTINGS, max_beats_per_second=2000.0)
    assert nodes / interval <= 2000.0
    assert interval >= SETTINGS.heartbeat_interval_seconds


def test_only_a_change_that_matters_is_told() -> None:
    assert not worth_telling(15.0, 16.5)
    assert worth_telling(15.0, 30.0)
    assert worth_telling(30.0, 15.0)
