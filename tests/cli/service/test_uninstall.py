from pathlib import Path

import pytest

from gpu_agent.cli.app import main
from gpu_agent.cli.outcome import ExitCode
from tests.cli.service_machine import ServiceMachine


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServiceMachine:
    found = ServiceMachine(tmp_path, monkeypatch)
    assert main(["service", "install"]) == ExitCode.OK
    state = found.root / "var/lib/gpu-agent"
    state.mkdir(parents=True)
    (state / "identity.json").write_text("{}")
    return found


def test_settings_and_state_stay_and_are_named(
    machine: ServiceMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["service", "uninstall"]) == ExitCode.OK
    assert machine.files() == {"etc/gpu-agent/agent.toml", "var/lib/gpu-agent/identity.json"}
    said = capsys.readouterr().out
    assert f"Kept: {machine.root}/etc/gpu-agent/agent.toml, {machine.root}/var/lib/gpu-agent." in said
    assert "systemctl disable --now gpu-agent.service" in machine.programs.calls


def test_a_purge_leaves_nothing(machine: ServiceMachine) -> None:
    assert main(["service", "uninstall", "--purge"]) == ExitCode.OK
    assert machine.files() == set()
    assert not (machine.root / "etc/gpu-agent").exists()


def test_a_second_time_it_says_that_there_is_nothing_to_do(
    machine: ServiceMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["service", "uninstall", "--purge"]) == ExitCode.OK
    calls = len(machine.programs.calls)
    assert main(["service", "uninstall"]) == ExitCode.OK
    assert "was no service; nothing was done." in capsys.readouterr().out
    assert len(machine.programs.calls) == calls


def test_a_dry_run_changes_nothing(machine: ServiceMachine, capsys: pytest.CaptureFixture[str]) -> None:
    before, calls = machine.files(), len(machine.programs.calls)
    machine.asks(1000)
    assert main(["service", "uninstall", "--purge", "--dry-run"]) == ExitCode.OK
    assert f"would remove {machine.root}/var/lib/gpu-agent" in capsys.readouterr().out
    assert (machine.files(), len(machine.programs.calls)) == (before, calls)


def test_anybody_but_root_is_refused(machine: ServiceMachine, capsys: pytest.CaptureFixture[str]) -> None:
    before = machine.files()
    machine.asks(1000)
    assert main(["service", "uninstall", "--purge"]) == ExitCode.CONFIGURATION
    assert "only root" in capsys.readouterr().err
    assert machine.files() == before
