import asyncio
import time

import pytest

from gpu_agent.node.turns import Turns
from gpu_agent.probe.snapshot import Sources

OLD, NEW = Sources(), Sources()


def test_a_turn_that_begins_is_younger_than_the_one_before() -> None:
    turns = Turns()
    turns.began_at = 0.0
    turns.begin()
    assert 0 <= time.monotonic() - turns.began_at < 5


@pytest.mark.parametrize(("looked", "waits"), [(OLD, True), (NEW, False)])
async def test_a_look_that_began_at_the_old_places_is_not_what_was_waited_for(
    looked: Sources, *, waits: bool
) -> None:
    turns = Turns()
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(turns.renewed(within_seconds=10))
        await asyncio.sleep(0)
        turns.looked_at(looked)
        turns.told(NEW)
        await asyncio.sleep(0.02)
        assert waiting.done() is not waits
        turns.looked_at(NEW)
        turns.told(NEW)
    assert waiting.done()


async def test_nobody_waits_for_ever() -> None:
    await Turns().renewed(within_seconds=0.01)
