"""An operator's orders to a node, from the API through two real processes to the probe and back (§3.6)."""

import json
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.programs import Agent, Registry, eventually
from tests.waiting import patience

pytestmark = pytest.mark.e2e

RARE_SECONDS = "30"
"""So seldom the agent looks at its machine by itself: what is seen sooner was asked for."""

SOON_SECONDS = 10


def order(registry: Registry, node_id: str, command: str) -> dict[str, Any]:
    """Ask the operators' API; a refusal is its problem document."""
    request = urllib.request.Request(  # noqa: S310 - loopback, ours
        f"{registry.api}/v1/nodes/{node_id}/{command}",
        data=b"{}",
        headers={"content-type": "application/json"},
        method="POST",
    )
    try:
        with urllib.request.urlopen(request, timeout=patience(5)) as response:  # noqa: S310 - loopback, ours
            document: dict[str, Any] = json.load(response)
    except urllib.error.HTTPError as refused:
        with refused:
            document = json.load(refused)
    return document


@contextmanager
def settled(tmp_path: Path) -> Iterator[tuple[Registry, Agent, str]]:
    """A registry and an agent that is ready there, and from then on sends heartbeats and probes rarely."""
    models = tmp_path / "models"
    models.mkdir()
    environment = {
        "GPU_AGENT_PROBE_INTERVAL_SECONDS": RARE_SECONDS,
        "GPU_AGENT_MODEL_DIRECTORIES": str(models),
    }
    pace = ("--heartbeat-interval-seconds", "600", "--warmup-heartbeat-interval-seconds", "0.1")
    with (
        Registry(*pace, "--allow-simulated") as registry,
        Agent(registry.node_url, tmp_path / "state", environment=environment) as agent,
    ):
        (node,) = registry.await_ready(1, within_seconds=20)
        yield registry, agent, node["node_id"]


def test_a_refresh_probes_at_once_and_reports_all_that_it_finds(tmp_path: Path) -> None:
    with settled(tmp_path) as (registry, agent, node_id):
        (tmp_path / "models" / "new.gguf").write_bytes(b"weights")
        assert registry.get(f"/v1/nodes/{node_id}")["installed_models"] == []
        assert order(registry, node_id, "refresh")["node_id"] == node_id
        agent.await_event("control_accepted", command="refresh")

        def found() -> list[str] | None:
            models = registry.get(f"/v1/nodes/{node_id}")["installed_models"]
            return [model["model_id"] for model in models] or None

        assert eventually(found, within_seconds=SOON_SECONDS, what="the new model") == ["new"]
        assert registry.get(f"/v1/nodes/{node_id}")["last_heartbeat_age_seconds"] < SOON_SECONDS


def test_a_reregister_command_makes_the_node_register_on_the_same_connection(tmp_path: Path) -> None:
    with settled(tmp_path) as (registry, agent, node_id):
        before = registry.get(f"/v1/nodes/{node_id}")
        assert order(registry, node_id, "reregister")["node_id"] == node_id
        agent.await_event("control_accepted", command="reregister")

        def again() -> dict[str, Any] | None:
            node = registry.get(f"/v1/nodes/{node_id}")
            is_new = node["session_epoch"] == before["session_epoch"] + 1 and node["status"] == "ready"
            return node if is_new else None

        node = eventually(again, within_seconds=SOON_SECONDS, what="ready in a new session")
        assert node["address"] == before["address"]
        assert registry.events("node_disconnected") == []


def test_a_command_to_a_node_without_an_agent_is_refused_with_the_next_step(tmp_path: Path) -> None:
    with settled(tmp_path) as (registry, agent, node_id):
        agent.send(signal.SIGKILL)
        registry.await_event("node_disconnected", node_id=node_id)
        problem = order(registry, node_id, "refresh")
        assert problem["code"] == "NODE_NOT_CONNECTED"
        assert "no open session" in problem["detail"]
