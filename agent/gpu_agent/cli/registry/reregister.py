"""`gpu-agent registry reregister`: have a node declare itself anew."""

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
        "Ask a connected node to register again: it declares its hardware, models and\n"
        "labels anew and proves itself as a newcomer does. It keeps its id and its jobs,\n"
        "and gets no new job until it is ready.",
        example="gpu-agent registry reregister node-7",
        exits={ExitCode.OK: "the node was asked"},
    )
    add_node_id(parser)
    add_asking(parser, json_is="what POST /v1/nodes/ID/reregister answers")


def main(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    answer = Node(Api.of(arguments), arguments.node_id).post("reregister")
    if arguments.json:
        print_json(answer)
    else:
        print(f"{arguments.node_id} was asked to register again; `registry node` shows when it has")
    return ExitCode.OK
