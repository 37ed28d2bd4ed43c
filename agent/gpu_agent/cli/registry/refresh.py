"""`gpu-agent registry refresh`: have a node look at itself again, now."""

import argparse

from gpu_agent.cli.asking.api import Api
from gpu_agent.cli.options import add_asking, add_node_id, print_json
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.registry.node_action import Node
from gpu_agent.cli.teaching import teach


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
        parser,
        "Ask a connected node to probe its GPUs and models again and to send all it finds,\n"
        "rather than wait until it does so by itself.",
        example="gpu-agent registry refresh node-7",
        exits={ExitCode.OK: "the node was asked; what it finds comes with its next beat"},
    )
    add_node_id(parser)
    add_asking(parser, json_is="what POST /v1/nodes/ID/refresh answers")


def main(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    answer = Node(Api.of(arguments), arguments.node_id).post("refresh")
    if arguments.json:
        print_json(answer)
    else:
        print(f"{arguments.node_id} was asked to probe again; what it finds comes with its next beat")
    return ExitCode.OK
