import asyncio
from itertools import pairwise

from gpu_agent.node.socket.turns import REST, Turns


async def test_a_user_who_asks_without_end_leaves_the_loop_its_time() -> None:
    turns, loop = Turns(), asyncio.get_running_loop()
    busy: list[tuple[float, float]] = []

    async def ask() -> None:
        async with turns.one(1000):
            began = loop.time()
            while loop.time() - began < 0.01:
                pass
            busy.append((began, loop.time()))

    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(ask())
    rests = [after[0] - before[1] for before, after in pairwise(busy)]
    assert min(rests) > REST * 0.009


async def test_a_user_waits_for_no_other_one() -> None:
    turns = Turns()
    async with turns.one(1000), asyncio.timeout(10), turns.one(1001):
        pass


async def test_a_turn_whose_waiting_was_given_up_is_nobodys() -> None:
    turns = Turns()
    async with turns.one(1000):
        waiting = asyncio.ensure_future(turns.one(1000).__aenter__())
        await asyncio.sleep(0)
        waiting.cancel()
    async with asyncio.timeout(10), turns.one(1000):
        pass
