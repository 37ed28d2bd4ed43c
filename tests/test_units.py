"""The units and the examples of `systemd/`: they agree with the programs that they run."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from gpu_agent.cli.command import ExitCode as CommandExit
from gpu_agent.cli.main import main
from gpu_agent.node import settings as agent_settings
from gpu_agent.node.daemon import ExitCode
from gpu_agent.runtime.address import Address
from gpu_agent.runtime.sdnotify import LIVENESS_CHECK_SECONDS
from gpu_agent.server import settings as registry_settings
from tests.waiting import patience

SYSTEMD = Path(__file__).parent.parent / "systemd"
UNITS = ("gpu-agent.service", "gpu-registry.service")
LONGEST_STOP_SECONDS = 5
MOST_EXPOSED = 3.0
WATCHDOG_LOOKS = 4
SEVERAL = ("DeviceAllow", "SystemCallFilter")
"""What stands more than once in a unit, and adds up."""
SINCE_254 = ("RestartSteps", "RestartMaxDelaySec")
"""What systemd of Debian 12 has yet to learn, as the units say."""


def entries(unit: str) -> Mapping[str, str]:
    """Read a unit's settings; each name stands once in these units, but for a few, which are joined."""
    lines = (SYSTEMD / unit).read_text(encoding="utf-8").splitlines()
    found: dict[str, str] = {}
    for name, value in (line.split("=", 1) for line in lines if re.match(r"[A-Za-z]+=", line)):
        assert name not in found or name in SEVERAL
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def program(name: str) -> str:
    """Find a program of systemd's; there is nothing to test without it."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not on this machine")
    return path


def test_the_agent_is_not_restarted_when_a_person_has_to_act() -> None:
    prevented = {int(code) for code in entries("gpu-agent.service")["RestartPreventExitStatus"].split()}
    assert prevented == {ExitCode.UNUSABLE_STATE, ExitCode.REFUSED}
    assert CommandExit.CONFIGURATION in prevented


def test_the_registry_is_not_restarted_while_its_settings_are_wrong() -> None:
    assert entries("gpu-registry.service")["RestartPreventExitStatus"] == str(int(CommandExit.CONFIGURATION))


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_allows_the_time_that_its_program_takes_to_stop(unit: str) -> None:
    assert int(entries(unit)["TimeoutStopSec"]) >= LONGEST_STOP_SECONDS


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_restarts_after_a_failure(unit: str) -> None:
    assert entries(unit)["Restart"] == "on-failure"


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_follows_ready_watchdog_and_reload_notifications(unit: str) -> None:
    settings = entries(unit)
    assert settings["Type"] == "notify"
    assert int(settings["WatchdogSec"]) >= WATCHDOG_LOOKS * LIVENESS_CHECK_SECONDS
    assert shlex.split(settings["ExecReload"]) == ["/bin/sh", "-c", "kill -HUP $MAINPID"]


@pytest.mark.parametrize("unit", UNITS)
def test_no_unit_sets_a_dangerous_flag(unit: str) -> None:
    assert "insecure" not in (SYSTEMD / unit).read_text(encoding="utf-8")


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_starts_a_command_that_there_is(
    unit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program, *arguments = shlex.split(entries(unit)["ExecStart"])
    assert program == "/usr/bin/gpu-agent"
    missing = tmp_path / "missing.toml"
    assert main([*arguments, "--config", str(missing)]) == CommandExit.CONFIGURATION
    assert f"there is no file {missing}" in capsys.readouterr().err


def test_the_agents_example_can_be_used_as_it_is() -> None:
    settings = agent_settings.load({}, config=SYSTEMD / "agent.toml.example")
    assert settings.registry_url == "wss://registry.example:8080/ws/node"


def test_the_registrys_example_listens_on_this_machine_only() -> None:
    settings = registry_settings.load({}, config=SYSTEMD / "registry.toml.example")
    assert (settings.node_listen, settings.operator_listen) == (
        Address("127.0.0.1", 8080),
        Address("127.0.0.1", 8081),
    )


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_is_exposed_as_little_as_it_promises(unit: str) -> None:
    analyze = program("systemd-analyze")
    security = [analyze, "security", "--offline=true", "--no-pager"]
    done = subprocess.run(
        [*security, SYSTEMD / unit], check=False, capture_output=True, text=True, timeout=patience(60)
    )
    if done.returncode != 0 and not Path("/run/systemd").is_dir():
        pytest.skip("systemd-analyze needs /run/systemd, which systemd or root makes")
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze judges running services only")
    level = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    assert level is not None, done.stdout + done.stderr
    assert float(level[1]) <= MOST_EXPOSED, done.stdout


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_understands_each_line_of_a_unit(unit: str, tmp_path: Path) -> None:
    written = (SYSTEMD / unit).read_text(encoding="utf-8")
    copy = tmp_path / unit
    copy.write_text(written.replace("ExecStart=/usr/bin/gpu-agent", "ExecStart=/bin/echo"), encoding="utf-8")
    words = [program("systemd-analyze"), "verify", "--man=no", str(copy)]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=patience(60))
    ours = [line for line in done.stderr.splitlines() if unit in line]
    assert [line for line in ours if not any(name in line for name in SINCE_254)] == []


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_runs_as_the_user_that_its_sysusers_file_creates(unit: str, tmp_path: Path) -> None:
    sysusers = program("systemd-sysusers")
    source = SYSTEMD / f"{unit.removesuffix('.service')}.sysusers.conf"
    (tmp_path / "etc").mkdir()
    subprocess.run(
        [sysusers, f"--root={tmp_path}", source], check=True, capture_output=True, timeout=patience(60)
    )
    users = [line.split(":") for line in (tmp_path / "etc/passwd").read_text(encoding="utf-8").splitlines()]
    homes = {user[0]: user[5] for user in users}
    settings = entries(unit)
    assert homes[settings["User"]] == f"/var/lib/{settings['StateDirectory']}"
    groups = (tmp_path / "etc/group").read_text(encoding="utf-8")
    for group in settings.get("SupplementaryGroups", "").split():
        assert f"{group}:" in groups


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_restarts_without_end_at_growing_intervals(unit: str) -> None:
    settings = entries(unit)
    assert settings["StartLimitIntervalSec"] == "0"
    assert int(settings["RestartSec"]) < int(settings["RestartMaxDelaySec"])
    assert int(settings["RestartSteps"]) > 0


@pytest.mark.parametrize("unit", UNITS)
def test_each_line_of_a_unit_is_explained_above_it_or_above_its_paragraph(unit: str) -> None:
    service = (SYSTEMD / unit).read_text(encoding="utf-8").split("[Service]\n")[1].split("\n[Install]")[0]
    for paragraph in service.strip().split("\n\n"):
        assert paragraph.startswith("#"), paragraph


def test_the_agents_unit_shows_it_the_whole_machine() -> None:
    settings = entries("gpu-agent.service")
    hiding = {"ProtectProc", "ProcSubset", "PrivateUsers", "PrivateDevices", "PrivateNetwork"}
    assert not hiding & set(settings)
    assert settings["ProtectHome"] == "read-only"


def test_the_agents_unit_allows_nvidia_devices_before_their_driver_is_loaded() -> None:
    settings = entries("gpu-agent.service")
    assert settings["DevicePolicy"] == "closed"
    assert "char-195 rw" in settings["DeviceAllow"]


def test_the_unit_restricts_the_local_socket_no_more_than_the_sockets_mode() -> None:
    settings = entries("gpu-agent.service")
    assert settings["RuntimeDirectory"] == "gpu-agent"
    assert int(settings["RuntimeDirectoryMode"], 8) & 0o001
    assert settings["RuntimeDirectoryPreserve"] == "restart"  # containers mount it


def test_the_agents_unit_allows_it_to_give_its_socket_to_a_group() -> None:
    """`@privileged` has `@chown` in it, so it must be allowed again behind that."""
    filters = entries("gpu-agent.service")["SystemCallFilter"].split(", ")
    assert filters.index("@chown") > next(n for n, one in enumerate(filters) if "@privileged" in one)
