from pathlib import Path

import pytest

from gpu_agent.runtime.systemd.install import StepError
from gpu_agent.runtime.systemd.status import InstalledBy, service_status
from gpu_agent.runtime.systemd.units import COMPONENTS
from tests.machine_programs import MachinePrograms

AGENT = COMPONENTS["agent"]
OURS = "# Written by `gpu-agent service install` of version 1.0.\n[Unit]\n"
RUNNING = """\
LoadState=loaded
ActiveState=active
SubState=running
UnitFileState=enabled
MainPID=123
ActiveEnterTimestamp=@1764360000
InactiveEnterTimestamp=@1764350000
FragmentPath={file}
StatusText=connected, ready = yes
NRestarts=2
Result=success
ExecMainStatus=0
NeedDaemonReload=no
ExecStart={{ path=/opt/my venv/gpu-agent ; argv[]=/opt/my venv/gpu-agent run ; ignore_errors=no }}
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MachinePrograms:
    found = MachinePrograms(tmp_path / "bin", monkeypatch)
    found.say("journalctl", "first\nlast\n")
    return found


def test_a_service_that_runs_is_reported_whole(programs: MachinePrograms, tmp_path: Path) -> None:
    file = tmp_path / "gpu-agent.service"
    file.write_text(OURS)
    programs.say("systemctl", RUNNING.format(file=file))
    standing = service_status(AGENT, OURS)
    assert (standing.origin, standing.version, standing.current) == (InstalledBy.PIP, "1.0", True)
    assert (standing.runs, standing.sub, standing.main_pid, standing.restarts) == (True, "running", 123, 2)
    assert (standing.since, standing.status_text) == (1764360000.0, "connected, ready = yes")
    assert standing.program == "/opt/my venv/gpu-agent"
    assert standing.lines == ("first", "last")


def test_a_unit_of_another_version_is_not_current(programs: MachinePrograms, tmp_path: Path) -> None:
    file = tmp_path / "gpu-agent.service"
    file.write_text(OURS)
    programs.say("systemctl", RUNNING.format(file=file))
    assert service_status(AGENT, OURS.replace("1.0", "2.0")).current is False


@pytest.mark.parametrize(
    ("file", "origin"),
    [
        ("/usr/lib/systemd/system/gpu-agent.service", InstalledBy.PACKAGE),
        ("/etc/systemd/system/gpu-agent.service", InstalledBy.HAND),
    ],
)
def test_what_installed_a_unit_follows_from_its_path(
    programs: MachinePrograms, file: str, origin: InstalledBy
) -> None:
    programs.say("systemctl", RUNNING.format(file=file))
    standing = service_status(AGENT, OURS)
    assert (standing.origin, standing.current) == (origin, None)


def test_one_that_is_down_says_since_when_and_why(programs: MachinePrograms) -> None:
    down = RUNNING.format(file="/x").replace("ActiveState=active", "ActiveState=failed")
    programs.say("systemctl", down.replace("MainPID=123", "MainPID=0").replace("=success", "=watchdog"))
    standing = service_status(AGENT, OURS)
    assert (standing.runs, standing.since, standing.main_pid) == (False, 1764350000.0, None)
    assert standing.result == "watchdog"


def test_without_a_service_nothing_is_reported(programs: MachinePrograms) -> None:
    programs.say("systemctl", "LoadState=not-found\nActiveState=inactive\n")
    assert service_status(AGENT, OURS).origin is None


def test_a_log_that_may_not_be_read_is_empty(programs: MachinePrograms) -> None:
    programs.say("systemctl", RUNNING.format(file="/x"))
    programs.say("journalctl", "No journal files were opened\n", code=1)
    assert service_status(AGENT, OURS).lines == ()


def test_a_systemd_that_does_not_answer_is_an_error(programs: MachinePrograms) -> None:
    programs.say("systemctl", "Failed to connect to bus\n", code=1)
    with pytest.raises(StepError, match="systemd does not answer: Failed to connect to bus"):
        service_status(AGENT, OURS)
