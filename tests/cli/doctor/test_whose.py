import os
from pathlib import Path

import pytest

from gpu_agent.cli.doctor.whose import of_the_service
from gpu_agent.node.settings import AgentSettings


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    (tmp_path / "var/lib/gpu-agent").mkdir(parents=True)
    (tmp_path / "etc/gpu-agent").mkdir(parents=True)
    (tmp_path / "etc/gpu-agent/join-token").write_text("gpuj_x")
    return tmp_path


def settings(**stated: object) -> AgentSettings:
    return AgentSettings.model_validate({"registry_url": "wss://registry.example", **stated})


def test_root_means_the_service_with_its_identity_and_its_join_token(machine: Path) -> None:
    meant = of_the_service(settings(), machine)
    assert meant is not None
    assert meant.state_dir == machine / "var/lib/gpu-agent"
    assert meant.join_token_file == machine / "etc/gpu-agent/join-token"


def test_a_token_that_is_stated_stays(machine: Path) -> None:
    meant = of_the_service(settings(join_token="gpuj_y"), machine)
    assert meant is not None
    assert meant.join_token_file is None
    (machine / "etc/gpu-agent/join-token").unlink()
    meant = of_the_service(settings(), machine)
    assert meant is not None
    assert meant.join_token_file is None


def test_who_names_a_directory_means_that_one(machine: Path, tmp_path: Path) -> None:
    assert of_the_service(settings(state_dir=str(tmp_path)), machine) is None


def test_where_there_is_no_service_and_for_other_users_nothing_is_added(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert of_the_service(settings(), tmp_path / "elsewhere") is None
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert of_the_service(settings(), machine) is None
