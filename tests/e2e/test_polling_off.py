"""A laptop whose owner turned polling off: a ready node whose GPU is left alone until somebody asks."""

from pathlib import Path

import httpx
import psutil
import pytest

from tests.nvml_fake.control import FakeNvml
from tests.programs import Agent, Registry, eventually

pytestmark = pytest.mark.e2e

CONFIGURATION = "probe_interval_seconds = 0.2\npoll_gpus = false\n"


def test_a_node_is_ready_by_one_reading_and_reads_again_when_the_registry_asks(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    (tmp_path / "agent.toml").write_text(CONFIGURATION)
    config = ("--config", str(tmp_path / "agent.toml"))

    def readings() -> int:
        return fake.calls().count("nvmlDeviceGetTemperature 0")

    with (
        Registry("--warmup-heartbeat-interval-seconds", "0.5") as registry,
        Agent(registry.node_url, tmp_path / "state", *config, simulate=None, environment=fake.environment()),
    ):
        (node,) = registry.await_ready(1, within_seconds=20)
        assert readings() == 1
        assert not [pid for pid in fake.callers() if psutil.pid_exists(pid)]
        (gpu,) = registry.get(f"/v1/nodes/{node['node_id']}")["gpus"]
        assert (gpu["health"], gpu["usable"], gpu.get("temperature_c")) == ("ok", True, None)
        httpx.post(f"{registry.api}/v1/nodes/{node['node_id']}/refresh", json={}).raise_for_status()
        eventually(lambda: readings() == 2 or None, within_seconds=10, what="a reading that was asked for")
