"""A node that must pass its checks before it takes jobs: a real registry, a real agent, a real hook (§4)."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cuda_fake.control import FakeCuda, built_library
from tests.e2e.test_orders import order
from tests.nvml_fake.control import FakeNvml
from tests.programs import COMMAND, Agent, Registry, eventually
from tests.waiting import patience

pytestmark = pytest.mark.e2e

REASON = "GPU 3 is slow"
PACE = ("--heartbeat-interval-seconds", "0.5", "--warmup-heartbeat-interval-seconds", "0.1")
REQUIRED = {"GPU_REGISTRY_ADMISSION__REQUIRED_CHECKS": "hook,memory_bandwidth"}


def registry_that_requires_checks() -> Registry:
    return Registry(*PACE, "--allow-simulated", environment=REQUIRED)


def hook_at(path: Path, *lines: str) -> dict[str, str]:
    """Write a script, and return the settings that make it the agent's hook."""
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return {"GPU_AGENT_CHECKS__HOOK": str(path)}


def node_of(registry: Registry) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        nodes = registry.nodes()
        return registry.get(f"/v1/nodes/{nodes[0]['node_id']}") if nodes else None

    return eventually(look, within_seconds=20, what="a node")


def status_of(state: Path, *options: str) -> str:
    words = [*COMMAND, "status", "--socket", str(state / "agent.sock"), *options]
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=patience(20)).stdout


def test_a_failing_hook_keeps_the_node_degraded_until_it_is_fixed_and_checked_on_request(
    tmp_path: Path,
) -> None:
    hook = hook_at(tmp_path / "hook", "echo looking", f"echo '{REASON}'", "exit 3")
    with (
        registry_that_requires_checks() as registry,
        Agent(registry.node_url, tmp_path / "state", simulate="2xL4-24GB", environment=hook) as agent,
    ):
        node_id = node_of(registry)["node_id"]
        node = registry.await_status(node_id, "degraded", within_seconds=20)
        assert (node["reason_code"], REASON in node["reason"]) == ("check_failed", True)
        assert REASON in node["clears_when"]
        detail = registry.get(f"/v1/nodes/{node_id}")
        (failed,) = [one for one in detail["node_checks"] if not one["ok"]]
        assert (failed["name"], failed["scope"], failed["required"]) == ("hook", "node", True)
        assert failed["detail"] == f"exit status 3: {REASON}"

        def told() -> bool:
            status = json.loads(status_of(tmp_path / "state", "--json"))
            return (status["status"] or {}).get("reason_code") == "check_failed"

        assert eventually(told, within_seconds=10, what="the status at the agent")
        page = status_of(tmp_path / "state")
        assert REASON in page
        words = [*COMMAND, "registry", "node", "show", node_id, "--server", registry.api]
        shown = subprocess.run(words, check=True, capture_output=True, text=True, timeout=patience(20)).stdout
        assert REASON in shown
        assert "check_failed" in shown

        hook_at(tmp_path / "hook", "echo all 2 GPUs passed")
        words = [*COMMAND, "registry", "node", "check", node_id, "--server", registry.api]
        subprocess.run(words, check=True, capture_output=True, timeout=patience(20))
        agent.await_event("check_passed", check="hook")
        registry.await_status(node_id, "ready", within_seconds=20)
        (entry, *_) = registry.events("node_checks_changed")
        assert REASON in entry["failed"]


def test_a_hook_that_hangs_stops_neither_heartbeats_nor_the_shutdown(tmp_path: Path) -> None:
    group = tmp_path / "group"
    lines = (f"echo $$ > {group}", "trap '' TERM", "sleep 600 &", 'wait "$!"', 'wait "$!"')
    hook = hook_at(tmp_path / "hook", *lines)
    with (
        registry_that_requires_checks() as registry,
        Agent(registry.node_url, tmp_path / "state", simulate="1xL4-24GB", environment=hook) as agent,
    ):
        node_id = node_of(registry)["node_id"]
        before = registry.get(f"/v1/nodes/{node_id}")
        assert before["status"] == "registering"

        hook_runs = {"name": "pcie_link", "ok": True}.items()

        def checked() -> bool:
            node = registry.get(f"/v1/nodes/{node_id}")
            return any(hook_runs <= one.items() for one in node["node_checks"] or [])

        assert eventually(checked, within_seconds=20, what="the checks of GPUs, which come before the hook")
        eventually(group.exists, within_seconds=20, what="the hook")
        began = time.time()

        def went_on() -> bool:
            node = registry.get(f"/v1/nodes/{node_id}")
            return time.time() - began > 1 and node["last_heartbeat_age_seconds"] < 1

        assert eventually(went_on, within_seconds=20, what="heartbeats beside the hook")
        assert registry.get(f"/v1/nodes/{node_id}")["status"] == "registering"
        began = time.monotonic()
        agent.send(signal.SIGTERM)
        assert agent.wait(10) == 0
        assert time.monotonic() - began < patience(5)
    os.killpg(int(group.read_text()), signal.SIGKILL)  # the agent ends nobody by force


