"""An event loop on the world's clock: all that the registry's shell asks of one, and its threads.

The shell itself is the true one. A loop belongs to one process: once that has crashed, nothing planned on it
comes to pass. While the process stands still, what is due waits.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from gpu_agent.server import writer
from tests.simulation.world import World

_HOP_SECONDS = 0.003
"""From the end of a thread's work until the loop hears of it."""


class ProcessCrashedError(Exception):
    """The process ends in the middle of what it does."""


@dataclass(slots=True)
class Timer:
    """A callback that is planned."""

    cancelled: bool = False

    def cancel(self) -> None:
        """Plan it no more."""
        self.cancelled = True


@dataclass(slots=True)
class _Work:
    do: Callable[[], None]
    done: bool = False


class SimulatedLoop:
    """One process's loop."""

    def __init__(
        self, world: World, *, busy_until: Callable[[], float], work_seconds: Callable[[], float]
    ) -> None:
        """`work_seconds` draws how long a thread takes."""
        self.dead = False
        self._world = world
        self._busy_until = busy_until
        self._work_seconds = work_seconds
        self._works: list[_Work] = []

    def enter(self, do: Callable[[], object]) -> None:
        """Run something on this loop, unless its process is gone."""
        if self.dead:
            return
        asyncio._set_running_loop(self)  # type: ignore[arg-type]  # all that is asked of it is here
        try:
            do()
        except ProcessCrashedError:
            assert self.dead
        finally:
            asyncio._set_running_loop(None)

    def time(self) -> float:
        """Return the time."""
        return self._world.now

    def call_later(self, seconds: float, call: Callable[..., object], *arguments: object) -> Timer:
        """Plan a callback."""
        timer = Timer()

        def due() -> None:
            if timer.cancelled or self.dead:
                return
            busy_until = self._busy_until()
            if busy_until > self._world.now:
                self._world.put_off(busy_until, due)
            else:
                self.enter(lambda: call(*arguments))

        self._world.after(seconds, due)
        return timer

    def call_soon(self, call: Callable[..., object], *arguments: object) -> Timer:
        """Plan a callback for as soon as may be."""
        return self.call_later(0.0, call, *arguments)

    def start_thread(
        self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]
    ) -> None:
        """Let a thread work; what it did stays done even if its process has crashed meanwhile."""

        def do() -> None:
            one.done = True
            self._works.remove(one)
            value, error = _outcome(work)
            self.call_later(self._world.soon(_HOP_SECONDS), done, value, error)

        one = _Work(do)
        self._works.append(one)
        self._world.after(self._work_seconds(), lambda: None if one.done or self.dead else do())

    def crash(self) -> None:
        """End the process. A thread that was at work may just have come to an end, or not."""
        for one in list(self._works):
            if self._world.chance(1 / 2):
                one.do()
        self.dead = True


def _outcome(work: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return work(), None
    except Exception as error:  # noqa: BLE001 - the callback decides, as with a true thread
        return None, error


class SimulatedWorker:
    """What the writer takes for its thread."""

    def __init__(self, name: str) -> None:
        """All threads of this world are alike."""

    def do(self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        """Work on the loop that is running."""
        loop: Any = asyncio.get_running_loop()
        loop.start_thread(work, done)

    def end(self) -> None:
        """Nothing is left behind."""


@contextmanager
def simulated_threads() -> Iterator[None]:
    """Let the writer's thread be a played one for the length of a block."""
    with patch.object(writer, "Worker", SimulatedWorker):
        yield
