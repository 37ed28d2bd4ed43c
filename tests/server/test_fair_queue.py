"""Work that may wait gets slices of the event loop's queue."""

import asyncio
import time
from collections.abc import Iterator
from functools import partial

import pytest

from gpu_agent.server.fair_queue import HELD_SECONDS, SLICE_SECONDS, FairQueue, Work, collect_in_slices
from tests.server.harness import until
from tests.waiting import patience


def busy(seconds: float) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        pass


async def test_while_a_turn_has_time_work_runs_at_once() -> None:
    done: list[int] = []
    queue = FairQueue(monotonic=time.monotonic, patience_seconds=60.0)
    queue.run(lambda: done.append(1), Work.NEW)
    assert done == [1]


async def test_when_a_turn_is_used_up_the_rest_waits_for_the_next_in_order() -> None:
    done: list[int] = []
    queue = FairQueue(monotonic=time.monotonic, patience_seconds=60.0)
    queue.run(lambda: busy(SLICE_SECONDS * 1.5), Work.NEW)
    for number in range(3):
        queue.run(partial(done.append, number), Work.NEW)
    assert (done, queue.waiting) == ([], 3)
    await until(lambda: queue.waiting == 0, what="all done")
    assert done == [0, 1, 2]


async def test_new_work_waits_behind_work_that_waits_already() -> None:
    queue = FairQueue(monotonic=time.monotonic, patience_seconds=60.0)
    queue.wait(lambda: None, Work.NEW)
    assert not queue.has_time(Work.NEW)


async def test_what_was_begun_is_completed_first() -> None:
    done: list[str] = []
    queue = FairQueue(monotonic=time.monotonic, patience_seconds=60.0)
    for number in range(2):
        for kind in reversed(Work):
            queue.wait(partial(done.append, f"{kind.name} {number}"), kind)
    assert not any(map(queue.has_time, Work))
    await until(lambda: queue.waiting == 0, what="all done")
    assert done == ["SERVED 0", "SERVED 1", "REGISTERING 0", "REGISTERING 1", "NEW 0", "NEW 1"]
    queue.wait(lambda: None, Work.NEW)
    assert queue.has_time(Work.SERVED)
    assert queue.has_time(Work.REGISTERING)


async def test_while_the_store_is_behind_only_peers_that_are_served_get_a_turn() -> None:
    behind, done = True, list[str]()
    queue = FairQueue(monotonic=time.monotonic, patience_seconds=60.0)
    queue.store_is_behind = lambda: behind
    assert not queue.has_time(Work.REGISTERING)
    queue.run(partial(done.append, "registering"), Work.REGISTERING)
    queue.run(partial(done.append, "new"), Work.NEW)
    queue.wait(partial(done.append, "served"), Work.SERVED)
    await until(lambda: done, what="the served one")
    await asyncio.sleep(5 * HELD_SECONDS)
    assert (done, queue.waiting) == (["served"], 2)
    behind = False
    await until(lambda: queue.waiting == 0, what="all done")
    assert done == ["served", "registering", "new"]


async def test_a_queue_that_holds_work_does_not_keep_the_loop_busy() -> None:
    turns, behind = 0, True

    def is_behind() -> bool:
        nonlocal turns
        turns += 1
        return behind

    queue = FairQueue(monotonic=time.monotonic, patience_seconds=60.0)
    queue.store_is_behind = is_behind
    queue.wait(lambda: None, Work.REGISTERING)
    began = time.monotonic()
    await asyncio.sleep(20 * HELD_SECONDS)
    elapsed = time.monotonic() - began
    behind = False
    assert 1 < turns <= 3 * (elapsed / HELD_SECONDS + 2)


async def test_new_work_that_waited_in_vain_while_the_store_is_behind_is_done() -> None:
    done: list[str] = []
    queue = FairQueue(monotonic=time.monotonic, patience_seconds=0.05)
    queue.store_is_behind = lambda: True
    queue.wait(partial(done.append, "registering"), Work.REGISTERING)
    queue.wait(partial(done.append, "new"), Work.NEW)
    await until(lambda: done, what="the refusal")
    assert done == ["new"]


async def test_peers_that_are_served_do_not_delay_overdue_work_for_ever() -> None:
    ran: list[str] = []
    queue = FairQueue(monotonic=time.monotonic, patience_seconds=0.1)

    def never_done() -> None:
        busy(0.001)
        if len(ran) < 2:
            queue.wait(never_done, Work.SERVED)

    began = time.monotonic()
    queue.wait(never_done, Work.SERVED)
    queue.wait(partial(ran.append, "in vain"), Work.NEW)
    queue.wait(partial(ran.append, "in vain too"), Work.NEW)
    await until(lambda: len(ran) == 2, what="both")
    assert 0.1 <= time.monotonic() - began < patience(1)


async def test_other_tasks_run_between_the_slices_of_much_work() -> None:
    queue = FairQueue(monotonic=time.monotonic, patience_seconds=60.0)
    for _ in range(100):
        queue.run(lambda: busy(0.001), Work.NEW)
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
    queue.wait(broken, Work.NEW)
    queue.wait(lambda: done.append(1), Work.NEW)
    await until(lambda: done == [1], what="the work behind it")
    assert len(problems) == 1


async def test_a_turn_without_work_schedules_no_next_one() -> None:
    queue = FairQueue(monotonic=time.monotonic, patience_seconds=60.0)
    assert queue.has_time(Work.NEW)
    await asyncio.sleep(0.01)
    assert queue.has_time(Work.NEW)
    assert queue.waiting == 0


def test_a_queue_needs_a_running_loop() -> None:
    with pytest.raises(RuntimeError):
        FairQueue(monotonic=time.monotonic, patience_seconds=60.0).has_time(Work.NEW)


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
