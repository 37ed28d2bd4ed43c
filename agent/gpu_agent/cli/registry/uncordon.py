"""`gpu-agent registry uncordon`: let a cordoned node have new jobs again."""

import argparse

from gpu_agent.cli.answers import NODE_DETAIL
from gpu_agent.cli.asking.api import Api
from gpu_agent.cli.options import add_asking, add_node_id, print_json
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.registry.node_action import Node
from gpu_agent.cli.teaching import teach


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
        parser,
        "Lift a cordon: the node may have new jobs whenever it is ready.",
        example="gpu-agent registry uncordon node-7",
        exits={ExitCode.OK: "the cordon is lifted"},
    )
    add_node_id(parser)
    add_asking(parser, json_is="the node, as POST /v1/nodes/ID/uncordon answers it")


def main(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    node = Node(Api.of(arguments), arguments.node_id).post("uncordon", shape=NODE_DETAIL)
    ready = node["status"] == "ready" and node["connected"]
    when = "now" if ready else f"once it is ready and connected; it is {node['status']}"
    if arguments.json:
        print_json(node)
    else:
        print(f"{node['node_id']} may have new jobs {when}")
    return ExitCode.OK
