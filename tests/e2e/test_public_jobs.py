"""The owner's limits for public jobs, from a GPU that gets hot to the registry's answer and back."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.nvml_fake.control import FakeNvml
from tests.programs import Agent, Registry, eventually
from tests.waiting import patience

pytestmark = pytest.mark.e2e

QUICK = ("--warmup-heartbeat-interval-seconds", "0.5")
BUSY = ("--max-cpu-percent", "100", "--max-memory-percent", "100")  # this machine may be


def explained(registry: Registry, *, public: bool) -> dict[str, Any]:
    asked = urllib.request.Request(  # noqa: S310 - loopback, ours
        f"{registry.api}/v1/dispatch/explain",
        data=json.dumps({"public": public}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(asked, timeout=patience(5)) as response:  # noqa: S310 - the same
        answer: dict[str, Any] = json.load(response)
        return answer


def candidate(registry: Registry, node_id: str) -> bool:
    return node_id in explained(registry, public=True)["eligible"]


def test_d01_a_limit_excludes_public_jobs_while_it_lasts_and_private_ones_never(
    tmp_path: Path,
) -> None:
    fake = FakeNvml(tmp_path, gpus=1)
    limits = {
        "GPU_AGENT_ACCEPT_PUBLIC_JOBS": "true",
        "GPU_AGENT_PUBLIC_JOBS__MAX_TEMPERATURE_C": "90",
        "GPU_AGENT_PUBLIC_JOBS__RESUME_AFTER_SECONDS": "0.5",
        "GPU_AGENT_PROBE_INTERVAL_SECONDS": "0.2",
    }
    with (
        Registry(*QUICK, *BUSY) as registry,
        Agent(
            registry.node_url,
            tmp_path / "state",
            simulate=None,
            environment=limits | fake.environment(),
        ) as agent,
    ):
        node_id = registry.await_ready(1, within_seconds=20)[0]["node_id"]
        eventually(lambda: candidate(registry, node_id), within_seconds=5, what="taken before the heat")

        fake.set("temperature", 0, 95)
        agent.await_event("public_jobs_paused", limits=["max_temperature_c"])
        eventually(lambda: not candidate(registry, node_id), within_seconds=5, what="excluded")
        (excluded,) = explained(registry, public=True)["excluded"]
        assert (excluded["node_id"], excluded["reason"]) == (node_id, "not_in_public_pool")
        assert explained(registry, public=False)["eligible"] == [node_id]

        fake.set("temperature", 0, 45)
        agent.await_event("public_jobs_resumed")
        eventually(lambda: candidate(registry, node_id), within_seconds=5, what="taken again")
