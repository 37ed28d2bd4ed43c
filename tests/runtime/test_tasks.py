import asyncio
import inspect
import json
import logging
import threading

import pytest

from gpu_agent.runtime.tasks import (
    MAX_STUCK_THREADS,
    TaskCrashedError,
    Tasks,
    Worker,
    in_thread,
    start_alone,
)
from tests.waiting import patience


async def _crash() -> None:
    raise ValueError("bad cable")


async def _forever() -> None:
    await asyncio.Event().wait()


async def test_a_crash_ends_the_group_with_the_task_s_name_and_cause() -> None:
    async def program() -> None:
        async with Tasks() as tasks:
            tasks.start("others", _forever())
            tasks.start("heartbeats", _crash())

    with pytest.raises(TaskCrashedError, match=r"task 'heartbeats' crashed: ValueError: bad cable") as caught:
        await program()
    assert isinstance(caught.value.__cause__, ValueError)


async def test_a_crash_is_logged_with_its_name_and_traceback(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), pytest.raises(TaskCrashedError):
        async with Tasks() as tasks:
            tasks.start("heartbeats", _crash())
    (record,) = caplog.records
    assert record.getMessage() == "task_crashed"
    assert (
        json.dumps(record.__dict__["fields"]) == '{"task": "heartbeats", "problem": "ValueError: bad cable"}'
    )
    assert record.exc_info is not None


async def test_tasks_carry_their_names() -> None:
    async with Tasks() as tasks:
        assert tasks.start("probe", asyncio.sleep(0)).get_name() == "probe"


async def test_end_lets_the_block_finish_without_an_error() -> None:
    async with asyncio.timeout(patience(5)), Tasks() as tasks:
        task = tasks.start("forever", _forever())
        await asyncio.sleep(0)
        tasks.end()
    assert task.cancelled()


async def test_what_the_block_raises_passes_unchanged_and_stops_the_tasks() -> None:
    started: list[asyncio.Task[None]] = []

    async def program() -> None:
        async with Tasks() as tasks:
            started.append(tasks.start("forever", _forever()))
            raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        await program()
    assert started[0].cancelled()


async def test_cancelling_from_outside_propagates() -> None:
    async def outer() -> None:
        async with Tasks() as tasks:
            tasks.start("forever", _forever())

    async with asyncio.TaskGroup() as group:
        task = group.create_task(outer())
        await asyncio.sleep(0)
        task.cancel()
    assert task.cancelled()


async def test_a_task_s_result_is_its_work_s_result() -> None:
    async def answer() -> int:
        return 42

    async with Tasks() as tasks:
        task = tasks.start("answer", answer())
    assert task.result() == 42


async def test_a_thread_s_answer_comes_back() -> None:
    assert await in_thread("name", lambda: threading.current_thread().name, deadline_seconds=5) == "name"


async def test_what_a_thread_raises_is_raised_where_it_is_awaited() -> None:
    def fail() -> None:
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        await in_thread("scan", fail, deadline_seconds=5)


async def test_a_thread_that_hangs_costs_no_more_than_its_deadline_and_its_late_answer_is_dropped() -> None:
    release, ended = threading.Event(), threading.Event()

    def hang() -> None:
        release.wait(patience(30))
        ended.set()

    with pytest.raises(TimeoutError):
        await in_thread("scan", hang, deadline_seconds=0.01)
    release.set()
    assert await in_thread("wait", lambda: ended.wait(patience(5)), deadline_seconds=5)
    await asyncio.sleep(0)


async def test_while_many_of_a_name_hang_another_is_not_even_begun() -> None:
    release, begun = threading.Event(), list[int]()

    def hang() -> None:
        begun.append(1)
        release.wait(patience(30))

    for _ in range(3 * MAX_STUCK_THREADS):
        with pytest.raises(TimeoutError):
            await in_thread("a dead disk", hang, deadline_seconds=0.2)
    assert len(begun) == MAX_STUCK_THREADS
    assert await in_thread("another disk", lambda: 7, deadline_seconds=5) == 7
    hanging = [one for one in threading.enumerate() if one.name.startswith("a dead disk")]
    release.set()
    for one in hanging:
        await asyncio.to_thread(one.join)
    assert await in_thread("a dead disk", lambda: 7, deadline_seconds=5) == 7


async def test_threads_of_a_name_that_are_awaited_block_no_other() -> None:
    release = threading.Event()
    async with asyncio.TaskGroup() as group:
        for _ in range(3 * MAX_STUCK_THREADS):
            group.create_task(in_thread("busy", lambda: release.wait(patience(30)), deadline_seconds=30))
        await asyncio.sleep(0)
        assert await in_thread("busy", lambda: 7, deadline_seconds=30) == 7
        release.set()


def test_a_hanging_thread_does_not_keep_the_loop_from_closing() -> None:
    release = threading.Event()

    async def hang() -> None:
        with pytest.raises(TimeoutError):
            await in_thread("scan", lambda: release.wait(patience(30)), deadline_seconds=0.01)

    asyncio.run(hang())
    release.set()


async def test_a_worker_does_one_thing_after_another_in_one_thread_and_reports_each_result() -> None:
    worker, results, all_done = Worker("disk"), list[object](), asyncio.Event()

    def done(value: str | None, error: BaseException | None) -> None:
        results.append(value or type(error))
        if len(results) == 3:
            all_done.set()

    def fail() -> str:
        raise OSError("disk gone")

    for work in (lambda: threading.current_thread().name, fail, lambda: threading.current_thread().name):
        worker.do(work, done)
    await asyncio.wait_for(all_done.wait(), patience(5))
    assert results == ["disk", OSError, "disk"]
    worker.end()


async def test_a_worker_that_was_let_go_ends_once_it_has_done_all() -> None:
    worker, thread = Worker("disk"), asyncio.get_running_loop().create_future()
    worker.do(threading.current_thread, lambda value, _: thread.set_result(value))
    worker.end()
    (await thread).join(patience(5))
    assert not (await thread).is_alive()


async def test_a_task_alone_that_is_cancelled_before_its_first_step_leaves_no_coroutine_behind() -> None:
    async def never() -> None:
        raise AssertionError

    work = never()
    task = start_alone("never", work)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert inspect.getcoroutinestate(work) == inspect.CORO_CLOSED