def test_a_check_on_request_judges_the_gpus_as_they_are_now(tmp_path: Path) -> None:
    nvml = FakeNvml(tmp_path, gpus=2)
    with (
        Registry(*PACE, environment={"GPU_REGISTRY_ADMISSION__REQUIRED_CHECKS": "compute_mode"}) as registry,
        Agent(registry.node_url, tmp_path / "state", simulate=None, environment=nvml.environment()),
    ):
        (node,) = registry.await_ready(1, within_seconds=20)
        ill = nvml.fact("uuid", 1)

        def mode() -> str:
            checks = registry.get(f"/v1/nodes/{node['node_id']}")["node_checks"]
            (one,) = [one for one in checks if (one["name"], one["scope"]) == ("compute_mode", ill)]
            return str(one["detail"])

        for number, words in ((2, "prohibited"), (0, "default")):
            nvml.set("compute_mode", 1, number)
            order(registry, node["node_id"], "check")
            eventually(lambda words=words: words in mode(), within_seconds=5, what=words)  # type: ignore[misc]


def test_an_order_to_check_reaches_no_node_that_is_away(tmp_path: Path) -> None:
    with (
        registry_that_requires_checks() as registry,
        Agent(registry.node_url, tmp_path / "state", simulate="1xL4-24GB") as agent,
    ):
        node_id = node_of(registry)["node_id"]
        agent.send(signal.SIGKILL)
        registry.await_event("node_disconnected", node_id=node_id)
        assert order(registry, node_id, "check")["code"] == "NODE_NOT_CONNECTED"


def test_a_gpu_that_hangs_the_library_is_taken_out_alone_and_returns_when_checked_again(
    tmp_path: Path,
) -> None:
    nvml, cuda = FakeNvml(tmp_path, gpus=2), FakeCuda(tmp_path)
    ill, sound = nvml.fact("uuid", 0), nvml.fact("uuid", 1)
    cuda.state(f"hang cuMemcpyHtoD_v2 {ill}")
    paths = f"{nvml.environment()['LD_LIBRARY_PATH']}:{built_library()}"
    settings = {
        "LD_LIBRARY_PATH": paths,
        "CUDA_FAKE_CONTROL": str(cuda.control),
        "GPU_AGENT_CHECKS__GPU_SECONDS": str(patience(3)),
        "GPU_AGENT_PROBE_INTERVAL_SECONDS": "0.3",
        "GPU_AGENT_LOG_LEVEL": "debug",
    }
    required = {"GPU_REGISTRY_ADMISSION__REQUIRED_CHECKS": "memory_bandwidth"}
    with (
        Registry(*PACE, environment=required) as registry,
        Agent(
            registry.node_url,
            tmp_path / "state",
            simulate=None,
            environment={**nvml.environment(), **settings},
        ) as agent,
    ):
        agent.await_event("check_failed", check="memory_bandwidth", scope=ill, within_seconds=30)
        node_id = node_of(registry)["node_id"]

        def usable() -> dict[str, bool]:
            return {gpu["uuid"]: gpu["usable"] for gpu in registry.get(f"/v1/nodes/{node_id}")["gpus"]}

        eventually(lambda: not usable()[ill], within_seconds=10, what="the GPU is not usable")
        cuda.state()
        words = [*COMMAND, "registry", "node", "check", node_id, "--server", registry.api]
        subprocess.run(words, check=True, capture_output=True, timeout=patience(20))
        for uuid in (ill, sound):
            agent.await_event("check_passed", check="memory_bandwidth", scope=uuid, within_seconds=30)
        registry.await_status(node_id, "ready", within_seconds=20)
        eventually(lambda: usable() == {ill: True, sound: True}, within_seconds=10, what="both usable")
