"""`gpu-agent registry drain`: let a node finish its jobs, then take it offline."""

import argparse
import json

from gpu_agent.cli.answers import NODE_DETAIL
from gpu_agent.cli.api import Api, add_api_option, quoted
from gpu_agent.cli.durations import seconds
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.teaching import teach


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
        parser,
        "Give a node no more jobs, let those in flight end, then take it offline.\n"
        "After the deadline it goes offline whatever runs. The wish outlives restarts of both sides;\n"
        "`registry resume` lifts it.",
        example="gpu-agent registry drain node-7 --deadline 10m --reason 'new fans'",
        exits={ExitCode.OK: "the drain is under way, or over already"},
    )
    parser.add_argument("node_id", metavar="ID", help="the node, as `registry nodes` shows it")
    parser.add_argument(
        "--deadline",
        type=seconds,
        metavar="TIME",
        help="how long jobs may take, such as 10m (default: the registry's)",
    )
    parser.add_argument("--reason", metavar="TEXT", help="why, for whoever looks at the node")
    parser.add_argument("--json", action="store_true", help="print the node as the API answers it")
    add_api_option(parser)


def main(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    body = {"deadline_seconds": arguments.deadline, "reason": arguments.reason}
    node = Api.of(arguments).post(
        f"/v1/nodes/{quoted(arguments.node_id)}/drain",
        {name: value for name, value in body.items() if value is not None},
        NODE_DETAIL,
    )
    if arguments.json:
        print(json.dumps(node, indent=2))
    else:
        print(f"{node['node_id']} is {node['status']}: {node['reason']}")
    return ExitCode.OK
