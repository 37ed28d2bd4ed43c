from pathlib import Path

import pytest

from gpu_agent.runtime.check_results import CheckStatus
from gpu_agent.runtime.systemd.install import StepError
from gpu_agent.runtime.systemd.status import InstalledBy, ServiceStatus, judge_service, service_status
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


def standing(**fields: object) -> ServiceStatus:
    usual: dict[str, object] = {
        "origin": InstalledBy.PACKAGE,
        "active": "active",
        "sub": "running",
        "enabled": "enabled",
        "main_pid": 123,
        "since": 1764360000.0,
        "restarts": 0,
        "result": "success",
    }
    return ServiceStatus(**{**usual, **fields})  # type: ignore[arg-type]  # a test's own fields


def test_a_service_that_runs_and_starts_at_boot_is_ok() -> None:
    judged = judge_service(AGENT, standing())
    assert (judged.verdict, judged.fix) == (CheckStatus.OK, None)
    assert judged.detail == "gpu-agent.service runs, process 123 since 20:00 UTC on 2025-11-28"


@pytest.mark.parametrize(
    ("fields", "words", "fix"),
    [
        ({"enabled": "disabled"}, "it is not started at boot", "`systemctl enable --now gpu-agent`"),
        ({"active": "inactive", "since": None, "enabled": "disabled"}, "was never started", "enable --now"),
        ({"active": "inactive"}, "was stopped at 20:00:00 UTC on 2025-11-28", "`systemctl start gpu-agent`"),
        (
            {"restarts": 3, "last_end": "oom-kill"},
            "again 3 times, last because the kernel killed it for want of memory",
            "journalctl",
        ),
    ],
)
def test_what_an_operator_should_know_of_a_service_is_a_warning(
    fields: dict[str, object], words: str, fix: str
) -> None:
    judged = judge_service(AGENT, standing(**fields))
    assert judged.verdict is CheckStatus.WARN
    assert words in judged.detail
    assert fix in (judged.fix or "")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"result": "signal", "exit_code": 9}, "it ended by signal 9 (SIGKILL)"),
        ({"result": "oom-kill", "exit_code": 9}, "for want of memory (oom-kill)"),
        (
            {"result": "exit-code", "exit_code": 4, "status_text": "ended: no disk"},
            "with exit code 4: no disk",
        ),
        (
            {"result": "exit-code", "exit_code": 1, "status_text": "ready as node-7"},
            "it ended with exit code 1",
        ),
    ],
)
def test_a_service_that_failed_says_how_and_why(fields: dict[str, object], words: str) -> None:
    for state in ({"active": "failed"}, {"active": "activating", "sub": "auto-restart"}):
        judged = judge_service(AGENT, standing(**fields, **state))
        assert judged.verdict is CheckStatus.FAIL
        assert judged.detail.endswith(words)


def test_the_variables_of_a_unit_are_read_as_systemd_quotes_them(
    programs: MachinePrograms, tmp_path: Path
) -> None:
    unit = RUNNING.format(file=tmp_path / "none") + 'Environment=A=1 "B=two words" C=3\n'
    programs.say("systemctl", unit)
    assert service_status(AGENT).environment == ("A=1", "B=two words", "C=3")
