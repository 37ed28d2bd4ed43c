"""The sentences about a child's end, and its command."""

import signal
import sys

import pytest

from gpu_agent.probe.nvml.no_answer import death_sentence, hung_sentence
from gpu_agent.probe.nvml.process import CHILD_COMMAND, spawn


def test_a_death_by_signal_names_the_signal_and_the_next_step() -> None:
    sentence = death_sentence(-signal.SIGBUS)
    assert "was ended by SIGBUS" in sentence
    assert "nvidia-smi" in sentence


def test_a_death_by_a_signal_without_a_name_gives_its_number() -> None:
    assert "was ended by signal 255" in death_sentence(-255)


def test_a_death_by_exit_quotes_the_last_line_of_stderr() -> None:
    sentence = death_sentence(3, b"first\nNo \xff device\n\n")
    assert "left with exit status 3, saying 'No \ufffd device'" in sentence


def test_a_hang_names_the_deadline() -> None:
    assert "within 2.5 s (nvml_hung)" in hung_sentence(2.5)


def test_the_child_ignores_the_working_directory() -> None:
    assert "-P" in CHILD_COMMAND


def test_the_child_is_handed_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        *("GPU_AGENT_JOIN_TOKEN", "gpu_agent_join_token", "GPU_REGISTRY_TOKEN", "GPU_AGENT_PROXY"),
        *("HF_TOKEN", "https_proxy", "AWS_SECRET_ACCESS_KEY", "CREDENTIALS_DIRECTORY"),
    }
    for name in (*secrets, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "x")
    with spawn([sys.executable, "-c", "import os; print(*os.environ)"], env=None) as process:
        assert process.stdout is not None
        names = process.stdout.read().decode().split()
    assert "CUDA_VISIBLE_DEVICES" in names
    assert secrets.isdisjoint(names)
