import json
import os
import sys
from pathlib import Path

import pytest

from gpu_agent.cli import service as service_place
from gpu_agent.cli.command import ExitCode, Failure
from gpu_agent.cli.main import main
from gpu_agent.cli.service import program, program_path, refused, this_machine
from gpu_agent.runtime.systemd.install import RefusedError
from gpu_agent.version import __version__
from tests.cli.service_machine import ServiceMachine
from tests.node.other_user import needs_root

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


def test_a_step_that_fails_is_reported_and_ends_it(
    machine: ServiceMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.programs.say("systemctl", "Failed to reload daemon\n", code=1)
    assert main(INSTALL) == ExitCode.FAILED
    assert "`systemctl daemon-reload` failed: Failed to reload daemon. Fix that" in capsys.readouterr().err


def test_a_packages_service_is_named_before_any_other_check(
    machine: ServiceMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    unit = machine.root / "usr/lib/systemd/system/gpu-agent.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Unit]\n")
    machine.asks(1000)
    assert main(INSTALL) == ExitCode.CONFIGURATION
    assert "a package has brought this service" in capsys.readouterr().err


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServiceMachine:
    found = ServiceMachine(tmp_path, monkeypatch)
    assert main(["service", "install"]) == ExitCode.OK
    state = found.root / "var/lib/gpu-agent"
    state.mkdir(parents=True)
    (state / "identity.json").write_text("{}")
    return found


def test_settings_and_state_stay_and_are_named(
    installed: ServiceMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["service", "uninstall"]) == ExitCode.OK
    assert installed.files() == {"etc/gpu-agent/agent.toml", "var/lib/gpu-agent/identity.json"}
    said = capsys.readouterr().out
    assert (
        f"Not removed: {installed.root}/etc/gpu-agent/agent.toml, {installed.root}/var/lib/gpu-agent." in said
    )
    assert "systemctl disable --now gpu-agent.service" in installed.programs.calls


def test_a_purge_leaves_nothing(installed: ServiceMachine) -> None:
    assert main(["service", "uninstall", "--purge"]) == ExitCode.OK
    assert installed.files() == set()
    assert not (installed.root / "etc/gpu-agent").exists()


def test_a_second_time_it_says_that_there_is_nothing_to_do(
    installed: ServiceMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["service", "uninstall", "--purge"]) == ExitCode.OK
    calls = len(installed.programs.calls)
    assert main(["service", "uninstall"]) == ExitCode.OK
    assert "was no service; nothing was done." in capsys.readouterr().out
    assert len(installed.programs.calls) == calls


def test_a_dry_run_changes_nothing(installed: ServiceMachine, capsys: pytest.CaptureFixture[str]) -> None:
    before, calls = installed.files(), len(installed.programs.calls)
    installed.asks(1000)
    assert main(["service", "uninstall", "--purge", "--dry-run"]) == ExitCode.OK
    assert f"would remove {installed.root}/var/lib/gpu-agent" in capsys.readouterr().out
    assert (installed.files(), len(installed.programs.calls)) == (before, calls)


def test_anybody_but_root_is_refused(installed: ServiceMachine, capsys: pytest.CaptureFixture[str]) -> None:
    before = installed.files()
    installed.asks(1000)
    assert main(["service", "uninstall", "--purge"]) == ExitCode.CONFIGURATION
    assert "only root" in capsys.readouterr().err
    assert installed.files() == before


STATUS = ["service", "status"]
STATE = """\
LoadState=loaded
ActiveState={active}
SubState=running
UnitFileState=enabled
MainPID={pid}
ActiveEnterTimestamp=@1764360000
InactiveEnterTimestamp=@1764360060
FragmentPath={file}
StatusText=connected
NRestarts=0
Result={result}
ExecMainStatus={code}
NeedDaemonReload=no
ExecStart={{ path=/opt/gpu-agent/bin/gpu-agent ; argv[]=/opt/gpu-agent/bin/gpu-agent run ; pid=0 }}
"""


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServiceMachine:
    found = ServiceMachine(tmp_path, monkeypatch)
    assert main(["service", "install"]) == ExitCode.OK
    found.programs.say("journalctl", 'token "gpun_0123abcd_s3cret" \x1b[31m\n')
    return found


def stand(
    running: ServiceMachine,
    *,
    active: str = "active",
    pid: int = 123,
    ended: tuple[str, int] = ("", 0),
) -> None:
    file = running.root / "etc/systemd/system/gpu-agent.service"
    result, code = ended
    state = STATE.format(active=active, pid=pid, file=file, result=result, code=code)
    running.programs.say("systemctl", state)


def test_one_that_runs_is_shown_with_the_end_of_its_log(
    running: ServiceMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    stand(running)
    capsys.readouterr()
    assert main(STATUS) == ExitCode.OK
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "gpu-agent.service is active (running) since 2025-11-28 20:00:00 UTC"
    printed = "\n".join(lines)
    assert "process      123, 0 restarts by systemd" in printed
    assert "installed by `gpu-agent service install`" in printed
    assert "starts       /opt/gpu-agent/bin/gpu-agent" in printed
    assert "run `gpu-agent service install agent` again" in printed
    assert "s3cret" not in printed
    assert "\x1b" not in printed


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        (("watchdog", 6), "by systemd's watchdog, signal 6 (SIGABRT): it stood still"),
        (("exit-code", 4), "with exit code 4"),
        (("timeout", 0), "by timeout"),
    ],
)
def test_one_that_failed_says_how_it_ended(
    running: ServiceMachine, capsys: pytest.CaptureFixture[str], ended: tuple[str, int], words: str
) -> None:
    stand(running, active="failed", pid=0, ended=ended)
    assert main(STATUS) == ExitCode.FAILED
    printed = capsys.readouterr().out
    assert "since 2025-11-28 20:01:00 UTC" in printed
    assert f"it ended     {words}\n" in printed


