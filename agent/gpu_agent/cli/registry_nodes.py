"""`gpu-agent registry nodes`: every node with its status and reason."""

import argparse
import json

from rich.console import Console

from gpu_agent.cli.answers import NODES
from gpu_agent.cli.api import Api, add_api_option
from gpu_agent.cli.node_table import NO_NODES, node_table
from gpu_agent.cli.outcome import ExitCode


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.description = (
        "List every node that the registry knows, with its status and why it has it.\n"
        "Only `ready` and connected nodes take jobs; `registry explain` says why a node does not."
    )
    parser.add_argument("--json", action="store_true", help="print what GET /v1/nodes returns")
    add_api_option(parser)


def main(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    answer = Api.of(arguments).get("/v1/nodes", NODES)
    if arguments.json:
        print(json.dumps(answer, indent=2))
    elif answer["nodes"]:
        Console().print(node_table(answer["nodes"]))
    else:
        print(NO_NODES)
    return ExitCode.OK
