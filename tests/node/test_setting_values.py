from pathlib import Path

import pytest

from gpu_agent.node.settings import AgentSettings, load
from gpu_agent.runtime.layers import SettingsError

TOKEN = "gpuj_0123abcd_s3cret"
URL = "ws://10.0.0.1:8080/ws/node"


@pytest.fixture(autouse=True)
def _no_machine_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("gpu_agent.node.settings.DEFAULT_CONFIG", tmp_path / "absent.toml")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)


def _load(tmp_path: Path, text: str = "", **flags: object) -> AgentSettings:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    return load({"registry_url": URL, **flags}, config=path)


@pytest.mark.parametrize(
    ("name", "most"),
    [("probe_interval_seconds", 30), ("deadline_seconds", 10), ("nvml_stale_after_seconds", 60)],
)
def test_no_span_lets_a_healthy_node_s_reading_grow_older_than_the_registry_takes(
    tmp_path: Path, name: str, most: int
) -> None:
    assert getattr(_load(tmp_path, f"{name} = {most}"), name) == most
    because = f"{name}: at most {most} s: a registry takes a GPU reading older than 60 s for a sick node"
    with pytest.raises(SettingsError, match=f"{because}, got {most}.5"):
        _load(tmp_path, f"{name} = {most}.5")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("10.0.0.1:8080", "ws://10.0.0.1:8080/ws/node"),
        ("10.0.0.1", "ws://10.0.0.1:8080/ws/node"),
        ("localhost:8080", "ws://localhost:8080/ws/node"),
        ("scheduler.example/ws/node", "ws://scheduler.example:8080/ws/node"),
        ("http://10.0.0.1:8080", "ws://10.0.0.1:8080/ws/node"),
        ("https://registry.example", "wss://registry.example/ws/node"),
    ],
)
def test_a_url_without_ws_is_an_error_that_shows_the_corrected_form(written: str, meant: str) -> None:
    with pytest.raises(SettingsError, match=f"write {meant}, got"):
        load({"registry_url": written})


@pytest.mark.parametrize(
    ("written", "complaint"),
    [
        ("ws://", "names no host"),
        ("ws://user:secret@host:8080/ws/node", "no credentials go into a URL"),
        ("ws://host:8080/ws/node?token=secret", "no credentials go into a URL"),
        ("http://user:secret@host:8080", "no credentials go into a URL"),
        ("user:secret@host", "no credentials go into a URL"),
        ("ws://user:secret\u2100@host", "no credentials go into a URL"),
        ("https://host/ws/node?Token=secret", "no credentials go into a URL"),
        ("ws://host:99999/ws/node", "Port out of range"),
        ("ws://host:8080/ws/node#x", "no fragment"),
    ],
)
def test_other_faults_of_a_url_are_named(written: str, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint) as refused:
        load({"registry_url": written})
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("written", ["ws://host:8080", "ws://host:8080/"])
def test_a_url_without_a_path_gets_the_protocol_s(written: str) -> None:
    assert load({"registry_url": written}).registry_url == "ws://host:8080/ws/node"


def test_a_path_of_the_operator_s_own_stays() -> None:
    assert load({"registry_url": "wss://host/farm/ws"}).registry_url == "wss://host/farm/ws"


def test_a_simulation_that_names_no_product_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"simulate: .*H100"):
        load({"registry_url": URL, "simulate": "8xNothing"})


def test_lists_and_labels_can_be_written_in_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_AGENT_HUB_ROOTS", "/a:/b")
    monkeypatch.setenv("GPU_AGENT_LABELS", "zone=a, rack = 7")
    settings = load({"registry_url": URL})
    assert settings.hub_roots == (Path("/a"), Path("/b"))
    assert settings.owner.labels == {"zone": "a", "rack": "7"}


def test_a_label_without_a_value_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_AGENT_LABELS", "zone")
    with pytest.raises(SettingsError, match="write name=value"):
        load({"registry_url": URL})


@pytest.mark.parametrize(
    "labels",
    [
        {"": "x"},
        {"zone": ""},
        {"zone": "a\x1b[31m"},
        {"zone": "x" * 2000},
        {f"label-{n}": "x" for n in range(300)},
    ],
    ids=["no name", "no value", "steers a terminal", "too long", "too many"],
)
def test_labels_that_no_registry_would_take_are_refused_here(labels: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="labels"):
        load({"registry_url": URL, "labels": labels})


@pytest.mark.parametrize(
    "stated",
    [{"labels": {"zone": TOKEN}}, {"labels": {TOKEN: "a"}}, {"endpoint": f"http://h/?t={TOKEN}"}],
    ids=["a label's value", "a label's name", "the endpoint"],
)
def test_no_token_gets_into_what_everybody_is_told(stated: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match="this holds a token"):
        load({"registry_url": URL, **stated})


@pytest.mark.parametrize("query", ["token=x", "a=1&api_key=x", "Password=x", "client-secret=x", "auth=x"])
def test_no_secret_stands_in_the_registrys_url(query: str) -> None:
    with pytest.raises(SettingsError, match="no credentials go into a URL"):
        load({"registry_url": f"ws://host:8080/ws/node?{query}"})
