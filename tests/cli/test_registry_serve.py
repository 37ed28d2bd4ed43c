from dataclasses import fields

import pytest

from gpu_agent.cli.app import main
from gpu_agent.cli.registry_serve import MEANINGS
from gpu_agent.registry.thresholds import Thresholds


def test_each_threshold_has_an_option_that_says_what_it_means(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(MEANINGS) == [one.name for one in fields(Thresholds)]
    with pytest.raises(SystemExit):
        main(["registry", "serve", "--help"])
    said = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in said for name in MEANINGS)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--heartbeat-timeout-seconds", "soon"], "heartbeat_timeout_seconds"),
        (["--node-listen", "nowhere"], "nowhere"),
        (["--node-listen", "0.0.0.0:8080", "--auth", "off"], "--insecure-no-auth"),
        (["--node-listen", "0.0.0.0:8080"], "--insecure-plaintext"),
        (["--failure-window", "2"], "failures_in_window"),
        (["--config", "/nowhere/registry.toml"], "/nowhere/registry.toml"),
        (["--store", "tape"], "sqlite:///PATH"),
        (["--store", "sqlite://registry.db"], "whole path"),
    ],
)
def test_a_wrong_setting_is_named_with_the_next_step(
    words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["registry", "serve", *words]) == 4
    assert hint in capsys.readouterr().err
