import argparse
import json

import pytest

from gpu_agent.cli.options import add_asking, add_node_id, print_json


def test_every_command_that_asks_can_say_where_and_in_which_form() -> None:
    parser = argparse.ArgumentParser()
    add_node_id(parser)
    add_asking(parser, json_is="the answer")
    given = parser.parse_args(["node-1", "--json", "--api", "http://h"])
    assert (given.node_id, given.json, given.api) == ("node-1", True, "http://h")
    assert "print the answer" in parser.format_help()


def test_json_keeps_every_word(capsys: pytest.CaptureFixture[str]) -> None:
    document = {"b": ["é\x1b"], "a": None}
    print_json(document)
    said = capsys.readouterr().out
    assert json.loads(said) == document
    assert said.isascii()
