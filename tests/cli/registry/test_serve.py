import json
import signal
from dataclasses import fields

import pytest

from gpu_agent.cli.main import main
from gpu_agent.cli.registry.serve import MEANINGS
from gpu_agent.registry.settings import Thresholds
from tests.programs import eventually
from tests.runtime.test_signals import as_pid_1, first_process


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


def test_as_pid_1_it_leaves_no_zombies_and_ends_at_sigterm() -> None:
    words = ["registry", "serve", "--store", "memory", "--auth", "off"]
    ports = ["--node-listen", "127.0.0.1:0", "--operator-listen", "127.0.0.1:0"]
    program = f"""
import subprocess, sys
from gpu_agent.cli.main import main
sys.stderr = sys.stdout
subprocess.Popen(["sh", "-c", "sleep 0.1 & sleep 0.2 &"]).wait()
sys.exit(main({words + ports!r}))
"""
    with as_pid_1(program) as started:
        assert started.stdout is not None
        event = ""
        while event != "registry_listening":
            event = json.loads(started.stdout.readline())["event"]
        first = first_process(started)
        eventually(lambda: len(first.children()) == 1, within_seconds=10, what="no zombies")
        first.send_signal(signal.SIGTERM)
        assert started.wait(10) == 0
