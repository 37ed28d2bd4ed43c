import argparse
import json

import pytest

from gpu_agent.cli.options import (
    add_node_id,
    add_request_options,
    label_pair,
    positive_number,
    print_json,
    whole_number,
)


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
