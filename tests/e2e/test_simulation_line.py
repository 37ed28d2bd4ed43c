"""A simulated machine in the whole program: what its line says shows in the registry, at its time."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.programs import COMMAND, Agent, Registry, eventually
from tests.waiting import patience

pytestmark = pytest.mark.e2e

LINE = "2xA100-80GB/2x3g.40gb:lost#2@3s-8s, 1xGB10; models: whisper=asr, opus-mt-zh-en=nmt:error@3s-8s"


def probed(line: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*COMMAND, "probe", "--json", "--simulate", line],
        capture_output=True,
        text=True,
        timeout=patience(60),
        check=False,
    )


def test_a_simulated_fault_and_a_models_error_appear_in_the_registry_and_clear(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text("probe_interval_seconds = 0.3\n")
    with (
        Registry(
            "--allow-simulated",
            "--heartbeat-interval-seconds",
            "0.5",
            "--warmup-heartbeat-interval-seconds",
            "0.2",
        ) as registry,
        Agent(
            registry.node_url,
            tmp_path / "state",
            "--config",
            str(tmp_path / "agent.toml"),
            simulate=LINE,
        ),
    ):
        node_id = registry.await_ready(1, within_seconds=20)[0]["node_id"]

        def seen(healths: list[str], opus: str) -> dict[str, Any] | None:
            node = registry.get(f"/v1/nodes/{node_id}")
            shown = [gpu["health"] for gpu in node["gpus"]]
            states = {model["model_id"]: model["status"] for model in node["installed_models"]}
            return node if (shown, states.get("opus-mt-zh-en")) == (healths, opus) else None

        well, ill = ["ok"] * 7, ["ok"] * 3 + ["lost"] * 3 + ["ok"]
        eventually(lambda: seen(ill, "error"), within_seconds=20, what=str(ill))
        node = eventually(lambda: seen(well, "ready"), within_seconds=30, what=str(well))
        assert node["simulated"] is True
        assert node["status"] == "ready"


def test_one_probe_shows_mig_devices_unified_memory_and_the_stated_models() -> None:
    done = probed(LINE)
    document = json.loads(done.stdout)
    assert (done.returncode, document["simulated"], len(document["gpus"])) == (0, True, 7)
    assert [gpu["memory_kind"] for gpu in document["gpus"]] == ["dedicated"] * 6 + ["unified"]
    assert sorted(model["model_id"] for model in document["models"]) == ["opus-mt-zh-en", "whisper"]


def test_an_invalid_simulation_line_exits_4_with_the_position() -> None:
    done = probed("1xL4, 2xA100-80GB:lsot")
    assert (done.returncode, done.stdout) == (4, "")
    assert (
        "--simulate: at character 7, 'lsot' is no fault that can be simulated; the nearest is lost"
        in done.stderr
    )
    assert "Traceback" not in done.stderr
