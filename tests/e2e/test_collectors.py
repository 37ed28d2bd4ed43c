"""Collectors beside NVML in the whole program: what they find, and what they cannot break."""

import json
import os
import re
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.nvml_fake.control import FakeNvml
from tests.probe.collectors.amd_tree import MI300X, RX_7900, Sysfs
from tests.probe.collectors.fake_collector import GOOD, bring
from tests.programs import COMMAND, Agent, Registry, eventually
from tests.waiting import patience

pytestmark = pytest.mark.e2e

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "howto" / "collectors.md"
HANGS = """
import time
class Made:
    interface = 1
    def __init__(self, surroundings): pass
    def read(self, deadline_seconds):
        while True: time.sleep(3600)
"""
RAISES = (
    "class Made:\n    interface = 1\n    def __init__(self, surroundings): raise OSError('no such device')"
)
QUICK = """
probe_interval_seconds = 0.3

[advanced]
deadline_seconds = 1.0
nvml_stale_after_seconds = 3.0
"""


def probed(environment: Mapping[str, str], *more: str) -> tuple[int, dict[str, Any], float]:
    began = time.monotonic()
    done = subprocess.run(
        [*COMMAND, "probe", *(more or ("--json",))],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=patience(60),
        check=False,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout), time.monotonic() - began


def amd_machine(folder: Path) -> dict[str, str]:
    sysfs = Sysfs(folder / "sys")
    sysfs.card(1, "0000:83:00.0", MI300X)
    sysfs.card(0, "0000:c3:00.0", RX_7900)
    return {"GPU_AGENT_SYS_DIR": str(folder / "sys"), "HOME": str(folder / "home")}


def test_amd_and_nvidia_gpus_are_in_one_document(tmp_path: Path) -> None:
    environment = {**amd_machine(tmp_path), **FakeNvml(tmp_path, gpus=2).environment()}
    code, document, _ = probed(environment)
    assert (code, document["outcome"], document["detail"]) == (0, "ok", None)
    assert [(gpu["index"], gpu["vendor"]) for gpu in document["gpus"]] == [
        (0, "nvidia"),
        (1, "nvidia"),
        (2, "amd"),
        (3, "amd"),
    ]
    assert document["gpus"][2]["name"] == "AMD Instinct MI300X OAM"
    assert document["gpus"][2]["memory_mb"] == 192 * 1024


def test_a_machine_with_amd_gpus_alone_can_register_and_names_the_vendor(tmp_path: Path) -> None:
    environment = {**amd_machine(tmp_path), "LD_LIBRARY_PATH": str(tmp_path)}
    code, document, _ = probed(environment)
    assert (code, document["outcome"], document["detail"]) == (0, "ok", None)
    _, frame, _ = probed(environment, "--register-preview")
    assert [(gpu["vendor"], gpu["memory_gb"]) for gpu in frame["hardware"]["gpus"]] == [
        ("amd", 192),
        ("amd", 24),
    ]


def test_the_owner_may_disable_collectors(tmp_path: Path) -> None:
    environment = {**amd_machine(tmp_path), "LD_LIBRARY_PATH": str(tmp_path), "GPU_AGENT_COLLECTORS": "nvml"}
    code, document, _ = probed(environment)
    assert (code, document["outcome"], document["gpus"]) == (2, "no_driver", [])


def test_a_hanging_and_a_raising_collector_are_reported_in_time_and_cost_no_gpu(
    tmp_path: Path,
) -> None:
    bring(tmp_path, "stuck", HANGS)
    bring(tmp_path, "torn", RAISES)
    fake = FakeNvml(tmp_path, gpus=2)
    code, document, seconds = probed(
        {"PYTHONPATH": str(tmp_path), **amd_machine(tmp_path), **fake.environment()}
    )
    assert (code, document["outcome"], len(document["gpus"])) == (0, "ok", 4)
    assert "The collector 'stuck' did not answer within 5 s" in document["detail"]
    assert "The collector 'torn' failed (OSError: no such device)" in document["detail"]
    assert seconds < patience(15)


def test_a_collector_that_prints_does_not_spoil_the_document(tmp_path: Path) -> None:
    loud = "print('loading')\n" + GOOD.replace("        gpu =", "        print('reading')\n        gpu =")
    bring(tmp_path, "loud", loud)
    code, document, _ = probed({"PYTHONPATH": str(tmp_path), "LD_LIBRARY_PATH": str(tmp_path)})
    assert (code, [gpu["uuid"] for gpu in document["gpus"]]) == (0, ["INTEL-1"])


def test_the_example_in_the_docs_is_a_whole_collector(tmp_path: Path) -> None:
    (source,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    bring(tmp_path, "acme", source, names="AcmeGpus")
    card = tmp_path / "sys" / "class" / "acme" / "0"
    card.mkdir(parents=True)
    for name, text in (("serial", "A77"), ("memory_mb", "32768"), ("throttled", "1")):
        (card / name).write_text(text)
    code, document, _ = probed(
        {
            "PYTHONPATH": str(tmp_path),
            "GPU_AGENT_SYS_DIR": str(tmp_path / "sys"),
            "LD_LIBRARY_PATH": str(tmp_path),
        }
    )
    (gpu,) = document["gpus"]
    assert (code, gpu["uuid"], gpu["vendor"], gpu["health"]) == (0, "ACME-A77", "acme", "degraded")
    assert [(one["code"], one["detail"]) for one in gpu["reasons"]] == [
        ("collector_degraded", "too_hot: the card has throttled itself")
    ]


def test_a_hanging_nvidia_driver_takes_nothing_from_the_amd_gpus_of_a_node(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    environment = {**amd_machine(tmp_path), **fake.environment()}
    (tmp_path / "agent.toml").write_text(QUICK)
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
            environment=environment,
        ),
    ):
        node_id = registry.await_ready(1, within_seconds=20)[0]["node_id"]
        fake.set("hang", "nvmlDeviceGetUtilizationRates", "0")

        def healths() -> list[str]:
            return [gpu["health"] for gpu in registry.get(f"/v1/nodes/{node_id}")["gpus"]]

        wanted = ["unknown", "unknown", "ok", "ok"]
        eventually(lambda: healths() == wanted or None, within_seconds=30, what=str(wanted))
        node = registry.get(f"/v1/nodes/{node_id}")
        assert (node["status"], node["probe_age_seconds"] < 10) == ("ready", True)
        fake.unset("hang", "nvmlDeviceGetUtilizationRates", "0")
        eventually(lambda: healths() == ["ok"] * 4 or None, within_seconds=30, what="all four ok")
