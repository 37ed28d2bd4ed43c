import json
import os
import platform
import re
import subprocess
import time
from pathlib import Path

import jsonschema
import pytest

from gpu_agent.cli.main import main
from gpu_agent.wire.schema import schema_of
from tests.nvml_fake.control import FakeNvml
from tests.programs import COMMAND
from tests.waiting import patience


@pytest.fixture(autouse=True)
def own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model caches and no configuration but the test's own."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in [name for name in os.environ if name.startswith(("GPU_AGENT_", "HF_"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    machine = FakeNvml(tmp_path, gpus=8)
    for name, value in machine.environment().items():
        monkeypatch.setenv(name, value)
    return machine


def test_a_machine_with_gpus_could_register(fake: FakeNvml, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["outcome"], document["simulated"]) == (
        "gpu-agent.probe/1",
        "ok",
        False,
    )
    assert [gpu["uuid"] for gpu in document["gpus"]] == [fake.fact("uuid", index) for index in range(8)]
    assert {"index", "uuid", "name", "memory_mb", "health"} <= document["gpus"][0].keys()
    assert document["host"]["cpu_logical_cores"] >= 1
    assert document["took_ms"] > 0


def test_a_machine_without_a_driver_exits_2_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert main(["probe", "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["outcome"] == "no_driver"
    assert document["gpus"] == []
    assert document["detail"]


def test_a_broken_driver_exits_3_with_the_next_step(
    fake: FakeNvml, capsys: pytest.CaptureFixture[str]
) -> None:
    for call in ("nvmlInit_v2", "nvmlInitWithFlags"):
        fake.set("error", call, "*", "LIB_RM_VERSION_MISMATCH")
    assert main(["probe"]) == 3
    assert "reboot" in capsys.readouterr().out


def test_one_lost_gpu_does_not_hide_the_others(fake: FakeNvml, capsys: pytest.CaptureFixture[str]) -> None:
    fake.set("error", "nvmlDeviceGetTemperature", "3", "GPU_IS_LOST")
    assert main(["probe", "--json"]) == 0
    health = [gpu["health"] for gpu in json.loads(capsys.readouterr().out)["gpus"]]
    assert health == ["ok"] * 3 + ["lost"] + ["ok"] * 4


def test_a_simulated_machine_says_that_it_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "--simulate", "8xH100-80GB,1xL4-24GB"]) == 0
    said = capsys.readouterr().out
    assert "SIMULATED" in said
    assert said.count("H100 80GB HBM3  ok") == 8
    assert "Could register: all 9" in said


@pytest.mark.usefixtures("fake")
def test_a_machine_reported_to_simulate_is_probed_as_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def names(*words: str) -> list[str]:
        assert main(["probe", "--json", *words]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["simulated"] is True
        return [gpu["name"] for gpu in document["gpus"]]

    configuration = tmp_path / "agent.toml"
    configuration.write_text('simulate = "1xL4-24GB"\n')
    assert names("--config", str(configuration)) == ["NVIDIA L4"]
    monkeypatch.setenv("GPU_AGENT_SIMULATE", "1xH100-80GB")
    assert names("--config", str(configuration)) == ["NVIDIA H100 80GB HBM3"]
    assert names("--simulate", "1xT4-16GB") == ["Tesla T4"]


@pytest.mark.parametrize("where", ["flag", "environment"])
def test_an_empty_simulation_exits_4(
    where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if where == "environment":
        monkeypatch.setenv("GPU_AGENT_SIMULATE", "")
    assert main(["probe", *(["--simulate", ""] if where == "flag" else [])]) == 4
    assert "8xH100-80GB" in capsys.readouterr().err


def test_a_user_without_a_home_is_reported_what_the_machine_has(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def homeless(_: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", classmethod(homeless))
    for form in ("--json", "--register-preview"):
        assert main(["probe", form, "--simulate", "1xL4-24GB"]) == 0
        assert json.loads(capsys.readouterr().out)


def test_a_wrong_simulation_exits_4_with_the_nearest_product(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "--simulate", "8xH10-80GB"]) == 4
    assert "H100-80GB" in capsys.readouterr().err


def test_the_preview_is_the_registration_that_would_be_sent(
    fake: FakeNvml, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["probe", "--register-preview"]) == 0
    message = json.loads(capsys.readouterr().out)
    jsonschema.validate(message, schema_of("node_register"))
    assert message["platform"] == platform.system().lower()
    assert [gpu["uuid"] for gpu in message["hardware"]["gpus"]] == [fake.fact("uuid", i) for i in range(8)]


def test_a_preview_that_would_not_be_sent_says_so_and_exits_as_the_probe_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert main(["probe", "--register-preview"]) == 2
    said = capsys.readouterr()
    assert json.loads(said.out)["hardware"]["gpus"] == []
    assert "the agent would not send this" in said.err
    assert "Could not register: " in said.err


def test_configured_models_are_found_and_listed_by_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configuration = tmp_path / "agent.toml"
    configuration.write_text('[[declared_models]]\nmodel_id = "mine/asr"\nversion = "3"\nkind = "asr"\n')
    assert main(["probe", "--simulate", "1xL4-24GB", "--config", str(configuration)]) == 0
    assert re.search(r"^asr +mine/asr +3 +declared +ready$", capsys.readouterr().out, re.MULTILINE)


def test_a_wrong_configuration_exits_4_naming_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configuration = tmp_path / "agent.toml"
    configuration.write_text("modle_directories = []\n")
    assert main(["probe", "--simulate", "1xL4-24GB", "--config", str(configuration)]) == 4
    assert "model_directories" in capsys.readouterr().err


def test_it_writes_no_file(fake: FakeNvml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.unset("log")
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    before = set(tmp_path.rglob("*"))
    assert main(["probe", "--json"]) == 0
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("form", ["--json", "--register-preview", None])
def test_a_driver_that_hangs_costs_the_deadline_and_exits_3(form: str | None, fake: FakeNvml) -> None:
    fake.set("hang", "nvmlDeviceGetCount_v2", "*")
    began = time.monotonic()
    words = [*COMMAND, "probe", *([form] if form else [])]
    done = subprocess.run(words, capture_output=True, text=True, timeout=patience(30), check=False)
    took_seconds = time.monotonic() - began
    fake.unset("hang")
    assert done.returncode == 3
    assert "nvml_hung" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert 5.0 <= took_seconds < patience(8.0)
