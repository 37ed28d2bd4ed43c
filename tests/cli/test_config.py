import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from gpu_agent.cli.command import Arguments, ExitCode, Failure
from gpu_agent.cli.config import (
    COMPONENTS,
    configuration_params,
    json_value,
    read_configuration,
    settings_failure,
    toml_value,
)
from gpu_agent.cli.main import main
from gpu_agent.node.settings import AgentSettings, DeclaredModel
from gpu_agent.runtime.address import Address
from gpu_agent.runtime.config.load import SettingsError
from gpu_agent.runtime.config.sources import Layer
from gpu_agent.runtime.logs import REDACTED
from tests.cli.given import given

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


def test_every_fault_is_reported_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = written(tmp_path, "node_listen = 8080\n\nclaim_tll_seconds = 5\n")
    assert main(["config", "check", "registry", "--config", config]) == 4
    first, second = capsys.readouterr().err.splitlines()
    assert f"{config}:1: node_listen: " in first
    assert second == f"{config}:3: 'claim_tll_seconds' is no setting; did you mean 'claim_ttl_seconds'?"


def test_faults_come_in_the_order_of_their_lines_and_what_is_lacking_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "labels = 3\nheartbeat = 5\nprobe_interval_seconds = 0\n"
    config = written(tmp_path, text)
    assert main(["config", "check", "agent", "--config", config]) == 4
    first, second, third, last = capsys.readouterr().err.splitlines()
    assert first == f'gpu-agent: {config}:1: labels: must be a table such as labels = {{ zone = "a" }}, got 3'
    assert second.startswith(f"{config}:2: 'heartbeat' is no setting")
    assert third.startswith(f"{config}:3: probe_interval_seconds: must be ")
    assert last.startswith("no registry is named")


