"""A GPU that fails: seen in the registry's view beside its sound neighbours, and back after its reset."""

from pathlib import Path
from typing import Any

import pytest

from tests.nvml_fake.control import FakeNvml
from tests.programs import Agent, Registry, eventually

pytestmark = pytest.mark.e2e

HEARTBEAT_SECONDS = 4
CONFIGURATION = "probe_interval_seconds = 0.5\n"


def test_an_xid_makes_its_gpu_lost_within_two_heartbeats_and_a_reset_clears_it(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=8)
    (tmp_path / "agent.toml").write_text(CONFIGURATION)
    heartbeat_options = (
        "--heartbeat-interval-seconds",
        str(HEARTBEAT_SECONDS),
        "--warmup-heartbeat-interval-seconds",
        "0.2",
    )
    config = ("--config", str(tmp_path / "agent.toml"))
    with (
        Registry(*heartbeat_options) as registry,
        Agent(
            registry.node_url,
            tmp_path / "state",
            *config,
            simulate=None,
            environment=fake.environment(),
        ) as agent,
    ):
        node_id = registry.await_ready(1, within_seconds=20)[0]["node_id"]
        ill = fake.fact("uuid", 3)

        def gpus() -> dict[str, dict[str, Any]]:
            listed = registry.get(f"/v1/nodes/{node_id}")["gpus"]
            return {gpu["uuid"]: gpu for gpu in listed}

        fake.happen(("xid", 3, 79), ("xid", 5, 31))
        lost = eventually(
            lambda: gpus() if gpus()[ill]["health"] == "lost" else None,
            within_seconds=2 * HEARTBEAT_SECONDS,
            what="lost",
        )
        assert lost[ill]["reasons"] == ["xid_79"]
        assert not lost[ill]["usable"]
        others = [gpu for uuid, gpu in lost.items() if uuid != ill]
        assert [(gpu["health"], gpu["usable"]) for gpu in others] == [("ok", True)] * 7
        assert registry.get(f"/v1/nodes/{node_id}")["status"] == "ready"

        changed = agent.await_event("gpu_health_changed", uuid=ill, to="lost")
        assert (changed["from"], changed["reasons"], changed["action"]) == ("ok", ["xid_79"], "reboot")
        assert agent.await_event("gpu_event", uuid=ill, code="xid_79")["counts"] is True
        assert agent.await_event("gpu_event", uuid=fake.fact("uuid", 5), code="xid_31")["counts"] is False

        events = registry.get(f"/v1/nodes/{node_id}/events")["events"]
        (fault,) = [event for event in events if event["event"] == "node_fault_reported"]
        assert fault["fields"]["code"] == "GPU_LOST"
        assert ill in fault["fields"]["message"]

        reset(fake, 3)
        agent.await_event("gpu_health_changed", uuid=ill, to="ok")
        eventually(
            lambda: gpus()[ill]["health"] == "ok" and gpus()[ill]["usable"],
            within_seconds=2 * HEARTBEAT_SECONDS,
            what="ok again",
        )
        assert len(agent.events("gpu_health_changed")) == 2


def reset(fake: FakeNvml, index: int) -> None:
    """Let the GPU count its energy from 0, and go on counting once that was read."""
    asked = f"nvmlDeviceGetTotalEnergyConsumption {index}"
    fake.set("energy_mj", index, 12)
    before = fake.calls().count(asked)
    eventually(
        lambda: fake.calls().count(asked) >= before + 2,
        within_seconds=30,
        what="a reading after the reset",
    )
    fake.set("energy_mj", index, 13)
