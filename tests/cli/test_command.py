import argparse

import pytest

from gpu_agent.cli.command import (
    MEANINGS,
    ExitCode,
    Failure,
    describe,
    exit_code_lines,
    label_pair,
    parser_of,
    positive_number,
    whole_number,
)


def test_every_exit_code_is_explained() -> None:
    assert set(MEANINGS) == set(ExitCode)


def test_a_failure_carries_its_sentence_and_its_code() -> None:
    failure = Failure("no registry answers", code=ExitCode.UNREACHABLE)
    assert (str(failure), failure.code) == ("no registry answers", 5)


def test_help_has_an_example_and_the_ways_to_end() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("gpu-agent registry it", formatter_class=form)
    describe(
        parser, "Does it.", example="do it", exits={ExitCode.OK: "it is done", ExitCode.NO_NODE: "by no node"}
    )
    said = parser.format_help()
    for words in (
        "Does it.",
        "example:\n  do it\n",
        "    0  it is done\n    4  wrong",
        "    6  the registry",
        "7  by no node",
    ):
        assert words in said


def test_codes_stand_in_a_column() -> None:
    assert list(exit_code_lines({ExitCode.OK: "done", ExitCode.INTERRUPTED: "stopped"})) == [
        "    0  done",
        "  130  stopped",
    ]


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
