import json
import os
import re
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from gpu_agent.cli.agent import doctor
from gpu_agent.cli.agent import doctor as doctor_report
from gpu_agent.cli.agent.doctor import (
    SETTING_OPTIONS,
    check_lines,
    main,
    report_document,
    summary_line,
)
from gpu_agent.cli.command import Arguments
from gpu_agent.cli.output.text import plain_text
from gpu_agent.probe.nvml.driver_files import find_driver_files
from gpu_agent.runtime.check_results import fail, ok, skipped, warn
from gpu_agent.runtime.systemd.status import InstalledBy, ServiceStatus
from tests.hung_disk import hung
from tests.waiting import patience


def arguments(tmp_path: Path, **given: object) -> Arguments:
    options = {
        "json": False,
        "registry_url": None,
        "join_token_file": None,
        "simulate": "1xT4-16GB",
        "state_dir": str(tmp_path / "state"),
        "config": None,
        **dict.fromkeys(SETTING_OPTIONS),
    }
    return Arguments(**{**options, **given})


@pytest.fixture(autouse=True)
def own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_findings_come_in_the_order_of_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path)) == 1
    checks = [line[6:21].strip() for line in capsys.readouterr().out.splitlines()]
    named = [check for check in dict.fromkeys(checks) if not check.startswith(("model", "fail"))]
    assert named[:-1] == [
        "agent",
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
    page = (Path(__file__).parents[3] / "docs" / "reference" / "probe-and-doctor.md").read_text(
        encoding="utf-8"
    )
    explained = set(re.findall(r"^\| `([A-Za-z ]+)` \|", page, re.MULTILINE))
    assert len(checks) > 15
    assert checks - explained == set()


def test_a_disk_that_never_answers_costs_its_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answered = threading.Event()

    def hang(*_: object, **__: object) -> list[object]:
        answered.wait(patience(30))
        return []

    monkeypatch.setattr(doctor_report, "DISK_SECONDS", 0.05)
    monkeypatch.setattr(doctor_report, "check_state", hang)
    try:
        assert main(arguments(tmp_path)) == 1
    finally:
        answered.set()
    assert "the disk did not answer within 0.05 s" in capsys.readouterr().out


def test_a_slot_on_a_disk_that_hangs_is_named_and_the_others_are_looked_into(
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


def test_a_wrong_url_is_a_configuration_to_correct(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
        answered.wait(patience(30))
        return []

    there = replace(find_driver_files({}, root=tmp_path), module_version="570.1", nodes=("nvidiactl",))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.setattr(doctor_report, "DISK_SECONDS", 0.3)
    monkeypatch.setattr(doctor_report, "find_driver_files", lambda _: there)
    monkeypatch.setattr("gpu_agent.probe.nvml.device_nodes.node_problems", hang)
    try:
        assert main(arguments(tmp_path, simulate=None)) == 1
    finally:
        answered.set()
    assert "FAIL  device nodes     they did not open within 0.3 s" in capsys.readouterr().out


GOOD = ok("DNS", "registry.example is 10.0.0.1")
LATE = warn("clock", "this machine's clock is 90 s behind the registry's", "set it by NTP")
CLOSED = fail("TCP", "nothing at registry.example takes connections on port 8080", "open the firewall")


def drawn(columns: int | None) -> list[str]:
    return [plain_text(one) for finding in (GOOD, LATE, CLOSED) for one in check_lines(finding, columns)]


def test_a_pipe_gets_one_line_for_each_with_the_fix_behind_it() -> None:
    assert drawn(None) == [
        "OK    DNS              registry.example is 10.0.0.1",
        "WARN  clock            this machine's clock is 90 s behind the registry's. Fix: set it by NTP",
        f"FAIL  TCP              {CLOSED.detail}. Fix: open the firewall",
    ]


def test_a_terminal_gets_the_fix_beneath() -> None:
    said = drawn(80)
    assert said[2] == " " * 23 + "fix: set it by NTP"
    assert max(map(len, said)) <= 80


def test_several_faults_have_a_line_each() -> None:
    faults = fail("configuration", "a.toml:1: no address\na.toml:2: no level", "correct it")
    (piped,) = check_lines(faults, None)
    assert plain_text(piped).endswith("  a.toml:1: no address; a.toml:2: no level. Fix: correct it")
    first, second, _ = [plain_text(one) for one in check_lines(faults, 80)]
    assert (first[23:], second) == ("a.toml:1: no address", " " * 23 + "a.toml:2: no level")


@pytest.mark.parametrize("columns", [24, 40, 59, 60])
def test_nothing_is_wider_than_the_terminal(columns: int) -> None:
    assert max(map(len, drawn(columns))) <= columns


def test_what_it_comes_to_names_what_fails() -> None:
    assert plain_text(summary_line([GOOD, CLOSED, skipped("TLS", "not tried")])) == "1 of 3 fail: TCP"
    assert plain_text(summary_line([GOOD, LATE])) == "Nothing fails, 1 warning"
    assert plain_text(summary_line([GOOD])) == "Nothing fails"


def test_programs_get_every_result_in_one_document() -> None:
    document = report_document([GOOD, CLOSED]).model_dump(mode="json", by_alias=True)
    assert (document["schema"], document["ok"]) == ("gpu-agent.doctor/1", False)
    assert document["checks"] == [
        {"check": "DNS", "verdict": "ok", "detail": "registry.example is 10.0.0.1", "fix": None},
        {
            "check": "TCP",
            "verdict": "fail",
            "detail": "nothing at registry.example takes connections on port 8080",
            "fix": "open the firewall",
        },
    ]
    assert report_document([LATE]).ok is True


def test_words_from_elsewhere_cannot_steer_the_terminal() -> None:
    hostile = fail("credential", "the registry says \x1b[2J\r\nOK", "none")
    assert all("\x1b" not in plain_text(one) for one in check_lines(hostile, None))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with the service, whose user this process cannot become."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(doctor, "_MACHINE", tmp_path)
    monkeypatch.setattr(doctor, "why_not_as_service", lambda: "there is no user gpu-agent")
    monkeypatch.delenv("GPU_AGENT_STATE_DIR", raising=False)
    (tmp_path / "var/lib/gpu-agent").mkdir(parents=True, mode=0o700)
    (tmp_path / "etc/gpu-agent").mkdir(parents=True)
    token = tmp_path / "etc/gpu-agent/join-token"
    token.touch(mode=0o600)
    token.write_text("gpuj_3f9a01bc_AbCdEfGhIjKlMnOpQrStUvWxYz012345")
    return tmp_path


def examined(capsys: pytest.CaptureFixture[str], given: Arguments) -> dict[str, str]:
    main(given)
    return {one["check"]: one["detail"] for one in json.loads(capsys.readouterr().out)["checks"]}


def test_root_means_the_service_with_its_identity_and_its_join_token(
    machine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = examined(capsys, arguments(tmp_path, json=True, state_dir=None))
    # Where no root runs this test the directory is that of an ordinary user, which is reported as a fault.
    assert found["state directory"].startswith(str(machine / "var/lib/gpu-agent"))
    assert found["join token"] == f"in {machine / 'etc/gpu-agent/join-token'}"
    assert found["configuration"].endswith("checked as root: there is no user gpu-agent")


def test_root_becomes_the_services_user_before_anything_is_read_but_its_join_token(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def become(_environment: object) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 999)
        (machine / "etc/gpu-agent/join-token").unlink()  # root's alone

    monkeypatch.setattr(doctor, "why_not_as_service", lambda: None)
    monkeypatch.setattr(doctor, "become_service", become)
    found = examined(capsys, arguments(tmp_path, json=True, state_dir=None))
    assert "checked as the service's user gpu-agent" in found["configuration"]
    assert found["join token"] == f"in {machine / 'etc/gpu-agent/join-token'}"


def test_who_names_a_directory_means_that_one(
    machine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = examined(capsys, arguments(tmp_path, json=True, state_dir=tmp_path / "own"))
    assert str(machine / "var") not in found["state directory"]
    assert "checked as user " in found["configuration"]


@pytest.mark.parametrize("elsewhere", [True, False])
def test_where_there_is_no_service_and_for_other_users_nothing_is_added(
    machine: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    elsewhere: bool,
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
    if elsewhere:
        monkeypatch.setattr(doctor, "_MACHINE", machine / "elsewhere")
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found = examined(capsys, arguments(tmp_path, json=True, state_dir=None))
    assert str(tmp_path / "home") in found["state directory"]
    assert "join token" not in found or found["join token"] == "none given"


FAILED = ServiceStatus(
    origin=InstalledBy.PACKAGE,
    active="failed",
    sub="failed",
    enabled="enabled",
    since=1764360060.0,
    result="exit-code",
    exit_code=6,
    status_text="ended: the registry refuses this node: simulated nodes are not allowed here",
)


def test_the_service_comes_first_with_how_it_ended_and_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "find_service", lambda _: FAILED)
    assert main(arguments(tmp_path, json=True)) == 1
    first = json.loads(capsys.readouterr().out)["checks"][0]
    assert (first["check"], first["verdict"]) == ("service", "fail")
    assert first["detail"] == (
        "gpu-agent.service failed at 20:01:00 UTC on 2025-11-28: it ended with exit code 6: the registry "
        "refuses this node: simulated nodes are not allowed here"
    )
    assert "`systemctl start gpu-agent`" in first["fix"]
