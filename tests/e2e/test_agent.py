"""A real agent against a real registry: identity, leaving, refusals."""

import json
import signal
import stat
import time
from pathlib import Path

import pytest

from tests.programs import Agent, Registry
from tests.waiting import patience

pytestmark = pytest.mark.e2e


def test_an_agent_becomes_ready_and_returns_with_its_id(tmp_path: Path) -> None:
    with Registry("--allow-simulated") as registry:
        with Agent(registry.node_url, tmp_path) as agent:
            node = registry.await_ready(1, within_seconds=20)[0]
            agent.send(signal.SIGKILL)
            agent.wait(patience(5))
        with Agent(registry.node_url, tmp_path):
            back = registry.await_ready(1, within_seconds=20)[0]
        assert back["node_id"] == node["node_id"]
        assert len(registry.nodes()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_sigterm_makes_an_agent_unregister_and_exit_within_5_seconds(
    tmp_path: Path, number: signal.Signals
) -> None:
    with Registry("--allow-simulated") as registry, Agent(registry.node_url, tmp_path) as agent:
        node = registry.await_ready(1, within_seconds=20)[0]
        started = time.monotonic()
        agent.send(number)
        assert agent.wait(patience(5)) == 0
        assert time.monotonic() - started < 5
        gone = registry.await_status(node["node_id"], "offline", within_seconds=2)
        assert gone["reason_code"] == "unregistered"


def test_sigterm_ends_a_registry_with_connected_nodes_within_5_seconds(tmp_path: Path) -> None:
    with Registry("--allow-simulated") as registry, Agent(registry.node_url, tmp_path):
        registry.await_ready(1, within_seconds=20)
        registry.send(signal.SIGTERM)
        assert registry.wait(patience(5)) == 0


def test_a_simulated_node_is_refused_unless_allowed_and_the_agent_logs_it(tmp_path: Path) -> None:
    with Registry() as registry, Agent(registry.node_url, tmp_path) as agent:
        assert agent.wait(patience(10)) != 0
        assert "SIMULATED_NODE_REFUSED" in agent.output()
        assert registry.nodes() == []


def test_a_second_agent_on_the_same_state_directory_ends_naming_the_first(tmp_path: Path) -> None:
    with Registry("--allow-simulated") as registry, Agent(registry.node_url, tmp_path) as first:
        registry.await_ready(1, within_seconds=20)
        with Agent(registry.node_url, tmp_path) as second:
            assert second.wait(patience(10)) != 0
            assert str(first.pid) in second.output()


def test_a_corrupt_identity_is_renamed_and_a_new_id_is_assigned(tmp_path: Path) -> None:
    with Registry("--allow-simulated") as registry:
        with Agent(registry.node_url, tmp_path) as agent:
            old = registry.await_ready(1, within_seconds=20)[0]["node_id"]
            agent.send(signal.SIGTERM)
            agent.wait(patience(5))
        stored = next(path for path in tmp_path.iterdir() if old in path.read_text(errors="replace"))
        assert stat.S_IMODE(stored.stat().st_mode) == 0o600
        stored.write_text("{torn")
        with Agent(registry.node_url, tmp_path):
            new = registry.await_ready(1, within_seconds=20)[0]["node_id"]
        assert new != old
        assert any(path.read_text(errors="replace") == "{torn" for path in tmp_path.iterdir())


def test_every_log_line_is_one_json_object(tmp_path: Path) -> None:
    with Registry("--allow-simulated") as registry, Agent(registry.node_url, tmp_path) as agent:
        registry.await_ready(1, within_seconds=20)
        agent.send(signal.SIGTERM)
        agent.wait(patience(5))
        assert (agent.other, registry.other) == ([], [])
        assert json.dumps(registry.events("node_status_changed"))
