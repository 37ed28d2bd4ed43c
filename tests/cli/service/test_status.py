import json
from pathlib import Path

import pytest

from gpu_agent.cli.app import main
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.version import __version__
from tests.cli.service_machine import ServiceMachine

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
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServiceMachine:
    found = ServiceMachine(tmp_path, monkeypatch)
    assert main(["service", "install"]) == ExitCode.OK
    found.programs.say("journalctl", 'token "gpun_0123abcd_s3cret" \x1b[31m\n')
    return found


def stand(
    machine: ServiceMachine, *, active: str = "active", pid: int = 123, ended: tuple[str, int] = ("", 0)
) -> None:
    file = machine.root / "etc/systemd/system/gpu-agent.service"
    result, code = ended
    state = STATE.format(active=active, pid=pid, file=file, result=result, code=code)
    machine.programs.say("systemctl", state)


def test_one_that_runs_is_shown_with_the_end_of_its_log(
    machine: ServiceMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    stand(machine)
    capsys.readouterr()
    assert main(STATUS) == ExitCode.OK
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "gpu-agent.service is active (running) since 2025-11-28 20:00:00 UTC"
    told = "\n".join(lines)
    assert "process      123, 0 restarts by systemd" in told
    assert "installed by `gpu-agent service install`" in told
    assert "starts       /opt/gpu-agent/bin/gpu-agent" in told
    assert "run `gpu-agent service install agent` again" in told
    assert "s3cret" not in told
    assert "\x1b" not in told


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        (("watchdog", 6), "by watchdog, signal 6"),
        (("exit-code", 4), "with exit code 4"),
        (("timeout", 0), "by timeout"),
    ],
)
def test_one_that_failed_says_how_it_ended(
    machine: ServiceMachine, capsys: pytest.CaptureFixture[str], ended: tuple[str, int], words: str
) -> None:
    stand(machine, active="failed", pid=0, ended=ended)
    assert main(STATUS) == ExitCode.FAILED
    told = capsys.readouterr().out
    assert "since 2025-11-28 20:01:00 UTC" in told
    assert f"it ended     {words}\n" in told


def test_where_there_is_none_it_says_how_to_make_one(
    machine: ServiceMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.programs.say("systemctl", "LoadState=not-found\n")
    assert main([*STATUS, "registry"]) == ExitCode.FAILED
    assert "`gpu-agent service install registry` does that" in capsys.readouterr().out


def test_programs_get_one_object(machine: ServiceMachine, capsys: pytest.CaptureFixture[str]) -> None:
    stand(machine)
    capsys.readouterr()
    assert main([*STATUS, "--json"]) == ExitCode.OK
    told = json.loads(capsys.readouterr().out)
    assert (told["schema"], told["half"], told["unit"]) == (
        "gpu-agent.service/1",
        "agent",
        "gpu-agent.service",
    )
    assert (told["installed_by"], told["runs"], told["version"]) == ("pip", True, "1.0")
    assert (told["program_version"], told["current"], told["main_pid"]) == (__version__, False, 123)
    assert "s3cret" not in json.dumps(told)


def test_without_systemd_there_is_no_service_to_look_at(
    machine: ServiceMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.without_systemd()
    assert main(STATUS) == ExitCode.CONFIGURATION
    assert "not run by systemd" in capsys.readouterr().err


def test_a_systemd_that_does_not_answer_is_told(
    machine: ServiceMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.programs.say("systemctl", "Failed to connect to bus\n", code=1)
    assert main(STATUS) == ExitCode.FAILED
    assert "systemd does not answer: Failed to connect to bus" in capsys.readouterr().err
