"""A real agent that drains when it is stopped: its jobs finish first, and systemd is asked for the time."""

import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.programs import COMMAND, Agent, Registry
from tests.service_manager import service_manager
from tests.waiting import patience

pytestmark = pytest.mark.e2e

PACE = {
    "GPU_REGISTRY_WARMUP_HEARTBEAT_INTERVAL_SECONDS": "0.1",
    "GPU_REGISTRY_HEARTBEAT_INTERVAL_SECONDS": "3",
}


def _job(folder: Path, verb: str, job_id: str) -> None:
    socket = str(folder / "agent.sock")
    words = [*COMMAND, "job", verb, job_id, "--socket", socket]
    subprocess.run(words, check=True, capture_output=True, timeout=patience(30))


@contextmanager
def _busy(
    registry: Registry, folder: Path, seconds: float, *, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[Agent, str]]:
    """An agent that is ready, with a job that no heartbeat has reported yet; its node's id.

    It drains for so long when it is stopped.
    """
    drain = {"GPU_AGENT_DRAIN_ON_STOP_SECONDS": str(seconds), **(environment or {})}
    with Agent(registry.node_url, folder, environment=drain) as agent:
        (node,) = registry.await_ready(1, within_seconds=20)
        _job(folder, "start", "job-1")
        yield agent, str(node["node_id"])


def test_a_stop_waits_for_the_jobs_and_ends_with_the_last(tmp_path: Path) -> None:
    with service_manager(tmp_path) as manager, Registry("--allow-simulated", environment=PACE) as registry:
        folder = tmp_path / "agent"
        with _busy(registry, folder, 60, environment=manager.environment) as (agent, node_id):
            agent.send(signal.SIGTERM)
            registry.await_status(node_id, "draining", within_seconds=10)
            assert agent.await_event("agent_stopping")["drain_seconds"] == 60
            manager.hear_until("EXTEND_TIMEOUT_USEC=30000000", within_seconds=10)
            assert not agent.ended
            _job(folder, "finish", "job-1")
            assert agent.wait(patience(15)) == 0
            offline = registry.await_status(node_id, "offline", within_seconds=5)
            assert offline["reason_code"] == "drain_complete"


def test_a_second_signal_ends_the_wait(tmp_path: Path) -> None:
    with (
        Registry("--allow-simulated", environment=PACE) as registry,
        _busy(registry, tmp_path, 60) as (agent, node_id),
    ):
        agent.send(signal.SIGTERM)
        registry.await_status(node_id, "draining", within_seconds=10)
        agent.send(signal.SIGTERM)
        assert agent.wait(patience(8)) == 0
        assert registry.await_status(node_id, "offline", within_seconds=5)["reason_code"] == "unregistered"


def test_a_stop_waits_no_longer_than_configured(tmp_path: Path) -> None:
    with (
        Registry("--allow-simulated", environment=PACE) as registry,
        _busy(registry, tmp_path, 1) as (agent, node_id),
    ):
        agent.send(signal.SIGTERM)
        assert agent.wait(patience(12)) == 0
        assert registry.await_status(node_id, "offline", within_seconds=5)["reason_code"] == "drain_deadline"


def test_a_registry_that_stops_ends_the_wait(tmp_path: Path) -> None:
    with (
        Registry("--allow-simulated", environment=PACE) as registry,
        _busy(registry, tmp_path, 60) as (agent, node_id),
    ):
        agent.send(signal.SIGTERM)
        registry.await_status(node_id, "draining", within_seconds=10)
        registry.send(signal.SIGTERM)
        assert registry.wait(patience(8)) == 0
        assert agent.wait(patience(8)) == 0


def test_a_stop_does_not_wait_for_an_unreachable_registry(tmp_path: Path) -> None:
    drain = {"GPU_AGENT_DRAIN_ON_STOP_SECONDS": "60"}
    with Agent("ws://127.0.0.1:9/ws/node", tmp_path, environment=drain) as agent:
        agent.await_event("session_backing_off", within_seconds=15)
        agent.send(signal.SIGTERM)
        assert agent.wait(patience(8)) == 0
