import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gpu_agent.runtime.sdnotify import MAX_STATUS_LENGTH, SEND_SECONDS, SystemdNotifier, notify_liveness
from gpu_agent.runtime.tasks import Tasks
from tests.service_manager import ServiceManager, service_manager
from tests.waiting import patience, until


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    with service_manager(tmp_path) as listening:
        yield listening


def test_each_state_is_one_datagram_in_the_words_of_sd_notify(manager: ServiceManager) -> None:
    systemd = SystemdNotifier(manager.environment)
    systemd.ready()
    systemd.stopping()
    systemd.alive()
    systemd.extend(1.5)
    assert manager.received_so_far() == ["READY=1", "STOPPING=1", "WATCHDOG=1", "EXTEND_TIMEOUT_USEC=1500000"]


def test_a_reload_says_when_it_began_by_the_monotonic_clock(manager: ServiceManager) -> None:
    before = time.monotonic_ns() // 1000
    SystemdNotifier(manager.environment).reloading()
    word, moment = manager.hear().split("\n")
    assert word == "RELOADING=1"
    assert before <= int(moment.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


def test_a_status_is_sent_when_it_has_changed(manager: ServiceManager) -> None:
    systemd = SystemdNotifier(manager.environment)
    systemd.status("connecting")
    systemd.status("connecting")
    systemd.status("ready")
    assert manager.received_so_far() == ["STATUS=connecting", "STATUS=ready"]


def test_a_status_is_one_line_whatever_a_registry_put_into_it(manager: ServiceManager) -> None:
    SystemdNotifier(manager.environment).status("fine\nWATCHDOG=trigger" + "x" * 1000)
    line = manager.hear()
    assert line.startswith("STATUS=fine WATCHDOG=trigger")
    assert len(line) == len("STATUS=") + MAX_STATUS_LENGTH


def test_a_socket_in_the_abstract_name_space_is_found() -> None:
    manager = ServiceManager(f"\0gpu-agent-test-{os.getpid()}")
    try:
        SystemdNotifier(manager.environment).ready()
        assert manager.hear() == "READY=1"
    finally:
        manager.close()


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}])
def test_without_a_socket_nothing_is_sent(environ: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    systemd = SystemdNotifier({**environ, "WATCHDOG_USEC": "1000000"})
    systemd.ready()
    assert (systemd.listens, systemd.watchdog_seconds, caplog.messages) == (False, None, [])


def test_a_socket_that_is_gone_is_logged_once_and_costs_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    systemd = SystemdNotifier({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    systemd.ready()
    systemd.alive()
    assert caplog.messages == ["systemd_notification_failed"]


def test_a_systemd_that_does_not_read_blocks_only_for_a_moment(
    manager: ServiceManager, caplog: pytest.LogCaptureFixture
) -> None:
    systemd = SystemdNotifier(manager.environment)
    began = time.monotonic()
    while not caplog.messages:
        systemd.alive()
        assert time.monotonic() - began < patience(10)
    assert caplog.messages == ["systemd_notification_failed"]
    began = time.monotonic()
    systemd.alive()
    assert time.monotonic() - began < SEND_SECONDS + 1


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_the_one_that_is_meant_for_this_process(
    environ: dict[str, str], seconds: float | None
) -> None:
    assert SystemdNotifier({"NOTIFY_SOCKET": "/run/none", **environ}).watchdog_seconds == seconds


@dataclass
class _Program:
    """A program whose health and standing change."""

    manager: ServiceManager
    line: str = "well"
    problem: str | None = None
    reported: list[str | None] = field(default_factory=list)


@asynccontextmanager
async def _supervised(folder: Path, *, watchdog: bool = True) -> AsyncIterator[_Program]:
    with service_manager(folder) as manager:
        environ = {**manager.environment, **({"WATCHDOG_USEC": "40000"} if watchdog else {})}
        program = _Program(manager)
        looks = notify_liveness(
            SystemdNotifier(environ),
            status_line=lambda: program.line,
            find_problem=lambda: program.problem,
            on_change=program.reported.append,
        )
        async with Tasks() as tasks:
            tasks.start("supervised", looks)
            yield program
            tasks.end()


async def test_what_gets_on_feeds_the_watchdog_and_says_how_it_stands(tmp_path: Path) -> None:
    async with _supervised(tmp_path) as program:
        await until(lambda: program.manager.received_so_far().count("WATCHDOG=1") >= 3)
        program.line = "better"
        await until(lambda: "STATUS=better" in program.manager.received_so_far())
    assert program.manager.received[0] == "STATUS=well"
    assert program.reported == []


async def test_a_stalled_program_feeds_nothing_and_is_reported_once_until_it_recovers(tmp_path: Path) -> None:
    async with _supervised(tmp_path) as program:
        await until(lambda: "WATCHDOG=1" in program.manager.received_so_far())
        program.problem = "it hangs"
        await until(lambda: program.reported == ["it hangs"])
        fed = program.manager.received_so_far().count("WATCHDOG=1")
        program.line = "hanging"
        await until(lambda: "STATUS=hanging" in program.manager.received_so_far())
        assert program.manager.received.count("WATCHDOG=1") == fed
        program.problem = None
        await until(lambda: program.manager.received_so_far().count("WATCHDOG=1") > fed)
    assert program.reported == ["it hangs", None]


async def test_a_loop_that_stands_feeds_nothing(tmp_path: Path) -> None:
    async with _supervised(tmp_path) as program:
        await until(lambda: "WATCHDOG=1" in program.manager.received_so_far())
        fed = len(program.manager.received_so_far())
        deadline = asyncio.get_running_loop().time() + 0.1
        while asyncio.get_running_loop().time() < deadline:
            pass  # what never gives the loop back
        assert len(program.manager.received_so_far()) == fed


async def test_what_is_late_since_the_whole_program_was_stopped_is_not_reported(tmp_path: Path) -> None:
    reported: list[str | None] = []
    loop = asyncio.get_running_loop()
    due_at = loop.time()

    async def be_woken() -> None:
        nonlocal due_at
        while True:
            due_at = loop.time() + 1.2
            await asyncio.sleep(1.2)

    with service_manager(tmp_path) as manager:
        looks = notify_liveness(
            SystemdNotifier({**manager.environment, "WATCHDOG_USEC": "4000000"}),
            status_line=lambda: "well",
            find_problem=lambda: "late" if loop.time() - due_at > 0.5 else None,
            on_change=reported.append,
        )
        async with Tasks() as tasks:
            tasks.start("supervised", looks)
            tasks.start("other", be_woken())
            await until(lambda: "WATCHDOG=1" in manager.received_so_far())
            time.sleep(2.0)  # noqa: ASYNC251 - past the next look and what was due behind it, as a stop does
            fed = manager.received_so_far().count("WATCHDOG=1")
            await until(lambda: manager.received_so_far().count("WATCHDOG=1") > fed)
            tasks.end()
    assert reported == []


async def test_a_stalled_program_is_reported_without_a_service_manager_too() -> None:
    reported: list[str | None] = []
    looks = notify_liveness(
        SystemdNotifier({}),
        status_line=lambda: "well",
        find_problem=lambda: "it hangs",
        on_change=reported.append,
    )
    async with Tasks() as tasks:
        tasks.start("supervised", looks)
        await until(lambda: reported == ["it hangs"])
        tasks.end()
