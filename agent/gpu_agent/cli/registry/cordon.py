"""`gpu-agent registry cordon`: give a node no new jobs, and leave everything else as it is."""

import argparse

from gpu_agent.cli.answers import NODE_DETAIL
from gpu_agent.cli.asking.api import Api
from gpu_agent.cli.options import add_asking, add_node_id, given, print_json
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.registry.node_action import Node
from gpu_agent.cli.teaching import teach


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
        parser,
        "Give a node no new jobs. Its status and the jobs that it has stay as they are;\n"
        "the cordon outlives restarts of both sides, until `registry uncordon`.",
        example="gpu-agent registry cordon node-7 --reason 'odd noise, watch it'",
        exits={ExitCode.OK: "the node gets no new jobs"},
    )
    add_node_id(parser)
    parser.add_argument("--reason", metavar="TEXT", help="why, for whoever looks at the node")
    add_asking(parser, json_is="the node, as POST /v1/nodes/ID/cordon answers it")


def main(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    node = Node(Api.of(arguments), arguments.node_id).post(
        "cordon", given(reason=arguments.reason), shape=NODE_DETAIL
    )
    if arguments.json:
        print_json(node)
    else:
        jobs = node["in_flight_jobs"]
        kept = f", and keeps its {jobs} {'job' if jobs == 1 else 'jobs'}" if jobs else ""
        print(f"{node['node_id']} gets no new jobs until `registry uncordon`; it is {node['status']}{kept}")
    return ExitCode.OK