def test_where_there_is_none_it_says_how_to_make_one(
    running: ServiceMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    running.programs.say("systemctl", "LoadState=not-found\n")
    assert main([*STATUS, "registry"]) == ExitCode.FAILED
    assert "`gpu-agent service install registry` does that" in capsys.readouterr().out


def test_programs_get_one_object(running: ServiceMachine, capsys: pytest.CaptureFixture[str]) -> None:
    stand(running)
    capsys.readouterr()
    assert main([*STATUS, "--json"]) == ExitCode.OK
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["component"], document["unit"]) == (
        "gpu-agent.service/1",
        "agent",
        "gpu-agent.service",
    )
    assert (document["installed_by"], document["runs"], document["version"]) == ("pip", True, "1.0")
    assert (document["program_version"], document["current"], document["main_pid"]) == (
        __version__,
        False,
        123,
    )
    assert "s3cret" not in json.dumps(document)


def test_without_systemd_there_is_no_service_to_look_at(
    running: ServiceMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    running.without_systemd()
    assert main(STATUS) == ExitCode.CONFIGURATION
    assert "not run by systemd" in capsys.readouterr().err


def test_a_systemd_that_does_not_answer_is_reported(
    running: ServiceMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    running.programs.say("systemctl", "Failed to connect to bus\n", code=1)
    assert main(STATUS) == ExitCode.FAILED
    assert "systemd does not answer: Failed to connect to bus" in capsys.readouterr().err


def test_the_program_is_the_one_of_this_environment() -> None:
    found = program("registry")
    assert found.path == Path(sys.executable).with_name("gpu-agent")
    assert found.version == __version__
    assert Path(sys.executable) in found.parts
    assert all(part.exists() for part in found.parts)


def test_without_a_command_there_is_nothing_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_place, "program_path", lambda: tmp_path / "gpu-agent")
    with pytest.raises(Failure, match="with pip") as refused:
        program("agent")
    assert refused.value.code == ExitCode.CONFIGURATION


def test_a_registry_without_its_extra_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_place, "_OF_THE_REGISTRY", ("no_such_package",))
    assert program("agent").path == program_path()
    with pytest.raises(Failure, match=r"needs the package no_such_package.*gpu-agent\[registry\]"):
        program("registry")


def test_the_machine_is_this_one() -> None:
    here = this_machine()
    assert (here.root, here.uid) == (Path("/"), os.geteuid())
    assert (here.source / "gpu-agent.service").is_file()


def test_a_refusal_ends_as_wrong_configuration() -> None:
    assert refused(RefusedError("why")).code == ExitCode.CONFIGURATION
