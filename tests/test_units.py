"""The units and the examples of `systemd/`: they agree with the programs that they run."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

import pytest

from gpu_agent.cli.app import main
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.node import settings as agent_settings
from gpu_agent.node.daemon import End
from gpu_agent.server import settings as registry_settings
from gpu_agent.server.address import Address

SYSTEMD = Path(__file__).parent.parent / "systemd"
UNITS = ("gpu-agent.service", "gpu-registry.service")
LONGEST_STOP_SECONDS = 5


def entries(unit: str) -> Mapping[str, str]:
    """Read a unit's settings; each name stands once in these units."""
    lines = (SYSTEMD / unit).read_text(encoding="utf-8").splitlines()
    pairs = [line.split("=", 1) for line in lines if re.match(r"[A-Za-z]+=", line)]
    found = dict(pairs)
    assert len(found) == len(pairs)
    return found


def test_the_agent_is_not_restarted_when_a_person_has_to_act() -> None:
    prevented = {int(code) for code in entries("gpu-agent.service")["RestartPreventExitStatus"].split()}
    assert prevented == {End.UNUSABLE_STATE, End.REFUSED}
    assert ExitCode.CONFIGURATION in prevented


def test_the_registry_is_not_restarted_while_its_settings_are_wrong() -> None:
    assert entries("gpu-registry.service")["RestartPreventExitStatus"] == str(int(ExitCode.CONFIGURATION))


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_has_the_time_to_stop_that_its_program_takes(unit: str) -> None:
    assert int(entries(unit)["TimeoutStopSec"]) >= LONGEST_STOP_SECONDS


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_comes_back_after_a_fault(unit: str) -> None:
    assert entries(unit)["Restart"] == "on-failure"


@pytest.mark.parametrize("unit", UNITS)
def test_no_unit_opens_ports_to_everybody(unit: str) -> None:
    assert "insecure" not in (SYSTEMD / unit).read_text(encoding="utf-8")


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_starts_a_command_that_there_is(
    unit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program, *arguments = shlex.split(entries(unit)["ExecStart"])
    assert program == "/usr/bin/gpu-agent"
    missing = tmp_path / "missing.toml"
    assert main([*arguments, "--config", str(missing)]) == ExitCode.CONFIGURATION
    assert f"there is no file {missing}" in capsys.readouterr().err


def test_the_agents_example_can_be_used_as_it_is() -> None:
    settings = agent_settings.load({}, config=SYSTEMD / "agent.toml.example")
    assert settings.registry_url == "ws://10.0.0.1:8080/ws/node"


def test_the_registrys_example_listens_on_this_machine_only() -> None:
    settings = registry_settings.load({}, config=SYSTEMD / "registry.toml.example")
    assert (settings.node_listen, settings.operator_listen) == (
        Address("127.0.0.1", 8080),
        Address("127.0.0.1", 8081),
    )
