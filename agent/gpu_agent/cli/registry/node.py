"""`gpu-agent registry node`: one node in full."""

import argparse
import time

from gpu_agent.cli.answers import NODE_DETAIL
from gpu_agent.cli.asking.api import Api
from gpu_agent.cli.nodes.page import node_page
from gpu_agent.cli.options import add_asking, add_node_id, print_json
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.registry.node_action import Node
from gpu_agent.cli.teaching import teach
from gpu_agent.cli.terminal import columns, show


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
        parser,
        "Show one node: its status and what would change it, jobs, drain, labels, GPUs,\n"
        "models, every health check, and what happened to it lately.",
        example="gpu-agent registry node node-7",
        exits={ExitCode.OK: "shown, whatever its status"},
    )
    add_node_id(parser)
    add_asking(parser, json_is="what GET /v1/nodes/ID answers")


def main(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    node = Node(Api.of(arguments), arguments.node_id).get(shape=NODE_DETAIL)
    if arguments.json:
        print_json(node)
    else:
        show(node_page(node, columns(), now=time.time()))
    return ExitCode.OK
