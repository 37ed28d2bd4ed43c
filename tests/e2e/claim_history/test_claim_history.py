"""A short campaign, and proof that the world sees what must not happen."""

import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.claim_history.campaign import Campaign
from tests.e2e.claim_history.world import World

GPU = ("node-a", "GPU-a0")


@pytest.mark.parametrize(("first", "second"), [(True, True), (True, False), (False, True)])
def test_two_jobs_on_one_gpu_are_a_violation_unless_both_share_it(*, first: bool, second: bool) -> None:
    world = World()
    world.start("one", ["node-a"], [GPU], exclusive=first)
    world.start("two", ["node-a"], [GPU], exclusive=second)
    assert world.violations == ["GPU-a0 of node-a was given to two while ['one'] ran there"]


def test_jobs_that_share_a_gpu_or_follow_each_other_are_no_violation() -> None:
    world = World()
    world.start("one", ["node-a"], [GPU], exclusive=False)
    world.start("two", ["node-a"], [GPU], exclusive=False)
    assert world.report("node-a", ["GPU-a0"]) == (["one", "two"], [2])
    world.end("one")
    world.end("two")
    world.start("three", ["node-a"], [GPU], exclusive=True)
    assert world.violations == []


def test_a_gang_on_one_node_twice_is_a_violation() -> None:
    world = World()
    world.start("gang", ["node-a", "node-a"], [], exclusive=True)
    assert len(world.violations) == 1


@pytest.mark.timeout(300)
def test_no_claim_is_broken_while_the_registry_is_killed() -> None:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        campaign = Campaign(Path(folder), running, seed=7)
        for _ in range(4):
            campaign.kill()
        campaign.stop()
    assert campaign.world.violations == []
    assert campaign.world.granted > 0
