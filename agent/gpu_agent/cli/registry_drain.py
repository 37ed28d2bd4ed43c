"""`gpu-agent registry drain`: let a node finish its jobs, then take it offline."""

import argparse

from gpu_agent.cli.answers import NODE_DETAIL
from gpu_agent.cli.api import Api, add_api_option, quoted
from gpu_agent.cli.outcome import ExitCode


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.description = (
        "Give a node no more jobs, let those in flight end, then take it offline.\n"
        "After the deadline it goes offline whatever runs. The wish outlives restarts of the node."
    )
    parser.add_argument("node_id", metavar="ID", help="the node, as `registry nodes` shows it")
    parser.add_argument(
        "--deadline-seconds", type=float, metavar="S", help="how long jobs may take (default: the registry's)"
    )
    add_api_option(parser)


def main(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    body = {} if arguments.deadline_seconds is None else {"deadline_seconds": arguments.deadline_seconds}
    node = Api.of(arguments).post(f"/v1/nodes/{quoted(arguments.node_id)}/drain", body, NODE_DETAIL)
    print(f"{node['node_id']} is {node['status']}: {node['reason']}")
    return ExitCode.OK
