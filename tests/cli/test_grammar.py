import argparse

import pytest

from gpu_agent.cli.grammar import parser_of
from gpu_agent.cli.outcome import ExitCode, Failure


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--join-token-file")


def test_no_option_is_taken_by_the_half_of_its_name() -> None:
    parser = parser_of(configure, ["gpu-agent", "run"])
    assert parser.parse_known_args(["--join-token", "x"])[1] == ["--join-token", "x"]


def test_a_wrong_argument_ends_with_the_code_of_a_wrong_configuration() -> None:
    with pytest.raises(Failure) as failed:
        parser_of(configure, ["gpu-agent", "run"]).error("no")
    assert failed.value.code is ExitCode.CONFIGURATION
    assert str(failed.value) == "no\nSee `gpu-agent run --help`."