@pytest.mark.parametrize(
    ("text", "usable", "code"), [(URL, True, 0), ("probe_interval_seconds = 0", False, 4)]
)
def test_programs_get_one_object(
    tmp_path: Path, text: str, *, usable: bool, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    config = written(tmp_path, text)
    assert main(["config", "check", "agent", "--config", config, "--json"]) == code
    document = json.loads(capsys.readouterr().out)
    assert document["usable"] is usable
    assert [
        fault.startswith((f"{config}:1: probe_interval", "no registry")) for fault in document["faults"]
    ] == ([] if usable else [True, True])


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
        "for name in ('fastapi', 'starlette', 'uvicorn', 'httptools', 'jinja2', 'prometheus_client',\n"
        "             'msgspec'):\n"
        "    sys.modules[name] = None\n"
        "from gpu_agent.cli.main import main\n"
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
def test_limits_without_public_jobs_are_warned_of(
    tmp_path: Path, accepts: str, *, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    config = written(
        tmp_path, f"{URL}accept_public_jobs = {accepts}\n[public_jobs]\nmax_temperature_c = 80\n"
    )
    assert main(["config", "check", "agent", "--config", config]) == 0
    said = capsys.readouterr().out
    assert (f"warning: {config}:4: public_jobs.max_temperature_c limits nothing" in said) is warned


def test_a_hook_that_is_not_there_or_no_program_is_warned_of_with_the_next_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tmp_path / "fans"
    plain.write_text("#!/bin/sh\n")
    said = {}
    for hook in (f"{tmp_path}/nowhere", str(plain), "no-such-program", "sh"):
        config = written(tmp_path, f'{URL}[checks]\nhook = ["{hook}", "-q"]\n')
        assert main(["config", "check", "agent", "--config", config]) == 0
        said[hook] = capsys.readouterr().out.partition("warning: ")[2].strip()
    place = f"{tmp_path}/half.toml:3: checks.hook fails"
    assert list(said.values()) == [
        f"{place}: there is no file {tmp_path}/nowhere; put it there, or name another",
        f"{place}: {plain} may not be executed; run `chmod +x {plain}`",
        f"{place}: no folder in PATH has no-such-program; install it, or write its whole path",
        "",
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="files have no mode there")
def test_a_receiver_that_gets_no_alarm_is_warned_of_as_its_test_would_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, secret, empty = tmp_path / "plain", tmp_path / "secret", tmp_path / "empty"
    for file, text, mode in ((plain, "x", 0o644), (secret, "s" * 32, 0o644), (empty, "", 0o600)):
        file.write_text(text)
        file.chmod(mode)
    tables = {
        "signed": f'url = "https://hooks.example"\nsecret_file = "{secret}"',
        "chat": f'format = "slack"\nurl_file = "{empty}"',
        "gone": f'url_file = "{tmp_path}/gone"',
        "pager": 'command = ["/nonexistent/page", "-q"]',
        "script": f'command = ["{plain}"]',
        "works": 'command = ["sh", "-c", "true"]',
    }
    text = "\n".join(f'[[notify]]\nname = "{name}"\n{keys}' for name, keys in tables.items())
    assert main(["config", "check", "registry", "--config", written(tmp_path, text)]) == 0
    said = [one.partition(": no alarms reach ")[2] for one in capsys.readouterr().out.splitlines()[1:]]
    open_to_all = (
        f"signed: every user of this machine may read secret_file {secret}: run `chmod o-rwx {secret}`, and "
        "replace the secret if others use the machine"
    )
    assert said == [
        open_to_all,
        f"chat: url_file {empty} is empty",
        f"gone: url_file {tmp_path}/gone cannot be read (No such file or directory)",
        "pager: the command /nonexistent/page cannot be started (No such file or directory)",
        f"script: the command {plain} cannot be started (Permission denied)",
    ]


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
    assert faults[0].startswith(f"no registry is named: write registry_url into {tmp_path}")
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


def test_what_looks_like_a_secret_and_is_published_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = 'endpoint = "http://me:s3cret@worker:1"\nlabels = { zone = "a", password = "s3cret" }\n'
    config = written(tmp_path, URL + printed)
    assert main(["config", "check", "agent", "--config", config]) == 0
    said = capsys.readouterr().out
    assert f"warning: {config}:2: endpoint holds a password" in said
    assert f"warning: {config}:3: the label 'password' looks like a secret" in said
    assert "'zone'" not in said
    assert "s3cret" not in said


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


def test_addresses_are_shown_with_the_line_or_the_variable_that_states_them_by_either_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = written(tmp_path, 'log_level = "info"\nregistry_urls = ["wss://a", "wss://b"]\n')
    shown = ["config", "show", "agent", "--config", config]
    assert main(shown) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert rows["registry_url"].split(maxsplit=1)[1] == (
        f'["wss://a/ws/node", "wss://b/ws/node"]  {config}:2'
    )
    monkeypatch.setenv("GPU_AGENT_REGISTRY_URLS", "wss://c,http://d")
    assert main(shown) == 4
    assert "variable GPU_AGENT_REGISTRY_URLS: registry_url: " in capsys.readouterr().err
    monkeypatch.setenv("GPU_AGENT_REGISTRY_URLS", "wss://c")
    assert main(shown) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert rows["registry_url"].endswith('"wss://c/ws/node"  variable GPU_AGENT_REGISTRY_URLS')


def test_only_what_is_set_is_shown_on_request(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "agent", "--config", config, "--changed"]) == 0
    keys = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert keys == ["registry_url", "join_token", "labels"]


def test_settings_that_all_have_their_defaults_are_said_to_be_unchanged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty.toml"
    empty.touch()
    assert main(["config", "show", "registry", "--config", str(empty), "--changed"]) == 0
    assert capsys.readouterr().out.startswith("Nothing is changed: ")


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_no_secret_is_shown(form: list[str], config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "agent", "--config", config, *form]) == 0
    assert "s3cret" not in capsys.readouterr().out


def test_programs_get_one_object__show(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "agent", "--config", config, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["file"], document["file_is_there"]) == (config, True)
    labels = next(one for one in document["settings"] if one["key"] == "labels")
    assert labels == {"key": "labels", "value": {"zone": "a"}, "layer": "file", "line": 4, "variable": None}
    assert {one["key"].partition(".")[0] for one in document["settings"]} == set(AgentSettings.model_fields)


def test_settings_that_cannot_be_used_are_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.toml").write_text("claim_ttl_seconds = 0\n")
    assert main(["config", "show", "registry", "--config", str(tmp_path / "r.toml")]) == 4
    printed = capsys.readouterr()
    assert not printed.out
    assert f"{tmp_path / 'r.toml'}:1: claim_ttl_seconds" in printed.err


