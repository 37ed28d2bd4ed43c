import os
import sys
from pathlib import Path

import pytest

from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.cli.service import place as service_place
from gpu_agent.cli.service.place import command, place, program, refusal
from gpu_agent.runtime.services.installing import RefusedError
from gpu_agent.version import __version__


def test_the_program_is_the_one_of_this_environment() -> None:
    found = program("registry")
    assert found.path == Path(sys.executable).with_name("gpu-agent")
    assert found.version == __version__
    assert Path(sys.executable) in found.parts
    assert all(part.exists() for part in found.parts)


def test_without_a_command_there_is_nothing_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_place, "command", lambda: tmp_path / "gpu-agent")
    with pytest.raises(Failure, match="with pip") as refused:
        program("agent")
    assert refused.value.code == ExitCode.CONFIGURATION


def test_a_registry_without_its_extra_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_place, "_OF_THE_REGISTRY", ("no_such_package",))
    assert program("agent").path == command()
    with pytest.raises(Failure, match=r"needs the package no_such_package.*gpu-agent\[registry\]"):
        program("registry")


def test_the_machine_is_this_one() -> None:
    here = place()
    assert (here.root, here.uid) == (Path("/"), os.geteuid())
    assert (here.source / "gpu-agent.service").is_file()


def test_a_refusal_ends_as_wrong_configuration() -> None:
    assert refusal(RefusedError("why")).code == ExitCode.CONFIGURATION
