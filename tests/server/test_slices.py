import asyncio
import time
from collections.abc import Iterator

from gpu_agent.server.slices import SLICE_SECONDS, collected


def slowly(count: int) -> Iterator[int]:
    for number in range(count):
        time.sleep(SLICE_SECONDS / 10)
        yield number


async def test_all_is_collected_in_order() -> None:
    assert await collected(iter(range(1000))) == list(range(1000))
    assert await collected(iter(())) == []


async def test_others_have_their_turn_meanwhile() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with asyncio.TaskGroup() as group:
        counting = group.create_task(other())
        assert await collected(slowly(100)) == list(range(100))
        counting.cancel()
    assert turns >= 3
