"""`gpu-agent registry drain`: let a node finish its jobs, then take it offline."""

import argparse

from gpu_agent.cli.answers import NODE_DETAIL
from gpu_agent.cli.asking.api import Api
from gpu_agent.cli.durations import seconds
from gpu_agent.cli.options import add_asking, add_node_id, given, print_json
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.printable import printable
from gpu_agent.cli.registry.drain_wait import until_offline
from gpu_agent.cli.registry.node_action import Node
from gpu_agent.cli.streams import complain
from gpu_agent.cli.teaching import teach


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
        parser,
        "Give a node no more jobs, let those in flight end, then take it offline.\n"
        "After the deadline it goes offline whatever runs. The wish outlives restarts of\n"
        "both sides; `registry resume` lifts it.",
        example="gpu-agent registry drain node-7 --deadline 10m --reason 'new fans' --wait",
        exits={
            ExitCode.OK: "the drain is under way; with --wait: the node is offline",
            ExitCode.FAILED: "with --wait: somebody lifted the drain meanwhile",
            ExitCode.INTERRUPTED: "with --wait: interrupted; the drain goes on",
        },
    )
    add_node_id(parser)
    parser.add_argument(
        "--deadline",
        type=seconds,
        metavar="TIME",
        help="how long jobs may take, such as 10m (default: the registry's)",
    )
    parser.add_argument("--reason", metavar="TEXT", help="why, for whoever looks at the node")
    parser.add_argument(
        "--wait", action="store_true", help="show the jobs in flight, and end when it is offline"
    )
    add_asking(parser, json_is="the node, as POST /v1/nodes/ID/drain answers it; with --wait when it is over")


def main(arguments: argparse.Namespace) -> int:
    """Ask, wait if so told, and print."""
    node = Node(Api.of(arguments), arguments.node_id)
    asked = given(deadline_seconds=arguments.deadline, reason=arguments.reason)
    now = node.post("drain", asked, shape=NODE_DETAIL)
    if arguments.wait:
        try:
            now = until_offline(node, now, quiet=arguments.json)
        except KeyboardInterrupt:
            complain(f"the drain of {node.node_id} goes on; `gpu-agent registry resume` would lift it")
            return ExitCode.INTERRUPTED
    if arguments.json:
        print_json(now)
    else:
        print(f"{now['node_id']} is {now['status']}: {printable(now['reason'])}")
    return ExitCode.OK
