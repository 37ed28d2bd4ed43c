""""""

import argparse
import json
from pathlib import Path

import pytest

from gpu_agent.cli.options import (
    NAMES,
    add_node_id,
    add_request_options,
    add_tls_options,
    label_pair,
    positive_number,
    print_json,
    whole_number,
)
from gpu_agent.node.settings import AgentSettings, load
from gpu_agent.runtime.config.load import SettingsError


def test_numbers_and_labels_are_read() -> None:
    assert (whole_number("-5"), positive_number("1"), label_pair("rack=7=b"), label_pair("zone=")) == (
        -5,
        1,
        ("rack", "7=b"),
        ("zone", ""),
    )


@pytest.mark.parametrize(("text", "hint"), [("zone", "zone=a"), ("=a", "zone=a"), ("", "zone=a")])
def test_what_is_no_label_is_refused_with_how_to_write_one(text: str, hint: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=hint):
        label_pair(text)


@pytest.mark.parametrize(("text", "hint"), [("0", "at least 1"), ("few", "invalid whole number value")])
def test_what_is_no_number_is_named(text: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("count", type=positive_number)
    with pytest.raises(SystemExit):
        parser.parse_args([text])
    assert hint in capsys.readouterr().err


def test_every_command_that_asks_can_say_where_and_in_which_form() -> None:
    parser = argparse.ArgumentParser()
    add_node_id(parser)
    add_request_options(parser, json_is="the answer")
    given = parser.parse_args(["node-1", "--json", "--api", "http://h"])
    assert (given.node_id, given.json, given.api) == ("node-1", True, "http://h")
    assert "print the answer" in parser.format_help()


def test_json_keeps_every_word(capsys: pytest.CaptureFixture[str]) -> None:
    document = {"b": ["é\x1b"], "a": None}
    print_json(document)
    said = capsys.readouterr().out
    assert json.loads(said) == document
    assert said.isascii()


PIN = "sha256//" + "A" * 43 + "="


def loaded(tmp_path: Path, *words: str, url: str = "wss://h") -> AgentSettings:
    parser = argparse.ArgumentParser()
    add_tls_options(parser)
    empty = tmp_path / "agent.toml"
    empty.touch()
    return load({"registry_url": url, **vars(parser.parse_args(words))}, config=empty)


def test_each_option_stands_for_the_setting_of_its_name(tmp_path: Path) -> None:
    assert set(NAMES) <= set(AgentSettings.model_fields)
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
