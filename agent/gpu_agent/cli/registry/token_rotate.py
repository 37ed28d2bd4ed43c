"""`gpu-agent registry token rotate`: give a node another token."""

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
        "Replace the token by which a node proves who it is. It is told the new one when it next "
        "registers, at once where it is connected; the old one ends when it next connects with the "
        "new one, and `registry node` shows until then that this is not done. Nobody else is told.",
        example="gpu-agent registry token rotate node-7",
        exits={ExitCode.OK: "the node is to get another token"},
    )
    add_node_id(parser)
    parser.add_argument(
        "--at-once",
        action="store_true",
        help="end the old token now, as one that was stolen; then only `registry reclaim` lets it in again",
    )
    add_asking(parser, json_is="the node, as POST /v1/nodes/ID/rotate answers it")


def main(arguments: argparse.Namespace) -> int:
    """Ask and say what comes of it."""
    api = Api.of(arguments)
    node = Node(api, arguments.node_id).post("rotate", {"at_once": arguments.at_once}, shape=NODE_DETAIL)
    if arguments.json:
        print_json(node)
    elif arguments.at_once:
        print(
            f"{node['node_id']}'s token opens nothing any more. "
            f"Let the machine in again: gpu-agent registry reclaim {node['node_id']}"
        )
    else:
        when = "now" if node["connected"] else "when it next registers"
        print(
            f"{node['node_id']} gets another token {when}; the old one ends when it next connects with that"
        )
    return ExitCode.OK
