"""Work that may wait gets slices of the event loop's queue."""

import asyncio
import time
from collections.abc import Iterator
from functools import partial

import pytest

from gpu_agent.server.fair_queue import SLICE_SECONDS, FairQueue, collect_in_slices
from tests.server.harness import until
from tests.waiting import patience


def busy(seconds: float) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        pass


async def test_while_a_turn_has_time_work_runs_at_once() -> None:
    done: list[int] = []
    queue = FairQueue(monotonic=time.monotonic, patience_seconds=60.0)
    queue.run(lambda: done.append(1), urgent=False)
    assert done == [1]


async def test_when_a_turn_is_used_up_the_rest_waits_for_the_next_in_order() -> None:
    done: list[int] = []
    queue = FairQueue(monotonic=time.monotonic, patience_seconds=60.0)
    queue.run(lambda: busy(SLICE_SECONDS * 1.5), urgent=False)
    for number in range(3):
        queue.run(partial(done.append, number), urgent=False)
    assert (done, queue.waiting) == ([], 3)
    await until(lambda: queue.waiting == 0, what="all done")
    assert done == [0, 1, 2]


async def test_new_work_waits_behind_work_that_waits_already() -> None:
    queue = FairQueue(monotonic=time.monotonic, patience_seconds=60.0)
    queue.wait(lambda: None, urgent=False)
    assert not queue.has_time(urgent=False)


async def test_urgent_work_runs_first_whenever_it_came() -> None:
    done: list[str] = []
    queue = FairQueue(monotonic=time.monotonic, patience_seconds=60.0)
    for number in range(3):
        queue.wait(partial(done.append, f"other {number}"), urgent=False)
        queue.wait(partial(done.append, f"urgent {number}"), urgent=True)
    assert not queue.has_time(urgent=True)
    await until(lambda: queue.waiting == 0, what="all done")
    assert done == ["urgent 0", "urgent 1", "urgent 2", "other 0", "other 1", "other 2"]
    queue.wait(lambda: None, urgent=False)
    assert queue.has_time(urgent=True)


async def test_urgent_work_does_not_delay_overdue_work_for_ever() -> None:
    ran: list[str] = []
    queue = FairQueue(monotonic=time.monotonic, patience_seconds=0.1)

    def never_done() -> None:
        busy(0.001)
        if len(ran) < 2:
            queue.wait(never_done, urgent=True)

    began = time.monotonic()
    queue.wait(never_done, urgent=True)
    queue.wait(partial(ran.append, "in vain"), urgent=False)
    queue.wait(partial(ran.append, "in vain too"), urgent=False)
    await until(lambda: len(ran) == 2, what="both")
    assert 0.1 <= time.monotonic() - began < patience(1)


async def test_other_tasks_run_between_the_slices_of_much_work() -> None:
    queue = FairQueue(monotonic=time.monotonic, patience_seconds=60.0)
    for _ in range(100):
        queue.run(lambda: busy(0.001), urgent=False)
    longest, last = 0.0, (began := time.monotonic())
    while queue.waiting:
        await asyncio.sleep(0)
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    assert longest < (last - began) / 2


async def test_work_that_raises_does_not_stop_the_work_behind_it() -> None:
    def broken() -> None:
        raise ValueError("broken")

    problems: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    done: list[int] = []
    queue = FairQueue(monotonic=time.monotonic, patience_seconds=60.0)
    queue.wait(broken, urgent=False)
    queue.wait(lambda: done.append(1), urgent=False)
    await until(lambda: done == [1], what="the work behind it")
    assert len(problems) == 1


async def test_a_turn_without_work_schedules_no_next_one() -> None:
    queue = FairQueue(monotonic=time.monotonic, patience_seconds=60.0)
    assert queue.has_time(urgent=False)
    await asyncio.sleep(0.01)
    assert queue.has_time(urgent=False)
    assert queue.waiting == 0


def test_a_queue_needs_a_running_loop() -> None:
    with pytest.raises(RuntimeError):
        FairQueue(monotonic=time.monotonic, patience_seconds=60.0).has_time(urgent=False)


def slowly(count: int) -> Iterator[int]:
    for number in range(count):
        time.sleep(SLICE_SECONDS / 10)
        yield number


async def test_all_steps_are_collected_in_order() -> None:
    assert await collect_in_slices(iter(range(1000))) == list(range(1000))
    assert await collect_in_slices(iter(())) == []


async def test_other_tasks_run_while_steps_are_collected() -> None:
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
