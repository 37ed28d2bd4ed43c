"""`gpu-agent check`: all checks of this machine, once, over a fake driver and a fake libcuda."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gpu_agent.cli.agent.check import check_schema
from gpu_agent.cli.main import main
from tests.cuda_fake.control import FakeCuda, built_library
from tests.nvml_fake.control import FakeNvml
from tests.probe.collectors.fake_collector import GOOD, bring
from tests.probe.collectors.machines import unpack
from tests.programs import COMMAND, eventually
from tests.waiting import patience


class Machine:
    """Two GPUs behind fake libraries, in this process's own environment."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nvml, self.cuda = FakeNvml(folder, gpus=2), FakeCuda(folder)
        for name, value in self.nvml.environment().items():
            monkeypatch.setenv(name, value)
        libraries = os.pathsep.join([os.environ["LD_LIBRARY_PATH"], str(built_library())])
        monkeypatch.setenv("LD_LIBRARY_PATH", libraries)
        monkeypatch.setenv("CUDA_FAKE_CONTROL", str(self.cuda.control))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def document(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    jsonschema.validate(found, check_schema())
    return found


@pytest.mark.usefixtures("machine")
def test_a_sound_machine_passes_and_each_check_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    copied = [line for line in lines if line.startswith("OK    memory_bandwidth")]
    assert ["GPU 0" in copied[0], "GPU 1" in copied[1], len(copied)] == [True, True, 2]
    assert all("GB/s to the GPU" in line for line in copied)
    assert lines[-1].startswith("Nothing fails: ")


def test_a_check_that_fails_is_the_exit_code_and_stands_in_the_document(
    machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.cuda.state(f"error cuMemcpyDtoH_v2 {machine.nvml.fact('uuid', 1)} 999")
    monkeypatch.setenv("GPU_AGENT_CHECKS__GPU_COUNT", "8")
    monkeypatch.setenv("GPU_AGENT_CHECKS__HOOK", "echo the fans are fine")
    assert main(["check", "--json"]) == 1
    found = document(capsys)
    assert found["ok"] is False
    failed = {(one["name"], one["detail"]) for one in found["checks"] if one["ok"] is False}
    assert failed == {
        ("memory_bandwidth", "cuMemcpyDtoH_v2 failed: CUDA_ERROR_UNKNOWN"),
        ("gpu_count", "2 GPUs, expected 8"),
    }
    assert {"name": "hook", "scope": "node", "ok": True, "detail": "the fans are fine"} in found["checks"]


def test_a_gpu_in_use_is_not_touched_and_neither_is_the_machine_by_the_hook(
    machine: Machine,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    ran = tmp_path / "ran"
    machine.nvml.set("process", 0, 4711, 1 << 30)
    machine.cuda.state(f"crash cuInit {machine.nvml.fact('uuid', 0)}")
    monkeypatch.setenv("GPU_AGENT_CHECKS__HOOK", f"touch {ran}")
    assert main(["check", "--json"]) == 0
    not_run = {one["name"]: one["detail"] for one in document(capsys)["checks"] if one["ok"] is None}
    assert not_run["memory_bandwidth"] == "the GPU is not checked: 1 process uses it"
    assert not_run["hook"] == "GPU 0 is in use: 1 process uses it"
    assert not ran.exists()


def test_without_a_driver_it_says_so_with_the_exit_code_of_probe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nowhere")
    assert main(["check"]) == 2
    said = capsys.readouterr()
    assert (said.out, "No NVIDIA driver was found" in said.err) == ("", True)
    assert main(["check", "--json"]) == 2
    found = document(capsys)
    assert (found["ok"], found["outcome"], found["checks"]) == (False, "no_driver", [])
    assert "No NVIDIA driver was found" in found["detail"]


@pytest.mark.usefixtures("machine")
def test_the_document_of_a_sound_machine_is_ok(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--json"]) == 0
    found = document(capsys)
    assert (found["ok"], found["outcome"], found["detail"]) == (True, "ok", None)


def test_a_driver_without_any_gpu_is_not_ok(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.nvml.set("count", 0)
    assert main(["check", "--json"]) == 2
    found = document(capsys)
    assert (found["ok"], found["outcome"]) == (False, "ok")
    assert "found no GPU" in found["detail"]


def test_a_machine_whose_only_gpu_is_its_processors_own_is_not_ok(
    machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine.nvml.set("count", 0)  # such as after its GPU fell off the bus and it was started again
    monkeypatch.setenv("GPU_AGENT_SYS_DIR", str(unpack("ryzen-apu", tmp_path / "sys")))
    assert main(["check"]) == main(["probe"]) == 2
    capsys.readouterr()
    assert main(["check", "--json"]) == 2
    assert document(capsys)["ok"] is False


def test_a_collector_that_prints_spoils_no_document(
    machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bring(tmp_path, "loud", f"print('hello'){GOOD}")
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["check", "--json"]) == 0
    assert machine.nvml.fact("uuid", 0) in {one["scope"] for one in document(capsys)["checks"]}


def test_a_simulated_machine_fails_where_its_schedule_has_a_fault(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["check", "--simulate", "2xH100-80GB"]) == 0
    assert "Nothing fails" in capsys.readouterr().out
    assert main(["check", "--simulate", "2xH100-80GB:lost#1@0s"]) == 1
    assert "FAIL  memory_bandwidth  GPU 0   the GPU is lost: gpu_lost" in capsys.readouterr().out


@pytest.mark.parametrize(
    "spec", ["8xH100-80GB", "1xT4-16GB", "1xRTX4090-24GB", "1xGB10-128GB", "1xA100-80GB/7x1g.10gb"]
)
def test_the_checks_of_the_documented_example_pass_on_a_sound_machine_without_settings(
    spec: str, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[3] / "docs/howto/return-to-service.md").read_text()
    (required,) = re.findall(r"^admission.required_checks = (\[.*\])$", page, re.MULTILINE)
    assert main(["check", "--json", "--simulate", spec]) == 0
    passed = {one["name"] for one in document(capsys)["checks"] if one["ok"]}
    assert set(json.loads(required)) <= passed


def test_the_same_simulated_machine_is_checked_and_probed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def uuids(command: str) -> tuple[set[str], set[str]]:
        main([command, "--json", "--simulate", "2xH100-80GB"])
        found = json.loads(capsys.readouterr().out)
        checked = {one["scope"] for one in found.get("checks", ())} - {"node"}
        return checked, {gpu["uuid"] for gpu in found.get("gpus", ())}

    assert uuids("check")[0] == uuids("probe")[1]
    monkeypatch.setenv("GPU_AGENT_STATE_DIR", str(tmp_path))
    assert uuids("check")[0] == uuids("probe")[1]


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_ends_the_command_ends_its_hook_too(number: signal.Signals, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\necho $$ > {pid_file}.part; mv {pid_file}.part {pid_file}; exec sleep 600\n")
    hook.chmod(0o755)
    environ = {**os.environ, "GPU_AGENT_CHECKS__HOOK": str(hook)}
    running = subprocess.Popen([*COMMAND, "check"], env=environ, stdout=subprocess.DEVNULL)
    try:
        eventually(pid_file.exists, within_seconds=30, what="the hook runs")
        running.send_signal(number)
        assert running.wait(patience(10)) == 130
        of_hook = Path("/proc") / pid_file.read_text().strip()
        eventually(lambda: not of_hook.exists(), within_seconds=5, what="the hook has ended")
    finally:
        running.kill()
        running.wait()
