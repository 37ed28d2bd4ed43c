"""A driver call that hangs: heartbeats go on, health becomes unknown, and it recovers by itself."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.nvml_fake.control import FakeNvml
from tests.programs import COMMAND, Agent, Registry, eventually
from tests.waiting import patience

pytestmark = pytest.mark.e2e

CONFIGURATION = """
probe_interval_seconds = 0.5

[advanced]
deadline_seconds = 1.0
nvml_stale_after_seconds = 4.0
"""


def test_a_hanging_driver_degrades_the_node_until_it_answers_again(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    (tmp_path / "agent.toml").write_text(CONFIGURATION)
    with (
        Registry(
            "--heartbeat-interval-seconds", "0.5", "--warmup-heartbeat-interval-seconds", "0.2"
        ) as registry,
        Agent(
            registry.node_url,
            tmp_path / "state",
            "--config",
            str(tmp_path / "agent.toml"),
            simulate=None,
            environment=fake.environment(),
        ),
    ):
        node_id = registry.await_ready(1, within_seconds=20)[0]["node_id"]

        fake.set("hang", "nvmlDeviceGetUtilizationRates", "0")
        ages: list[float] = []

        def degraded() -> dict[str, Any] | None:
            node = registry.get(f"/v1/nodes/{node_id}")
            assert node["last_heartbeat_age_seconds"] < 3, "heartbeats must go on while the driver hangs"
            ages.append(node["probe_age_seconds"])
            return node if node["status"] == "degraded" else None

        node = eventually(degraded, within_seconds=20, what="degraded")
        assert node["reason_code"] == "gpu_unavailable"
        assert "nvml_hung" in json.dumps(node["checks"])
        assert max(ages) > 3, "the age of the last good reading must grow"

        def reported() -> bool:
            events = registry.get(f"/v1/nodes/{node_id}/events")["events"]
            faults = [event["fields"]["code"] for event in events if event["event"] == "node_fault_reported"]
            return faults == ["NVML_HUNG"]

        eventually(reported, within_seconds=5, what="the fault in the node's history")

        fake.unset("hang", "nvmlDeviceGetUtilizationRates", "0")
        recovered = registry.await_status(node_id, "ready", within_seconds=30)
        assert recovered["reason_code"] == "recovered"


def test_probe_answers_within_its_deadline_with_exit_3(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    fake.set("hang", "nvmlDeviceGetUtilizationRates", "0")
    started = time.monotonic()
    done = subprocess.run(
        [*COMMAND, "probe", "--json"],
        env=fake.environment(),
        capture_output=True,
        timeout=patience(20),
        check=False,
    )
    assert done.returncode == 3
    assert time.monotonic() - started < 7
    document = json.loads(done.stdout)
    assert document["outcome"] == "driver_broken"
    assert "nvml_hung" in document["detail"]
