""""""

import asyncio
import time
from collections.abc import Iterator
from functools import partial

import pytest

from gpu_agent.server.fair_queue import ITERATION_SLICE_SECONDS, SLICE_SECONDS, FairQueue, collect_in_slices
from tests.server.harness import until


def busy(seconds: float) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        pass


async def test_while_a_turn_has_time_work_is_done_at_once() -> None:
    done: list[int] = []
    turns = FairQueue(monotonic=time.monotonic, patience_seconds=60.0)
    turns.do(lambda: done.append(1), urgent=False)
    assert done == [1]


async def test_a_turn_that_is_used_up_leaves_the_rest_to_the_next_in_the_order_of_coming() -> None:
    done: list[int] = []
    turns = FairQueue(monotonic=time.monotonic, patience_seconds=60.0)
    turns.do(lambda: busy(SLICE_SECONDS * 1.5), urgent=False)
    for number in range(3):
        turns.do(partial(done.append, number), urgent=False)
    assert (done, turns.waiting) == ([], 3)
    await until(lambda: turns.waiting == 0, what="all done")
    assert done == [0, 1, 2]


async def test_whoever_comes_while_others_wait_waits_behind_them() -> None:
    turns = FairQueue(monotonic=time.monotonic, patience_seconds=60.0)
    turns.wait(lambda: None, urgent=False)
    assert not turns.has_time(urgent=False)


async def test_what_is_urgent_comes_before_what_is_not_whenever_it_came() -> None:
    done: list[str] = []
    turns = FairQueue(monotonic=time.monotonic, patience_seconds=60.0)
    for number in range(3):
        turns.wait(partial(done.append, f"other {number}"), urgent=False)
        turns.wait(partial(done.append, f"urgent {number}"), urgent=True)
    assert not turns.has_time(urgent=True)
    await until(lambda: turns.waiting == 0, what="all done")
    assert done == ["urgent 0", "urgent 1", "urgent 2", "other 0", "other 1", "other 2"]
    turns.wait(lambda: None, urgent=False)
    assert turns.has_time(urgent=True)


async def test_what_has_run_out_of_patience_is_not_kept_waiting_for_ever_by_what_is_urgent() -> None:
    told: list[str] = []
    turns = FairQueue(monotonic=time.monotonic, patience_seconds=0.1)

    def never_done() -> None:
        busy(0.001)
        if len(told) < 2:
            turns.wait(never_done, urgent=True)

    began = time.monotonic()
    turns.wait(never_done, urgent=True)
    turns.wait(partial(told.append, "in vain"), urgent=False)
    turns.wait(partial(told.append, "in vain too"), urgent=False)
    await until(lambda: len(told) == 2, what="both told")
    assert 0.1 <= time.monotonic() - began < 1


async def test_much_work_leaves_room_for_everybody_else_between_its_slices() -> None:
    turns = FairQueue(monotonic=time.monotonic, patience_seconds=60.0)
    for _ in range(100):
        turns.do(lambda: busy(0.001), urgent=False)
    longest, last = 0.0, time.monotonic()
    while turns.waiting:
        await asyncio.sleep(0)
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    assert longest < 0.1  # all of it at once takes longer


async def test_work_that_breaks_does_not_hold_up_what_waits_behind_it() -> None:
    def broken() -> None:
        raise ValueError("broken")

    problems: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    done: list[int] = []
    turns = FairQueue(monotonic=time.monotonic, patience_seconds=60.0)
    turns.wait(broken, urgent=False)
    turns.wait(lambda: done.append(1), urgent=False)
    await until(lambda: done == [1], what="the work behind it")
    assert len(problems) == 1


async def test_a_turn_with_nothing_to_do_asks_for_no_next_one() -> None:
    turns = FairQueue(monotonic=time.monotonic, patience_seconds=60.0)
    assert turns.has_time(urgent=False)
    await asyncio.sleep(0.01)
    assert turns.has_time(urgent=False)
    assert turns.waiting == 0


def test_it_needs_a_running_loop() -> None:
    with pytest.raises(RuntimeError):
        FairQueue(monotonic=time.monotonic, patience_seconds=60.0).has_time(urgent=False)


def slowly(count: int) -> Iterator[int]:
    for number in range(count):
        time.sleep(ITERATION_SLICE_SECONDS / 10)
        yield number


async def test_all_is_collected_in_order() -> None:
    assert await collect_in_slices(iter(range(1000))) == list(range(1000))
    assert await collect_in_slices(iter(())) == []


async def test_others_have_their_turn_meanwhile() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with asyncio.TaskGroup() as group:
        counting = group.create_task(other())
        assert await collect_in_slices(slowly(100)) == list(range(100))
        counting.cancel()
    assert turns >= 3
