"""How a true registry is, and the figures by which it is watched."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from gpu_agent.runtime.sdnotify import SystemdNotifier
from gpu_agent.runtime.tasks import Tasks
from gpu_agent.server import health as pulse
from gpu_agent.server.health import (
    MOST_LATE_SECONDS,
    MOST_WRITING_SECONDS,
    Liveness,
    liveness_problem,
    report_to_systemd,
    status_line,
)
from gpu_agent.server.limits import Limits
from gpu_agent.server.service import RegistryService, ServiceSettings
from gpu_agent.store.memory import MemoryStore
from tests.server.harness import LOOPBACK, Node, node, registration, running, until
from tests.service_manager import service_manager
from tests.waiting import until as waiting_until


@asynccontextmanager
async def loitering(service: RegistryService) -> AsyncIterator[None]:
    """Hold a connection open and say nothing."""
    _, writer = await asyncio.open_connection(service.node_address.host, service.node_address.port)
    await until(lambda: service.size.connections == 1, what="the connection")
    yield
    writer.close()
    await writer.wait_closed()


def failing(service: RegistryService) -> dict[str, str]:
    return {check.name: check.detail for check in service.health.readiness() if not check.ok}


async def test_a_registry_that_runs_is_ready(service: RegistryService) -> None:
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
        async with loitering(service):
            assert "is full" in failing(service)["nodes"]


async def test_figures_tell_of_nodes_beats_claims_and_refusals(service: RegistryService, ready: Node) -> None:
    async with node(service) as poor:
        await poor.say(registration(hardware={"cpu_cores": 1, "memory_gb": 1}))
        assert (await poor.hear())["code"] == "GPU_REQUIRED"
    figures = await service.health.figures()
    assert figures.ready
    assert figures.headcount.statuses["ready"] == 1
    assert figures.headcount.gpus == {("NVIDIA L4", "ok"): 1}
    assert (figures.beats, figures.connections >= 1, figures.listeners) == (3, True, 0)
    assert (figures.tally.registrations, figures.tally.refusals) == (1, {"GPU_REQUIRED": 1})
    assert ("registering", "ready", "health_checks_passed") in figures.tally.status_changes
    assert ready.node_id


NOW = 1_000_000.0


def test_a_registry_whose_clock_is_yet_to_wake_gets_on() -> None:
    assert liveness_problem(Liveness(wakes_at=NOW + 1, writing_since=None), NOW) is None


def test_a_loop_that_is_merely_busy_is_not_ill() -> None:
    assert liveness_problem(Liveness(wakes_at=NOW - MOST_LATE_SECONDS, writing_since=None), NOW) is None


def test_a_clock_that_is_not_looked_after_is_an_ailment() -> None:
    problem = liveness_problem(Liveness(wakes_at=NOW - 40, writing_since=None), NOW)
    assert problem == "the fleet's clock is 40 s late"


@pytest.mark.parametrize("seconds", [0, 10, MOST_WRITING_SECONDS])
def test_a_disk_that_takes_its_time_is_no_ailment(seconds: float) -> None:
    assert liveness_problem(Liveness(wakes_at=NOW, writing_since=NOW - seconds), NOW) is None


def test_a_store_that_does_not_come_back_is_an_ailment() -> None:
    problem = liveness_problem(Liveness(wakes_at=NOW, writing_since=NOW - 301), NOW)
    assert problem == "the store has been at one commit for 301 s"


def test_a_registry_that_stops_keeps_no_time_and_is_not_ill() -> None:
    assert liveness_problem(Liveness(wakes_at=None, writing_since=None), NOW) is None


# A true registry under a service manager.


WHERE = "nodes at here:1, operators at there:2"


async def test_it_says_what_it_holds_and_where_it_listens(service: RegistryService) -> None:
    assert status_line(service.health, WHERE) == f"0 nodes, 0 connections; {WHERE}"
    async with node(service) as peer:
        await peer.register()
        assert status_line(service.health, WHERE) == f"1 node, 1 connection; {WHERE}"


async def test_it_says_first_what_keeps_it_from_its_work(service: RegistryService) -> None:
    await service.stop()
    assert status_line(service.health, WHERE) == "it is starting or stopping"


async def test_a_registry_that_gets_on_feeds_the_watchdog(service: RegistryService, tmp_path: Path) -> None:
    with service_manager(tmp_path) as manager:
        systemd = SystemdNotifier({**manager.environment, "WATCHDOG_USEC": "40000"})
        async with Tasks() as tasks:
            tasks.start("supervised", report_to_systemd(systemd, service.health, where=WHERE))
            await waiting_until(lambda: manager.heard_so_far().count("WATCHDOG=1") >= 3)
            tasks.end()
    assert manager.heard[0] == f"STATUS=0 nodes, 0 connections; {WHERE}"


async def test_what_stands_still_is_logged_and_feeds_nothing(
    service: RegistryService,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="gpu_agent")
    monkeypatch.setattr(pulse, "MOST_LATE_SECONDS", -3600.0)  # a clock that wakes in time is late by that
    with service_manager(tmp_path) as manager:
        systemd = SystemdNotifier({**manager.environment, "WATCHDOG_USEC": "40000"})
        async with Tasks() as tasks:
            tasks.start("supervised", report_to_systemd(systemd, service.health, where=WHERE))
            await waiting_until(lambda: "registry_stalled" in caplog.messages)
            assert "WATCHDOG=1" not in manager.heard_so_far()
            monkeypatch.undo()
            await waiting_until(lambda: "WATCHDOG=1" in manager.heard_so_far())
            tasks.end()
    assert caplog.messages[-2:] == ["registry_stalled", "registry_recovered"]


async def test_a_registry_at_rest_shows_signs_of_health(service: RegistryService) -> None:
    signs = service.health.signs
    assert signs.wakes_at is not None
    assert replace(signs, wakes_at=0.0) == pulse.Liveness(wakes_at=0.0, writing_since=None)
