"""Tables [[notify]]: what is refused, with the next step, and that no secret is shown or read by others."""

import json
from pathlib import Path

import pytest

from gpu_agent.runtime.config.load import SettingsError
from gpu_agent.runtime.config.sources import key_lines
from gpu_agent.server.notify.settings import MOST_RECEIVERS
from gpu_agent.server.settings import RegistrySettings, load

SECRET_URL = "https://hooks.slack.com/services/T0/B0/secret"


def loaded(folder: Path, text: str) -> RegistrySettings:
    (folder / "registry.toml").write_text(text)
    return load({}, config=folder / "registry.toml")


def refused(folder: Path, text: str) -> str:
    with pytest.raises(SettingsError) as error:
        loaded(folder, text)
    return str(error.value)


def table(**keys: object) -> str:
    return "[[notify]]\n" + "\n".join(f"{name} = {json.dumps(value)}" for name, value in keys.items()) + "\n"


def test_a_receiver_needs_a_name_and_a_way(tmp_path: Path) -> None:
    (ops,) = loaded(tmp_path, table(name="ops", url="https://x.example/hook")).notify
    assert (ops.format, ops.group_seconds, ops.quiet_hours) == ("json", 30.0, ())
    assert "node_status_changed:degraded" in ops.events


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"name": "ops"}, "needs one of url, url_file and command, and has none of them"),
        ({"name": "ops", "url": SECRET_URL, "command": ["x"]}, "has url and command"),
        ({"name": "ops", "url": SECRET_URL, "format": "slack"}, "put that of ops into a file"),
        ({"name": "ops", "url": "ftp://x/secret"}, "it is no URL of a webhook; write https://HOST/PATH"),
        ({"name": "ops", "url": "https://me:secret@x/"}, "has no user, no password and no fragment"),
        ({"name": "ops", "url": "https://x/secret\n"}, "percent-encode the others"),
        ({"name": "ops", "url": "http://x.example/secret"}, "begins with http://, and everybody"),
        ({"name": "o\np s", "command": ["x"]}, "notify.0.name: String should match pattern"),
        ({"name": "ops", "command": ["x"], "secret_file": "/s"}, "secret_file is for webhooks"),
        ({"name": "ops", "url_file": "/u", "format": "teams", "secret_file": "/s"}, "check no signature"),
        (
            {"name": "ops", "command": ["x"], "events": ["node_status_chnaged"]},
            "did you mean node_status_changed?",
        ),
        ({"name": "ops", "command": ["x"], "events": ["claim_lost:offline"]}, "only node_status_changed has"),
        ({"name": "ops", "command": ["x"], "proxy": "http://p:3128"}, "proxy is for webhooks"),
        ({"name": "ops", "url": SECRET_URL, "proxy": "http://p"}, "it names no port"),
        ({"name": "ops", "url": SECRET_URL, "proxy": "socks5://p:1080"}, "only an HTTP proxy with CONNECT"),
        ({"name": "ops", "url": SECRET_URL, "proxy": "http://me:secret@p:3128"}, "name that as proxy_file"),
        (
            {"name": "ops", "url": SECRET_URL, "proxy": "http://p:3128", "proxy_file": "/p"},
            "has proxy and proxy_file",
        ),
        ({"name": "ops", "command": ["x"], "events": []}, "at least 1 item"),
        ({"name": "ops", "command": ["x"], "quiet_hours": ["at night"]}, "write it like mon-fri"),
        ({"name": "ops", "command": ["x"], "time_zone": "Berlin"}, "no such time zone"),
        ({"name": "ops", "command": ["x"], "group_seconds": -1}, "greater than or equal to 0"),
        ({"name": "ops", "command": ["x"], "grup_seconds": 1}, "did you mean 'group_seconds'?"),
    ],
)
def test_what_is_wrong_is_said_without_the_value(tmp_path: Path, keys: dict[str, object], words: str) -> None:
    sentence = refused(tmp_path, table(**keys))
    assert words in sentence
    assert f"{tmp_path}/registry.toml" in sentence or "begins with http" in sentence
    assert "secret" not in sentence.replace("secret_file", "")


def test_two_receivers_of_one_name_are_refused(tmp_path: Path) -> None:
    one = table(name="ops", command=["x"])
    assert "two receivers are called ops: name one of them otherwise" in refused(tmp_path, one + one)


def test_the_number_of_receivers_is_bounded(tmp_path: Path) -> None:
    many = "".join(table(name=f"r{number}", command=["x"]) for number in range(MOST_RECEIVERS + 1))
    assert f"at most {MOST_RECEIVERS} items" in refused(tmp_path, many)


def test_a_variable_has_them_as_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GPU_REGISTRY_NOTIFY", json.dumps([{"name": "a", "command": ["x"]}]))
    assert [one.name for one in loaded(tmp_path, table(name="b", command=["x"])).notify] == ["a"]
    monkeypatch.setenv("GPU_REGISTRY_NOTIFY", "ops")
    assert "JSON list of tables" in refused(tmp_path, "")


def test_plaintext_to_another_machine_needs_the_same_word_as_elsewhere(tmp_path: Path) -> None:
    text = table(name="ops", url="http://10.0.0.7/hook")
    assert loaded(tmp_path, f"insecure_plaintext = true\n{text}").notify[0].url == "http://10.0.0.7/hook"
    assert loaded(tmp_path, table(name="ops", url="http://127.0.0.1:9000/")).notify
    assert key_lines(text)[("notify", 0, "url")] == 3
