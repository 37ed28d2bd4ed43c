import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gpu_agent.runtime.sdnotify import Systemd
from gpu_agent.runtime.supervision import supervise
from gpu_agent.runtime.tasks import Tasks
from tests.service_manager import ServiceManager, service_manager
from tests.waiting import until


@dataclass
class _Program:
    """A program whose health and standing change."""

    manager: ServiceManager
    line: str = "well"
    problem: str | None = None
    told: list[str | None] = field(default_factory=list)


@asynccontextmanager
async def _supervised(folder: Path, *, watchdog: bool = True) -> AsyncIterator[_Program]:
    with service_manager(folder) as manager:
        environ = {**manager.environment, **({"WATCHDOG_USEC": "40000"} if watchdog else {})}
        program = _Program(manager)
        looks = supervise(
            Systemd(environ),
            standing=lambda: program.line,
            ailment=lambda: program.problem,
            changed=program.told.append,
        )
        async with Tasks() as tasks:
            tasks.start("supervised", looks)
            yield program
            tasks.end()


async def test_what_gets_on_feeds_the_watchdog_and_says_how_it_stands(tmp_path: Path) -> None:
    async with _supervised(tmp_path) as program:
        await until(lambda: program.manager.heard_so_far().count("WATCHDOG=1") >= 3)
        program.line = "better"
        await until(lambda: "STATUS=better" in program.manager.heard_so_far())
    assert program.manager.heard[0] == "STATUS=well"
    assert program.told == []


async def test_what_stands_still_feeds_nothing_and_is_told_once_until_it_goes_on(tmp_path: Path) -> None:
    async with _supervised(tmp_path) as program:
        await until(lambda: "WATCHDOG=1" in program.manager.heard_so_far())
        program.problem = "it hangs"
        await until(lambda: program.told == ["it hangs"])
        fed = program.manager.heard_so_far().count("WATCHDOG=1")
        program.line = "hanging"
        await until(lambda: "STATUS=hanging" in program.manager.heard_so_far())
        assert program.manager.heard.count("WATCHDOG=1") == fed
        program.problem = None
        await until(lambda: program.manager.heard_so_far().count("WATCHDOG=1") > fed)
    assert program.told == ["it hangs", None]


async def test_a_loop_that_stands_feeds_nothing(tmp_path: Path) -> None:
    async with _supervised(tmp_path) as program:
        await until(lambda: "WATCHDOG=1" in program.manager.heard_so_far())
        fed = len(program.manager.heard_so_far())
        deadline = asyncio.get_running_loop().time() + 0.1
        while asyncio.get_running_loop().time() < deadline:
            pass  # what never gives the loop back
        assert len(program.manager.heard_so_far()) == fed


async def test_what_is_late_since_the_whole_program_was_stopped_is_not_told(tmp_path: Path) -> None:
    told: list[str | None] = []
    loop = asyncio.get_running_loop()
    due_at = loop.time()

    async def be_woken() -> None:
        nonlocal due_at
        while True:
            due_at = loop.time() + 1.2
            await asyncio.sleep(1.2)

    with service_manager(tmp_path) as manager:
        looks = supervise(
            Systemd({**manager.environment, "WATCHDOG_USEC": "4000000"}),
            standing=lambda: "well",
            ailment=lambda: "late" if loop.time() - due_at > 0.5 else None,
            changed=told.append,
        )
        async with Tasks() as tasks:
            tasks.start("supervised", looks)
            tasks.start("other", be_woken())
            await until(lambda: "WATCHDOG=1" in manager.heard_so_far())
            time.sleep(2.0)  # noqa: ASYNC251 - past the next look and what was due behind it, as a stop does
            fed = manager.heard_so_far().count("WATCHDOG=1")
            await until(lambda: manager.heard_so_far().count("WATCHDOG=1") > fed)
            tasks.end()
    assert told == []


async def test_without_a_service_manager_what_stands_still_is_told_all_the_same() -> None:
    told: list[str | None] = []
    looks = supervise(Systemd({}), standing=lambda: "well", ailment=lambda: "it hangs", changed=told.append)
    async with Tasks() as tasks:
        tasks.start("supervised", looks)
        await until(lambda: told == ["it hangs"])
        tasks.end()
