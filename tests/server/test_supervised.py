"""A true registry under a service manager."""

from dataclasses import replace
from pathlib import Path

import pytest

from gpu_agent.runtime.sdnotify import Systemd
from gpu_agent.runtime.tasks import Tasks
from gpu_agent.server import pulse
from gpu_agent.server.service import RegistryService
from gpu_agent.server.supervised import attend, standing_of
from tests.server.harness import node
from tests.service_manager import service_manager
from tests.waiting import until

WHERE = "nodes at here:1, operators at there:2"


async def test_it_says_what_it_holds_and_where_it_listens(service: RegistryService) -> None:
    assert standing_of(service.vitals, WHERE) == f"0 nodes, 0 connections; {WHERE}"
    async with node(service) as peer:
        await peer.register()
        assert standing_of(service.vitals, WHERE) == f"1 node, 1 connection; {WHERE}"


async def test_it_says_first_what_keeps_it_from_its_work(service: RegistryService) -> None:
    await service.stop()
    assert standing_of(service.vitals, WHERE) == "it is starting or stopping"


async def test_a_registry_that_gets_on_feeds_the_watchdog(service: RegistryService, tmp_path: Path) -> None:
    with service_manager(tmp_path) as manager:
        systemd = Systemd({**manager.environment, "WATCHDOG_USEC": "40000"})
        async with Tasks() as tasks:
            tasks.start("supervised", attend(systemd, service.vitals, where=WHERE))
            await until(lambda: manager.heard_so_far().count("WATCHDOG=1") >= 3)
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
        systemd = Systemd({**manager.environment, "WATCHDOG_USEC": "40000"})
        async with Tasks() as tasks:
            tasks.start("supervised", attend(systemd, service.vitals, where=WHERE))
            await until(lambda: "registry_stands_still" in caplog.messages)
            assert "WATCHDOG=1" not in manager.heard_so_far()
            monkeypatch.undo()
            await until(lambda: "WATCHDOG=1" in manager.heard_so_far())
            tasks.end()
    assert caplog.messages[-2:] == ["registry_stands_still", "registry_gets_on_again"]


async def test_a_registry_at_rest_shows_signs_of_health(service: RegistryService) -> None:
    signs = service.vitals.signs
    assert signs.wakes_at is not None
    assert replace(signs, wakes_at=0.0) == pulse.Signs(wakes_at=0.0, writing_since=None)
