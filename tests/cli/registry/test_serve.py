import json
import signal

import pytest

from gpu_agent.cli.main import main
from tests.programs import eventually
from tests.runtime.test_signals import as_pid_1, first_process
from tests.waiting import patience


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--heartbeat-timeout-seconds", "soon"], "heartbeat_timeout_seconds"),
        (["--node-listen", "nowhere"], "nowhere"),
        (["--node-listen", "0.0.0.0:8080", "--auth", "off"], "--insecure-no-auth"),
        (["--node-listen", "0.0.0.0:8080"], "--insecure-plaintext"),
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
        assert started.wait(patience(10)) == 0
