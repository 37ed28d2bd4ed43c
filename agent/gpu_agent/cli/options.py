"""Options that many commands share: where the registry is, which node is meant, how to answer."""

import argparse
import json
from collections.abc import Mapping
from typing import Any

from gpu_agent.cli.asking.api import add_api_option


def add_asking(parser: argparse.ArgumentParser, *, json_is: str) -> None:
    """Add `--json`, whose output is `json_is`, and what says where the registry is."""
    parser.add_argument("--json", action="store_true", help=f"print {json_is}")
    add_api_option(parser)


def add_node_id(parser: argparse.ArgumentParser) -> None:
    """Add the node that is meant."""
    parser.add_argument("node_id", metavar="ID", help="the node, as `registry nodes` shows it")


def given(**asked: object) -> dict[str, object]:
    """What was asked for; an option that was not given is None, and left to the registry."""
    return {name: value for name, value in asked.items() if value is not None}


def print_json(document: Mapping[str, Any]) -> None:
    """Print an answer as the API gave it."""
    print(json.dumps(document, indent=2))
