"""Options that several commands share, and the argparse types that read their values.

A wrong value is answered with a sentence that says how to write it.
"""

import argparse
import json
from collections.abc import Mapping
from typing import Any

from gpu_agent.cli.client.http import add_api_options


def whole_number(text: str) -> int:
    """Read a whole number."""
    return int(text)


def positive_number(text: str) -> int:
    """Read a whole number above zero."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


whole_number.__name__ = positive_number.__name__ = (
    "whole number"  # so argparse names what is no number at all
)


def label_pair(text: str) -> tuple[str, str]:
    """Read `key=value`."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is no label: write it like zone=a")
    return key, value


def add_request_options(parser: argparse.ArgumentParser, *, json_is: str) -> None:
    """Add `--json`, whose output is `json_is`, and what says where the registry is."""
    parser.add_argument("--json", action="store_true", help=f"print {json_is}")
    add_api_options(parser)


def add_node_id(parser: argparse.ArgumentParser) -> None:
    """Add the node that is meant."""
    parser.add_argument("node_id", metavar="ID", help="the node, as `registry nodes` shows it")


def without_none(**asked: object) -> dict[str, object]:
    """What was asked for; an option that was not given is None, and left to the registry."""
    return {name: value for name, value in asked.items() if value is not None}


def print_json(document: Mapping[str, Any]) -> None:
    """Print an answer as the API gave it."""
    print(json.dumps(document, indent=2))
