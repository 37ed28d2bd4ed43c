import json
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_agent.cli.app import main

URL = 'registry_url = "ws://10.0.0.1:8080/ws/node"\n'


def written(folder: Path, text: str, mode: int = 0o644) -> str:
    path = folder / "half.toml"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_settings_that_can_be_used_are_counted_by_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GPU_AGENT_DEADLINE_SECONDS", "4")
    config = written(tmp_path, URL)
    assert main(["config", "check", "agent", "--config", config]) == 0
    said = capsys.readouterr().out
    assert said == (
        f"the agent can use these settings: {config}, set 1 by the file, 1 by variables; "
        "the rest by default\n"
    )


def test_every_fault_is_told_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = written(tmp_path, "node_listen = 8080\n\nclaim_tll_seconds = 5\n")
    assert main(["config", "check", "registry", "--config", config]) == 4
    first, second = capsys.readouterr().err.splitlines()
    assert f"{config}:1: node_listen: " in first
    assert second == f"{config}:3: 'claim_tll_seconds' is no setting; did you mean 'claim_ttl_seconds'?"


@pytest.mark.parametrize(("text", "usable", "code"), [(URL, True, 0), ("deadline_seconds = 0", False, 4)])
def test_programs_get_one_object(
    tmp_path: Path, text: str, *, usable: bool, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    config = written(tmp_path, text)
    assert main(["config", "check", "agent", "--config", config, "--json"]) == code
    told = json.loads(capsys.readouterr().out)
    assert told["usable"] is usable
    assert [fault.startswith((f"{config}:1: deadline", "no registry")) for fault in told["faults"]] == (
        [] if usable else [True, True]
    )


@pytest.mark.parametrize(("mode", "warned"), [(0o644, True), (0o640, False)])
def test_a_secret_in_a_file_that_everybody_may_read_is_warned_of(
    tmp_path: Path, mode: int, *, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    config = written(tmp_path, URL + 'join_token = "gpuj_0123abcd_s3cret"\n', mode)
    assert main(["config", "check", "agent", "--config", config]) == 0
    said = capsys.readouterr().out
    assert (f"warning: {config}:2: join_token is a secret" in said) is warned
    assert "s3cret" not in said


def test_without_a_file_all_holds_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gpu_agent.server.settings.DEFAULT_CONFIG", tmp_path / "absent.toml")
    assert main(["config", "check", "registry"]) == 0
    assert "(there is no such file), all by default" in capsys.readouterr().out


def test_a_registrys_settings_are_checked_without_its_extra(tmp_path: Path) -> None:
    config = written(tmp_path, "claim_ttl_seconds = 5\n")
    program = (
        "import sys\n"
        "for name in ('fastapi', 'starlette', 'uvicorn', 'prometheus_client', 'redis', 'h11'):\n"
        "    sys.modules[name] = None\n"
        "from gpu_agent.cli.app import main\n"
        f"sys.exit(main(['config', 'check', 'registry', '--config', {config!r}]))\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_proxys_password_counts_as_a_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = written(tmp_path, URL + 'proxy = "http://me:s3cret@proxy:3128"\n')
    assert main(["config", "check", "agent", "--config", config]) == 0
    said = capsys.readouterr().out
    assert f"warning: {config}:2: proxy is a secret" in said
    assert main(["config", "show", "agent", "--config", config]) == 0
    shown = capsys.readouterr().out
    assert '"http://me:[redacted]@proxy:3128"' in shown
    assert "s3cret" not in said + shown


@pytest.mark.parametrize(("accepts", "warned"), [("true", False), ("false", True)])
def test_limits_for_public_jobs_that_nobody_lets_in_are_warned_of(
    tmp_path: Path, accepts: str, *, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    config = written(
        tmp_path, f"{URL}accept_public_jobs = {accepts}\n[public_jobs]\nmax_temperature_c = 80\n"
    )
    assert main(["config", "check", "agent", "--config", config]) == 0
    said = capsys.readouterr().out
    assert (f"warning: {config}:4: public_jobs.max_temperature_c limits nothing" in said) is warned


def test_a_mistyped_variable_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GPU_AGENT_REGSITRY_URL", "ws://s3cret")
    assert main(["config", "check", "agent", "--config", written(tmp_path, URL)]) == 0
    said = capsys.readouterr().out
    assert "warning: variable GPU_AGENT_REGSITRY_URL is ignored" in said
    assert "did you mean GPU_AGENT_REGISTRY_URL?" in said
    assert "s3cret" not in said


def test_where_no_registry_is_named_the_mistyped_variable_is_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GPU_AGENT_REGSITRY_URL", "ws://s3cret")
    assert main(["config", "check", "agent", "--config", written(tmp_path, ""), "--json"]) == 4
    faults = json.loads(capsys.readouterr().out)["faults"]
    assert faults[0].startswith("no registry is named: write registry_url into /etc/gpu-agent/agent.toml")
    assert faults[1].endswith("did you mean GPU_AGENT_REGISTRY_URL?")


@pytest.mark.parametrize(("mode", "warned"), [(0o646, True), (0o644, False)])
def test_settings_that_everybody_may_write_are_warned_of(
    tmp_path: Path, mode: int, *, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    config = written(tmp_path, URL, mode)
    assert main(["config", "check", "agent", "--config", config]) == 0
    assert (
        f"everybody on this machine may write the settings (mode {mode:04o})" in capsys.readouterr().out
    ) is (warned)


def test_what_sounds_like_a_secret_and_is_told_to_all_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = 'endpoint = "http://me:s3cret@worker:1"\nlabels = { zone = "a", password = "s3cret" }\n'
    config = written(tmp_path, URL + told)
    assert main(["config", "check", "agent", "--config", config]) == 0
    said = capsys.readouterr().out
    assert f"warning: {config}:2: endpoint holds a password" in said
    assert f"warning: {config}:3: the label 'password' sounds like a secret" in said
    assert "'zone'" not in said
    assert "s3cret" not in said
