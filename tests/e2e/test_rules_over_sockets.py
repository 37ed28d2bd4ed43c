"""The protocol's rules once more, against a real `gpu-agent registry serve` over real sockets."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from tests.programs import Registry, eventually
from tests.waiting import patience

pytestmark = pytest.mark.e2e

TIMEOUT_SECONDS = 1.5


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with Registry(
        "--heartbeat-timeout-seconds",
        str(TIMEOUT_SECONDS),
        "--heartbeat-interval-seconds",
        "0.3",
        "--warmup-heartbeat-interval-seconds",
        "0.1",
        environment={"GPU_REGISTRY_SCAN_INTERVAL_SECONDS": "0.1"},
    ) as running:
        yield running


@pytest.fixture
def node(registry: Registry) -> Iterator[ClientConnection]:
    with connect(registry.node_url, proxy=None, compression=None) as socket:
        yield socket


def registration(**fields: object) -> dict[str, Any]:
    return {
        "type": "node_register",
        "version": "1.0.0",
        "hardware": {"cpu_cores": 8, "memory_gb": 32, "gpus": [{"name": "NVIDIA L4", "memory_gb": 24}]},
        "installed_models": [{"model_id": "m", "version": "1", "enabled": True}],
        "accept_public_jobs": False,
        **fields,
    }


def ask(socket: ClientConnection, message: dict[str, Any]) -> dict[str, Any]:
    socket.send(json.dumps(message))
    return hear(socket)


def hear(socket: ClientConnection) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(socket.recv(timeout=patience(5)))
    return message


def heartbeat(socket: ClientConnection, node_id: str, **fields: object) -> None:
    usage = {"cpu_percent": 1.0, "mem_percent": 2.0, "gpu_percent": 3.0, "running_jobs": 0}
    message = {
        "type": "node_heartbeat",
        "node_id": node_id,
        "timestamp": 1,
        "resource_usage": usage,
        **fields,
    }
    socket.send(json.dumps(message))


@pytest.mark.parametrize("gpus", [[], [{"name": "NVIDIA L4", "memory_gb": 0}]], ids=["no gpu", "zero memory"])
def test_r01_without_a_gpu_nothing_registers(
    registry: Registry, node: ClientConnection, gpus: list[Any]
) -> None:
    before = len(registry.nodes())
    answer = ask(node, registration(hardware={"cpu_cores": 8, "memory_gb": 32, "gpus": gpus}))
    assert (answer["type"], answer["code"]) == ("node_error", "GPU_REQUIRED")
    assert len(registry.nodes()) == before


def test_r02_one_gpu_is_acknowledged_as_registering(node: ClientConnection) -> None:
    answer = ask(node, registration())
    assert (answer["type"], answer["message"], answer["status"]) == (
        "node_register_ack",
        "registered",
        "registering",
    )
    assert answer["node_id"].startswith("node-")


@pytest.mark.parametrize(
    "version",
    [{}, {"capability_schema_version": None}, {"capability_schema_version": ""}],
    ids=["absent", "null", "empty"],
)
def test_r04_an_absent_schema_version_means_1_0(node: ClientConnection, version: dict[str, Any]) -> None:
    assert ask(node, registration(**version))["capability_schema_version"] == "1.0"


def test_r05_an_unknown_schema_version_is_refused_and_the_next_attempt_is_handled(
    node: ClientConnection,
) -> None:
    refusal = ask(node, registration(capability_schema_version="9.9"))
    assert refusal["code"] == "INVALID_CAPABILITY_SCHEMA"
    assert refusal["details"]["supported"] == ["1.0", "1.1"]
    assert ask(node, registration(capability_schema_version="1.1"))["type"] == "node_register_ack"


def test_r06_a_live_id_without_proof_is_a_conflict_with_the_next_step(
    registry: Registry, node: ClientConnection
) -> None:
    node_id = ask(node, registration())["node_id"]
    with connect(registry.node_url, proxy=None, compression=None) as other:
        refusal = ask(other, registration(node_id=node_id))
        assert refusal["code"] == "NODE_ID_CONFLICT"
        assert node_id in refusal["message"]
        assert ask(other, registration())["node_id"] != node_id


def test_s01_healthy_heartbeats_make_a_node_ready_and_it_receives_its_status(
    registry: Registry, node: ClientConnection
) -> None:
    node_id = ask(node, registration())["node_id"]
    for _ in range(2):
        heartbeat(node, node_id)
    two_heard = eventually(
        lambda: one if (one := registry.get(f"/v1/nodes/{node_id}"))["healthy_heartbeats"] == 2 else None,
        within_seconds=3,
        what="two healthy heartbeats",
    )
    assert two_heard["status"] == "registering"
    heartbeat(node, node_id)
    status = hear(node)
    while status["status"] == "registering":
        status = hear(node)
    assert (status["type"], status["node_id"], status["status"]) == ("node_status", node_id, "ready")
    assert status["reason_code"] == "health_checks_passed"
    assert abs(status["timestamp"] - time.time()) < 60


def test_s06_silence_ends_offline_within_the_timeout_and_a_second(
    registry: Registry, node: ClientConnection
) -> None:
    node_id = ask(node, registration())["node_id"]
    heartbeat(node, node_id)
    silent_since = time.monotonic()
    gone = registry.await_status(node_id, "offline", within_seconds=TIMEOUT_SECONDS + 3)
    assert TIMEOUT_SECONDS - 0.1 <= time.monotonic() - silent_since <= TIMEOUT_SECONDS + 1
    assert gone["reason_code"] == "heartbeat_timeout"


def test_d06_no_eligible_node_is_a_code_with_counted_reasons(
    registry: Registry, node: ClientConnection
) -> None:
    node_id = ask(node, registration())["node_id"]
    for _ in range(3):
        heartbeat(node, node_id)
    eventually(
        lambda: next(
            (n for n in registry.nodes() if n["node_id"] == node_id and n["status"] == "ready"), None
        ),
        within_seconds=3,
        what="ready",
    )
    request = urllib.request.Request(  # noqa: S310 - loopback, ours
        registry.api + "/v1/claims",
        data=json.dumps({"job_id": "job-1", "required_models": ["absent/model"]}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=patience(5))  # noqa: S310 - loopback, ours
    with refused.value as answer:
        problem = json.load(answer)
    assert (refused.value.code, problem["code"]) == (409, "NO_AVAILABLE_NODE")
    assert problem["counts"]["model_not_available"] >= 1
    assert set(problem["counts"]) <= {"model_not_available", "status_not_ready", "disconnected"}
