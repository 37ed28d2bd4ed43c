import json
from pathlib import Path

import pytest

from gpu_agent.cli.app import main
from gpu_agent.node.settings import AgentSettings

CONFIG = """\
registry_url = "ws://10.0.0.1:8080/ws/node"
join_token = "gpuj_0123abcd_s3cret"

[labels]
zone = "a"
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "agent.toml"
    path.write_text(CONFIG)
    return str(path)


def test_every_setting_is_shown_with_where_it_comes_from(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GPU_AGENT_DEADLINE_SECONDS", "4")
    assert main(["config", "show", "agent", "--config", config, "--with", "--log-level debug"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert rows["registry_url"].endswith(f"{config}:1")
    assert rows["labels"].split() == ["labels", "{", "zone", "=", '"a"', "}", f"{config}:4"]
    assert rows["deadline_seconds"].split() == [
        "deadline_seconds",
        "4",
        "variable",
        "GPU_AGENT_DEADLINE_SECONDS",
    ]
    assert rows["log_level"].split() == ["log_level", '"debug"', "option"]
    assert rows["max_concurrent_jobs"].split() == ["max_concurrent_jobs", "none", "default"]


def test_only_what_is_set_is_shown_on_request(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "agent", "--config", config, "--changed"]) == 0
    keys = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert keys == ["registry_url", "join_token", "labels"]


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_no_secret_is_shown(form: list[str], config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "agent", "--config", config, *form]) == 0
    assert "s3cret" not in capsys.readouterr().out


def test_programs_get_one_object(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "agent", "--config", config, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["file"], told["file_is_there"]) == (config, True)
    labels = next(one for one in told["settings"] if one["key"] == "labels")
    assert labels == {"key": "labels", "value": {"zone": "a"}, "layer": "file", "line": 4, "variable": None}
    assert {one["key"].partition(".")[0] for one in told["settings"]} == set(AgentSettings.model_fields)


def test_settings_that_cannot_be_used_are_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.toml").write_text("claim_ttl_seconds = 0\n")
    assert main(["config", "show", "registry", "--config", str(tmp_path / "r.toml")]) == 4
    told = capsys.readouterr()
    assert not told.out
    assert f"{tmp_path / 'r.toml'}:1: claim_ttl_seconds" in told.err


def test_where_no_registry_is_named_the_others_are_shown_and_that_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "agent.toml"
    path.write_text("deadline_seconds = 3\n")
    assert main(["config", "show", "agent", "--config", str(path)]) == 4
    told = capsys.readouterr()
    rows = {line.split()[0]: line.split() for line in told.out.splitlines()[1:]}
    assert rows["registry_url"] == ["registry_url", "none", "default"]
    assert rows["deadline_seconds"] == ["deadline_seconds", "3", f"{path}:1"]
    assert "no registry is named" in told.err


def test_programs_are_told_what_is_lacking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "agent.toml"
    path.write_text("")
    assert main(["config", "show", "agent", "--config", str(path), "--json"]) == 4
    told = json.loads(capsys.readouterr().out)
    assert told["lacking"].startswith("no registry is named")
    assert told["settings"][0] == {
        "key": "registry_url",
        "value": None,
        "layer": "default",
        "line": None,
        "variable": None,
    }