def test_where_no_registry_is_named_the_others_are_shown_and_that_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "agent.toml"
    path.write_text("probe_interval_seconds = 3\n")
    assert main(["config", "show", "agent", "--config", str(path)]) == 4
    printed = capsys.readouterr()
    rows = {line.split()[0]: line.split() for line in printed.out.splitlines()[1:]}
    assert rows["registry_url"] == ["registry_url", "none", "default"]
    assert rows["probe_interval_seconds"] == ["probe_interval_seconds", "3", f"{path}:1"]
    assert "no registry is named" in printed.err


def test_programs_are_reported_what_is_lacking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "agent.toml"
    path.write_text("")
    assert main(["config", "show", "agent", "--config", str(path), "--json"]) == 4
    document = json.loads(capsys.readouterr().out)
    assert document["lacking"].startswith("no registry is named")
    assert document["settings"][0] == {
        "key": "registry_url",
        "value": None,
        "layer": "default",
        "line": None,
        "variable": None,
    }


READ_URL = "ws://10.0.0.1:8080/ws/node"


@pytest.fixture(autouse=True)
def _no_file_in_etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for component in ("node", "server"):
        monkeypatch.setattr(f"gpu_agent.{component}.settings.DEFAULT_CONFIG", tmp_path / "absent.toml")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)


def asked(*words: str) -> Arguments:
    return given(configuration_params(), *words)


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_setting_is_read_with_its_origin(component: str, tmp_path: Path) -> None:
    config = tmp_path / "half.toml"
    needed = f'registry_url = "{READ_URL}"' if component == "agent" else ""
    config.write_text(f'log_level = "debug"\n{needed}\n')
    configuration = read_configuration(asked(component, "--config", str(config)))
    origins = {one.key: one.origin for one in configuration.settings}
    assert str(origins["log_level"]) == f"{config}:1"
    assert origins["state_dir"].layer is Layer.DEFAULT
    assert {key.partition(".")[0] for key in origins} == set(COMPONENTS[component].kind.model_fields)


def test_options_of_the_half_are_an_option_of_their_own() -> None:
    settings = {
        one.key: one
        for one in read_configuration(asked("agent", "--with", f"--registry {READ_URL}")).settings
    }
    assert (settings["registry_url"].value, settings["registry_url"].origin.layer) == (READ_URL, Layer.OPTION)


def test_the_file_is_no_option_of_the_half(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="--config itself"):
        read_configuration(asked("registry", "--with", f"--config {tmp_path}/x.toml"))


def test_what_systemd_hands_the_unit_is_called_a_credential(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "join-token").write_text("gpuj_0123abcd_s3cret")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    settings = {
        one.key: one
        for one in read_configuration(asked("agent", "--with", f"--registry {READ_URL}")).settings
    }
    assert settings["join_token_file"].origin.layer is Layer.CREDENTIAL


def test_a_configuration_that_cannot_be_used_ends_as_such() -> None:
    assert settings_failure(SettingsError("why")).code == ExitCode.CONFIGURATION


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "none"),
        ("none", '"none"'),
        (True, "true"),
        (5.0, "5"),
        (0.25, "0.25"),
        (Address("::1", 1), '"[::1]:1"'),
        (Path("/srv/a"), '"/srv/a"'),
        ((Path("/a"), Path("/b")), '["/a", "/b"]'),
        ({}, "{}"),
        ({"zone": "a", "my rack": "b"}, '{ zone = "a", "my rack" = "b" }'),
        ((DeclaredModel(model_id="m", hidden=True),), '[{ model_id = "m", hidden = true }]'),
        (SecretStr("s3cret"), f'"{REDACTED}"'),
        ("gpuj_0123abcd_s3cret", f'"gpuj_0123abcd_{REDACTED}"'),
        (["http://me:s3cret@proxy"], f'["http://me:{REDACTED}@proxy"]'),
    ],
)
def test_a_value_is_written_as_in_the_file(value: object, written: str) -> None:
    assert toml_value(value) == written


def test_what_json_has_no_kind_for_is_written_down() -> None:
    assert json_value({"where": Address("h", 1), "folders": (Path("/a"),)}) == {
        "where": "h:1",
        "folders": ["/a"],
    }
