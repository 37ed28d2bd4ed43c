import argparse
import json
import re
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from gpu_agent.cli.doctor import report as doctor_report
from gpu_agent.cli.doctor.report import main
from gpu_agent.cli.tls_options import NAMES
from gpu_agent.probe.driver_files import look
from tests.hung_disk import hung


def arguments(tmp_path: Path, **given: object) -> argparse.Namespace:
    options = {
        "json": False,
        "registry_url": None,
        "join_token_file": None,
        "simulate": "1xT4-16GB",
        "state_dir": str(tmp_path / "state"),
        "config": None,
        **dict.fromkeys(NAMES),
    }
    return argparse.Namespace(**{**options, **given})


@pytest.fixture(autouse=True)
def own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_findings_come_in_the_order_of_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path)) == 1
    checks = [line[6:21].strip() for line in capsys.readouterr().out.splitlines()]
    named = [check for check in dict.fromkeys(checks) if not check.startswith(("model", "fail"))]
    assert named[:-1] == [
        *("configuration", "driver library", "kernel module", "device nodes", "NVML"),
        *("collectors", "GPUs", "container"),
        *("state directory", "identity", "join token"),
        *("registry", "DNS", "TCP", "TLS", "WebSocket", "credential", "clock"),
    ]


def test_every_check_is_explained_in_the_documentation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments(tmp_path, json=True, simulate=None))
    checks = {one["check"] for one in json.loads(capsys.readouterr().out)["checks"]}
    page = (Path(__file__).parents[3] / "docs" / "probe.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^\| `([A-Za-z ]+)` \|", page, re.MULTILINE))
    assert len(checks) > 15
    assert checks - explained == set()


def test_a_disk_that_never_answers_costs_its_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answered = threading.Event()

    def hang(*_: object) -> list[object]:
        answered.wait(30)
        return []

    monkeypatch.setattr(doctor_report, "DISK_SECONDS", 0.05)
    monkeypatch.setattr(doctor_report, "standing", hang)
    try:
        assert main(arguments(tmp_path)) == 1
    finally:
        answered.set()
    assert "the disk did not answer within 0.05 s" in capsys.readouterr().out


def test_a_place_on_a_disk_that_hangs_is_named_and_the_others_are_looked_into(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dead, well = tmp_path / "dead", tmp_path / "well"
    dead.mkdir()
    well.mkdir()
    config = tmp_path / "agent.toml"
    config.write_text(f'model_directories = ["{dead}", "{well}"]\nhub_roots = []\nollama_roots = []\n')
    with hung(dead):
        main(arguments(tmp_path, config=config))
    said = capsys.readouterr().out
    assert f"FAIL  model cache      {dead} is on a disk that does not answer." in said
    assert f"OK    model cache      {well} can be read" in said


def test_a_wrong_url_is_a_configuration_to_mend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path, registry_url="http://registry:8080")) == 1
    said = capsys.readouterr().out
    assert "FAIL  configuration    registry_url: " in said
    assert "ws://registry:8080/ws/node" in said


def test_a_mistyped_variable_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GPU_AGENT_REGSITRY_URL", "ws://s3cret")
    main(arguments(tmp_path))
    said = capsys.readouterr().out
    assert "WARN  configuration" in said
    assert "did you mean GPU_AGENT_REGISTRY_URL?" in said
    assert "s3cret" not in said


def test_device_nodes_that_hang_cost_their_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answered = threading.Event()

    def hang() -> list[str]:
        answered.wait(30)
        return []

    there = replace(look({}, root=tmp_path), module_version="570.1", nodes=("nvidiactl",))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.setattr(doctor_report, "DISK_SECONDS", 0.3)
    monkeypatch.setattr(doctor_report, "look", lambda _: there)
    monkeypatch.setattr("gpu_agent.probe.device_nodes.troubles", hang)
    try:
        assert main(arguments(tmp_path, simulate=None)) == 1
    finally:
        answered.set()
    assert "FAIL  device nodes     they did not open within 0.3 s" in capsys.readouterr().out
