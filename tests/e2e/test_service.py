"""Both programs under a service manager: ready, alive, stopping, each said when it is true."""

import signal
from pathlib import Path

import pytest

from tests.programs import Agent, Registry, free_port
from tests.service_manager import service_manager

pytestmark = pytest.mark.e2e

WATCHDOG = {"WATCHDOG_USEC": "400000"}


def test_an_agent_is_ready_and_alive_without_a_registry_and_says_that_it_stops(tmp_path: Path) -> None:
    with service_manager(tmp_path) as manager:
        environment = {**manager.environment, **WATCHDOG}
        url = f"ws://127.0.0.1:{free_port()}/ws/node"
        with Agent(url, tmp_path / "state", environment=environment) as agent:
            manager.hear_until("READY=1", within_seconds=20)
            manager.hear_until("STATUS=not connected, will try again: ", within_seconds=20)
            for _ in range(5):
                manager.hear_until("WATCHDOG=1")
            agent.send(signal.SIGTERM)
            assert agent.wait(6) == 0
        assert "STOPPING=1" in manager.heard_so_far()


def test_an_agents_status_is_the_registrys_word(tmp_path: Path) -> None:
    with (
        service_manager(tmp_path) as manager,
        Registry("--allow-simulated") as registry,
        Agent(registry.node_url, tmp_path / "state", environment=manager.environment),
    ):
        assert manager.hear_until("STATUS=ready as node-", within_seconds=30)


def test_an_agent_that_cannot_start_is_never_ready(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("no directory")
    with service_manager(tmp_path) as manager:
        with Agent("ws://127.0.0.1:1", tmp_path / "state", environment=manager.environment) as agent:
            assert agent.wait(20) == 4
        assert manager.heard_so_far() == []
