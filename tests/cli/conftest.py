"""A real registry with two nodes, for the commands that ask one."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from tests.programs import Registry
from tests.waiting import patience


@dataclass(frozen=True, slots=True)
class Served:
    """A registry, and two nodes: `able` is ready and has the model `m`, `new` has sent no heartbeat yet."""

    registry: Registry
    able: str
    new: str

    @property
    def api(self) -> str:
        return self.registry.api


def _register(socket: ClientConnection, *models: str) -> str:
    message = {
        "type": "node_register",
        "version": "1.0.0",
        "hardware": {"cpu_cores": 8, "memory_gb": 32, "gpus": [{"name": "NVIDIA L4", "memory_gb": 24}]},
        "installed_models": [{"model_id": model, "version": "1", "enabled": True} for model in models],
        "accept_public_jobs": False,
    }
    socket.send(json.dumps(message))
    ack: dict[str, Any] = json.loads(socket.recv(timeout=patience(5)))
    return str(ack["node_id"])


@pytest.fixture
def served() -> Iterator[Served]:
    with ExitStack() as running:
        registry = running.enter_context(Registry("--claim-ttl-seconds", "600"))
        able, new = (
            running.enter_context(connect(registry.node_url, proxy=None, compression=None)) for _ in range(2)
        )
        able_id, new_id = _register(able, "m"), _register(new)
        usage = {"cpu_percent": 1.0, "mem_percent": 2.0, "running_jobs": 0}
        for _ in range(3):
            heartbeat = {
                "type": "node_heartbeat",
                "node_id": able_id,
                "timestamp": 1,
                "resource_usage": usage,
            }
            able.send(json.dumps(heartbeat))
        registry.await_status(able_id, "ready", within_seconds=5)
        yield Served(registry, able_id, new_id)
