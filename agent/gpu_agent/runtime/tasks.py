"""Named, guarded tasks and threads: the only place that starts either.

A crash is logged with the name of the task and ends the program; it is never swallowed, and no task outlives
its group. Nothing is restarted here.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from gpu_agent.runtime.logs import Logger

_T = TypeVar("_T")
MAX_STUCK_THREADS = 4
"""Threads of one name that may hang at once: a call each minute on a dead disk does not add up."""
_ABANDONED = ", abandoned"
"""Follows the name of a thread whose answer is overdue."""

_LOG = Logger("runtime")


class TaskCrashedError(Exception):
    """A task raised an unexpected exception, which is the cause: our fault."""

    def __init__(self, name: str, cause: BaseException) -> None:
        self.name = name
        super().__init__(f"task {name!r} crashed: {type(cause).__name__}: {cause}")


class Tasks:
    """A group of named tasks. Leaving the block waits for them all; `end` asks them to go.

    When one crashes the others are cancelled and the block raises `TaskCrashedError`.
    What the block itself raises passes unchanged.
    """

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()
        self._running: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._group.__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            if error is not None and error in group.exceptions:
                return  # it passes unchanged: this block does not swallow
            crash = next((one for one in group.exceptions if isinstance(one, TaskCrashedError)), None)
            if crash is None:
                raise
        else:
            return
        raise crash from crash.__cause__

    def start(self, name: str, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Start a task under a name that log lines and debuggers show."""
        task = self._group.create_task(_guarded(name, work), name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        _close_at_end(task, work)
        return task

    def end(self) -> None:
        """Cancel every task that still runs; the block then ends without an error."""
        for task in tuple(self._running):
            task.cancel()


def start_alone(name: str, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
    """Start a named task outside of any group; its caller holds it. A crash is logged."""
    task = asyncio.get_running_loop().create_task(_guarded(name, work), name=name)
    _close_at_end(task, work)
    return task


def crash_of(work: Callable[[], None]) -> Exception | None:
    """Do one piece of work whose crash must not end the others; returns the crash, for the caller to log."""
    try:
        work()
    except Exception as error:  # noqa: BLE001 - the guard: nothing is swallowed, the caller has it
        return error
    return None


class Worker:
    """One named daemon thread that does what blocks, one thing after another.

    It begins with the first thing. Giving it another one never waits, which starting a thread does.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._pending: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def do(self, work: Callable[[], _T], done: Callable[[_T | None, BaseException | None], None]) -> None:
        """Do this after all before it; `done` receives on this loop what it returned, or what it raised."""
        loop = asyncio.get_running_loop()

        def run() -> None:
            try:
                value = work()
            except BaseException as error:  # noqa: BLE001 - `done` decides
                _post(loop, done, None, error)
            else:
                _post(loop, done, value, None)

        self._pending.put(run)
        if self._thread is None:
            self._thread = threading.Thread(
                target=_run_all, args=(self._pending,), name=self._name, daemon=True
            )
            self._thread.start()

    def end(self) -> None:
        """End the thread once it has done all that it was given."""
        self._pending.put(None)

    def abandon(self) -> None:
        """Show in its name that its answer is no longer awaited."""
        if self._thread is not None:
            self._thread.name = self._name + _ABANDONED


async def in_thread(name: str, work: Callable[[], _T], *, deadline_seconds: float | None) -> _T:
    """Run what blocks in a daemon thread; raises `TimeoutError` when it takes too long (None: never).

    The thread cannot be stopped: a late answer is dropped, and a thread that hangs
    for good never keeps the program from ending. What `work` raises, this raises.
    While many of a name hang, no other is begun that would too: it is over at once.
    """
    if _abandoned(name) >= MAX_STUCK_THREADS:
        raise TimeoutError
    answer: asyncio.Future[_T] = asyncio.get_running_loop().create_future()

    def done(value: _T | None, error: BaseException | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(cast("_T", value))

    worker = Worker(name)
    worker.do(work, done)
    worker.end()
    try:
        async with asyncio.timeout(deadline_seconds):
            return await answer
    except TimeoutError:
        worker.abandon()
        raise


def _abandoned(name: str) -> int:
    return sum(one.name == name + _ABANDONED for one in threading.enumerate())


def _run_all(pending: "queue.SimpleQueue[Callable[[], None] | None]") -> None:
    while (run := pending.get()) is not None:
        run()


def _post(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *arguments: object) -> None:
    try:
        loop.call_soon_threadsafe(call, *arguments)
    except RuntimeError:
        return  # the loop is closed: the program ended before the answer came


def _close_at_end(task: asyncio.Task[_T], work: Coroutine[Any, Any, _T]) -> None:
    """See to it that work which was cancelled before its first step is no coroutine that nobody awaits."""
    task.add_done_callback(lambda _: work.close())


async def _guarded(name: str, work: Coroutine[Any, Any, _T]) -> _T:
    try:
        return await work
    except Exception as error:
        _LOG.crash("task_crashed", error, task=name, problem=f"{type(error).__name__}: {error}")
        raise TaskCrashedError(name, error) from error
