from pathlib import Path

import click
import pytest

from gpu_agent.cli.declaration import shown
from gpu_agent.cli.setting_options import setting_options
from gpu_agent.node.settings import AgentSettings, load
from gpu_agent.runtime.config.load import SettingsError
from gpu_agent.server.settings import RegistrySettings
from tests.cli.given import given

TLS = ("tls_ca_file", "tls_pin", "tls_cert_file", "tls_key_file")


def help_of(settings: type[AgentSettings | RegistrySettings]) -> str:
    options = [one for one in setting_options(settings) if isinstance(one, click.Option)]
    return " ".join(f"{shown(one)} {one.help}" for one in options)


def test_an_option_says_what_its_setting_means_and_its_default() -> None:
    said = help_of(RegistrySettings)
    assert "--claim-ttl-seconds N a claim that is not renewed expires after this time (default 60)" in said
    assert "--auth {on,off}" in said
    assert "--registry URL the registry's address: ws:// or wss://" in help_of(AgentSettings)


def test_an_advanced_setting_is_no_option() -> None:
    assert "flap" not in help_of(RegistrySettings)


def test_a_component_has_about_twenty_options() -> None:
    assert help_of(RegistrySettings).count(" --") <= 2 * 25


PIN = "sha256//" + "A" * 43 + "="


def loaded(tmp_path: Path, *words: str, url: str = "wss://h") -> AgentSettings:
    options = setting_options(AgentSettings, only=(*TLS, "insecure_plaintext"))
    empty = tmp_path / "agent.toml"
    empty.touch()
    return load({"registry_url": url, **vars(given(options, *words))}, config=empty)


def test_each_option_is_the_setting_of_its_name(tmp_path: Path) -> None:
    given = loaded(tmp_path, "--tls-ca-file", "/ca.pem", "--tls-pin", f"{PIN};{PIN}", "--tls-cert-file", "/n")
    assert given.security.ca_file == Path("/ca.pem")
    assert given.security.pins == {PIN}
    assert given.security.own is not None
    assert not given.security.insecure_plaintext
    assert loaded(tmp_path, "--insecure-plaintext", url="ws://h").security.insecure_plaintext


def test_what_is_not_given_is_left_to_the_other_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPU_AGENT_TLS_PIN", PIN)
    assert loaded(tmp_path).tls_pin == (PIN,)


@pytest.mark.parametrize(
    ("words", "url", "fault"),
    [
        (("--tls-key-file", "/k"), "wss://h", "tls_cert_file is not: name the certificate too"),
        (("--tls-ca-file", "/ca"), "ws://h", r"tls_ca_file is set and registry_url begins with ws://"),
        (("--tls-pin", PIN), "ws://h", r"tls_pin is set and registry_url begins with ws://"),
        (("--tls-pin", "sha256//x"), "wss://h", r"tls_pin\.0: a pin is sha256//"),
    ],
)
def test_what_does_not_agree_is_refused(tmp_path: Path, words: tuple[str, ...], url: str, fault: str) -> None:
    with pytest.raises(SettingsError, match=fault):
        loaded(tmp_path, *words, url=url)
