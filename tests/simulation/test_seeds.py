"""Worlds full of trouble, played from their seeds. `make simulate` plays more of them, or one again."""

import multiprocessing
from dataclasses import replace

import pytest

from tests.simulation.climate import Climate, Trouble, climate_of, great_climate_of
from tests.simulation.play import play
from tests.simulation.report import Report, replay, report

SEEDS = 60
PROCESSES = 2
STORE_TROUBLES = {Trouble.DISK_FULL, Trouble.SAVE_ERROR, Trouble.SLOW_DISK}


def _climate(seed: int) -> Climate:
    climate = climate_of(seed)
    troubles = {one: mean for one, mean in climate.troubles.items() if one not in STORE_TROUBLES}
    return replace(climate, troubles=troubles)


def _play(seed: int) -> Report:
    return report(play(seed, _climate(seed)))


@pytest.mark.timeout(300)
def test_no_seed_breaks_a_promise() -> None:
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        reports = pool.map(_play, range(SEEDS), chunksize=4)
    broken = [one for one in reports if one.broken is not None]
    assert not broken, "\n".join(one.text for one in broken)


def test_the_same_seed_plays_the_same_world_to_the_last_line() -> None:
    for seed in (3, 4, 5):
        assert play(seed).mark == play(seed).mark


def test_a_great_fleet_keeps_its_promises_too() -> None:
    played = play(1, great_climate_of(1, nodes=150))
    assert played.broken is None, replay(1, 150)
