from pathlib import Path

import pytest

from gpu_agent.cli.app import main
from gpu_agent.cli.outcome import ExitCode
from tests.cli.service_machine import ServiceMachine
from tests.node.another_user import needs_root

INSTALL = ["service", "install"]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServiceMachine:
    found = ServiceMachine(tmp_path, monkeypatch)
    found.programs.say("systemctl", code=3)  # as of `is-active`, of one that does not run
    return found


@pytest.fixture
def obeying(machine: ServiceMachine) -> ServiceMachine:
    machine.programs.say("systemctl")
    return machine


def test_it_says_what_it_did_and_what_comes_next(
    obeying: ServiceMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(INSTALL) == ExitCode.OK
    said = capsys.readouterr().out
    assert "The agent of version 1.0 is now the service gpu-agent, run from /bin/sh." in said
    assert obeying.files() == {
        "etc/systemd/system/gpu-agent.service",
        "etc/sysusers.d/gpu-agent.conf",
        "etc/gpu-agent/agent.toml",
    }
    assert obeying.programs.calls == [
        f"systemd-sysusers {obeying.root}/etc/sysusers.d/gpu-agent.conf",
        "systemctl daemon-reload",
        "systemctl try-restart gpu-agent.service",
        "systemctl is-active --quiet gpu-agent.service",
    ]


def test_a_second_time_nothing_is_restarted(obeying: ServiceMachine) -> None:
    assert main(INSTALL) == ExitCode.OK
    assert main(INSTALL) == ExitCode.OK
    assert obeying.programs.calls.count("systemctl try-restart gpu-agent.service") == 1


def test_a_dry_run_changes_nothing_and_needs_no_root(
    machine: ServiceMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.asks(1000)
    assert main([*INSTALL, "--dry-run"]) == ExitCode.OK
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"would write {machine.root}/etc/systemd/system/gpu-agent.service"
    assert all(line.startswith("would ") for line in said)
    assert (machine.files(), machine.programs.calls) == (set(), [])


def test_the_agent_is_not_started_before_its_registry_is_named(
    obeying: ServiceMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*INSTALL, "--now"]) == ExitCode.CONFIGURATION
    assert "name your registry in /etc/gpu-agent/agent.toml" in capsys.readouterr().err
    assert not any("enable" in call for call in obeying.programs.calls)


@pytest.fixture
def settings(obeying: ServiceMachine, monkeypatch: pytest.MonkeyPatch) -> Path:
    placed = obeying.root / "etc/gpu-agent/agent.toml"
    placed.parent.mkdir(parents=True)
    placed.write_text('registry_url = "ws://10.0.0.1:8080"\n')
    monkeypatch.setattr("gpu_agent.node.settings.DEFAULT_CONFIG", placed)
    return placed


def test_with_settings_it_is_started_at_once(obeying: ServiceMachine, settings: Path) -> None:
    assert main([*INSTALL, "--now"]) == ExitCode.OK
    assert settings.exists()
    assert obeying.programs.calls[-1] == "systemctl enable --now gpu-agent.service"


@needs_root
def test_with_settings_that_the_service_cannot_read_it_is_not_started(
    obeying: ServiceMachine, settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.chmod(0o000)
    assert main([*INSTALL, "--now"]) == ExitCode.CONFIGURATION
    said = capsys.readouterr().err
    assert f"its user gpu-agent cannot read {settings}: closed to it is {settings} (mode 0000" in said
    assert not any("enable" in call for call in obeying.programs.calls)


def test_with_faulty_settings_it_is_not_started(
    obeying: ServiceMachine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "registry.toml").write_text("claim_tll_seconds = 1\n")
    monkeypatch.setattr("gpu_agent.server.settings.DEFAULT_CONFIG", tmp_path / "registry.toml")
    assert main([*INSTALL, "registry", "--now"]) == ExitCode.CONFIGURATION
    assert "did you mean 'claim_ttl_seconds'?" in capsys.readouterr().err
    assert not any("enable" in call for call in obeying.programs.calls)


@pytest.mark.parametrize(("uid", "booted"), [(1000, True), (0, False)])
def test_without_root_or_systemd_nothing_is_changed(
    machine: ServiceMachine, uid: int, *, booted: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.asks(uid)
    if not booted:
        machine.without_systemd()
    assert main([*INSTALL, "--now"]) == ExitCode.CONFIGURATION
    assert capsys.readouterr().err.count("\n") == 1
    assert (machine.files(), machine.programs.calls) == (set(), [])


def test_a_step_that_fails_is_told_and_ends_it(
    machine: ServiceMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.programs.say("systemctl", "Failed to reload daemon\n", code=1)
    assert main(INSTALL) == ExitCode.FAILED
    assert "`systemctl daemon-reload` failed: Failed to reload daemon. Mend that" in capsys.readouterr().err


def test_a_packages_service_is_named_before_anything_else_is_asked(
    machine: ServiceMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    unit = machine.root / "usr/lib/systemd/system/gpu-agent.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Unit]\n")
    machine.asks(1000)
    assert main(INSTALL) == ExitCode.CONFIGURATION
    assert "a package has brought this service" in capsys.readouterr().err
