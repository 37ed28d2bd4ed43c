"""`gpu-agent registry resume`: take a drained node back."""

import argparse

from gpu_agent.cli.answers import NODE_DETAIL
from gpu_agent.cli.asking.api import Api
from gpu_agent.cli.options import add_asking, add_node_id, print_json
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.printable import printable
from gpu_agent.cli.registry.node_action import Node
from gpu_agent.cli.teaching import teach


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
        parser,
        "Lift a node's drain. It proves itself anew, registering and then ready; if its\n"
        "agent is not connected, as soon as it is.",
        example="gpu-agent registry resume node-7",
        exits={ExitCode.OK: "the drain is lifted"},
    )
    add_node_id(parser)
    add_asking(parser, json_is="the node, as POST /v1/nodes/ID/resume answers it")


def main(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    node = Node(Api.of(arguments), arguments.node_id).post("resume", shape=NODE_DETAIL)
    if arguments.json:
        print_json(node)
    else:
        print(f"{node['node_id']} is {node['status']}: {printable(node['reason'])}")
    return ExitCode.OK
