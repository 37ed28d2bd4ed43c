import argparse
from pathlib import Path

import pytest

from gpu_agent.cli.configuration.read import HALVES, add_arguments, failure, read
from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.runtime.layers import SettingsError
from gpu_agent.runtime.origins import Layer

URL = "ws://10.0.0.1:8080/ws/node"


@pytest.fixture(autouse=True)
def _no_file_in_etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for half in ("node", "server"):
        monkeypatch.setattr(f"gpu_agent.{half}.settings.DEFAULT_CONFIG", tmp_path / "absent.toml")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)


def asked(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize("half", HALVES)
def test_every_setting_is_read_with_its_origin(half: str, tmp_path: Path) -> None:
    config = tmp_path / "half.toml"
    needed = f'registry_url = "{URL}"' if half == "agent" else ""
    config.write_text(f'log_level = "debug"\n{needed}\n')
    configuration = read(asked(half, "--config", str(config)))
    origins = {one.key: one.origin for one in configuration.settings}
    assert str(origins["log_level"]) == f"{config}:1"
    assert origins["state_dir"].layer is Layer.DEFAULT
    assert {key.partition(".")[0] for key in origins} == set(HALVES[half].kind.model_fields)


def test_options_of_the_half_are_an_option_of_their_own() -> None:
    settings = {one.key: one for one in read(asked("agent", "--with", f"--registry {URL}")).settings}
    assert (settings["registry_url"].value, settings["registry_url"].origin.layer) == (URL, Layer.OPTION)


def test_the_file_is_no_option_of_the_half(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="--config itself"):
        read(asked("registry", "--with", f"--config {tmp_path}/x.toml"))


def test_what_systemd_hands_the_unit_is_called_a_credential(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "join-token").write_text("gpuj_0123abcd_s3cret")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    settings = {one.key: one for one in read(asked("agent", "--with", f"--registry {URL}")).settings}
    assert settings["join_token_file"].origin.layer is Layer.CREDENTIAL


def test_a_configuration_that_cannot_be_used_ends_as_such() -> None:
    assert failure(SettingsError("why")).code == ExitCode.CONFIGURATION
