"""Readiness, liveness and the status line of a running registry."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gpu_agent.runtime.sdnotify import SystemdNotifier
from gpu_agent.runtime.tasks import Tasks
from gpu_agent.server import health
from gpu_agent.server.health import (
    MAX_LATE_SECONDS,
    MAX_WRITING_SECONDS,
    liveness_problem,
    report_to_systemd,
    status_line,
)
from gpu_agent.server.limits import Limits
from gpu_agent.server.service import RegistryService, ServiceSettings
from gpu_agent.store.memory import MemoryStore
from tests.server.harness import LOOPBACK, node, running, until
from tests.service_manager import service_manager
from tests.waiting import until as waiting_until


@asynccontextmanager
async def idle_connection(service: RegistryService) -> AsyncIterator[None]:
    """A connection that sends nothing."""
    _, writer = await asyncio.open_connection(service.node_address.host, service.node_address.port)
    await until(lambda: service.size.connections == 1, what="the connection")
    yield
    writer.close()
    await writer.wait_closed()


def failing(service: RegistryService) -> dict[str, str]:
    return {check.name: check.detail for check in service.health.readiness() if not check.ok}


async def test_a_running_registry_is_ready(service: RegistryService) -> None:
    assert failing(service) == {}


async def test_a_registry_that_has_not_started_or_has_stopped_is_not_ready() -> None:
    service = RegistryService(ServiceSettings(node_listen=LOOPBACK), MemoryStore())
    assert set(failing(service)) == {"fleet", "nodes"}
    await service.start()
    assert failing(service) == {}
    await service.stop()
    assert set(failing(service)) == {"fleet", "nodes"}


async def test_a_registry_without_room_for_another_node_is_not_ready() -> None:
    async with running(limits=Limits(max_connections=0)) as service:
        assert failing(service) == {}
        async with idle_connection(service):
            assert "is full" in failing(service)["nodes"]


NOW = 1_000_000.0


def test_a_fleet_timer_that_is_not_due_yet_is_no_problem() -> None:
    assert liveness_problem(NOW, wakes_at=NOW + 1, writing_since=None) is None


def test_a_loop_that_is_merely_busy_is_no_problem() -> None:
    assert liveness_problem(NOW, wakes_at=NOW - MAX_LATE_SECONDS, writing_since=None) is None


def test_a_fleet_timer_that_is_never_reached_is_a_problem() -> None:
    assert liveness_problem(NOW, wakes_at=NOW - 40, writing_since=None) == "the fleet's timer is 40 s late"


@pytest.mark.parametrize("seconds", [0, 10, MAX_WRITING_SECONDS])
def test_a_slow_disk_is_no_problem(seconds: float) -> None:
    assert liveness_problem(NOW, wakes_at=NOW, writing_since=NOW - seconds) is None


def test_a_commit_that_never_ends_is_a_problem() -> None:
    problem = liveness_problem(NOW, wakes_at=NOW, writing_since=NOW - 301)
    assert problem == "one commit to the store has taken 301 s so far"


def test_a_registry_that_stops_has_no_timer_and_no_problem() -> None:
    assert liveness_problem(NOW, wakes_at=None, writing_since=None) is None


ADDRESSES = "nodes at here:1, operators at there:2"


async def test_the_status_line_states_the_size_and_the_addresses(service: RegistryService) -> None:
    assert status_line(service.health, ADDRESSES) == f"0 nodes, 0 connections; {ADDRESSES}"
    async with node(service) as peer:
        await peer.register()
        assert status_line(service.health, ADDRESSES) == f"1 node, 1 connection; {ADDRESSES}"


async def test_the_status_line_states_a_failing_check_instead(service: RegistryService) -> None:
    await service.stop()
    assert status_line(service.health, ADDRESSES) == "it is starting or stopping"


async def reported(systemd: SystemdNotifier, service: RegistryService) -> None:
    await report_to_systemd(
        systemd,
        status_line=lambda: status_line(service.health, ADDRESSES),
        find_problem=service.health.liveness_problem,
    )


async def test_progress_feeds_the_watchdog(service: RegistryService, tmp_path: Path) -> None:
    with service_manager(tmp_path) as manager:
        systemd = SystemdNotifier({**manager.environment, "WATCHDOG_USEC": "40000"})
        async with Tasks() as tasks:
            tasks.start("supervised", reported(systemd, service))
            await waiting_until(lambda: manager.received_so_far().count("WATCHDOG=1") >= 3)
            tasks.end()
    assert manager.received[0] == f"STATUS=0 nodes, 0 connections; {ADDRESSES}"


async def test_a_stall_is_logged_and_does_not_feed_the_watchdog(
    service: RegistryService,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="gpu_agent")
    monkeypatch.setattr(health, "MAX_LATE_SECONDS", -3600.0)  # a timer that is not due yet counts as late
    with service_manager(tmp_path) as manager:
        systemd = SystemdNotifier({**manager.environment, "WATCHDOG_USEC": "40000"})
        async with Tasks() as tasks:
            tasks.start("supervised", reported(systemd, service))
            await waiting_until(lambda: "registry_stalled" in caplog.messages)
            assert "WATCHDOG=1" not in manager.received_so_far()
            monkeypatch.undo()
            await waiting_until(lambda: "WATCHDOG=1" in manager.received_so_far())
            tasks.end()
    assert caplog.messages[-2:] == ["registry_stalled", "registry_recovered"]


async def test_an_idle_registry_has_no_liveness_problem(service: RegistryService) -> None:
    assert service.health.liveness_problem(asyncio.get_running_loop().time()) is None
