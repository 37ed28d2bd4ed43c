"""`gpu-agent registry forget`: let a node's record go, after saying what goes with it."""

import argparse
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from gpu_agent.cli.answers import NODE_DETAIL
from gpu_agent.cli.asking.api import Api
from gpu_agent.cli.options import add_asking, add_node_id
from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.cli.printable import printable
from gpu_agent.cli.registry.node_action import Node
from gpu_agent.cli.teaching import teach


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
        parser,
        "Let a node's record go: its identity, claims, drain, cordon and history. What is lost\n"
        "is said first; on a terminal the id has to be typed. An agent that still runs there\n"
        "is sent away and comes back only as a newcomer.",
        example="gpu-agent registry forget node-7 --yes",
        exits={
            ExitCode.OK: "forgotten",
            ExitCode.FAILED: "the id was not typed; nothing happened",
            ExitCode.CONFIGURATION: "wrong arguments, or no terminal to ask at and no --yes",
        },
    )
    add_node_id(parser)
    parser.add_argument("--yes", action="store_true", help="do not ask")
    add_asking(parser, json_is="nothing, as DELETE /v1/nodes/ID answers nothing")


def main(arguments: argparse.Namespace) -> int:
    """Say what is lost, ask, and do it."""
    node = Node(Api.of(arguments), arguments.node_id)
    lost = "\n".join(_losses(node.get(shape=NODE_DETAIL)))
    if not arguments.yes:
        _confirm(arguments.node_id, lost)
    node.delete()
    if not arguments.json:
        print(f"{arguments.node_id} is forgotten." + (f"\n{lost}" if arguments.yes else ""))
    return ExitCode.OK


def _confirm(node_id: str, lost: str) -> None:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise Failure(
            f"there is no terminal to ask at. {lost}\nAdd --yes to forget {node_id} all the same.",
            code=ExitCode.CONFIGURATION,
        )
    print(f"{lost}\nType the id to forget it: ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip() != node_id:
        raise Failure(f"that is not {node_id}: nothing was forgotten")


def _losses(node: Mapping[str, Any]) -> Iterator[str]:
    connected = ", connected" if node["connected"] else ""
    yield f"{node['node_id']} is {node['status']}{connected} ({printable(node['reason'])}). With it go:"
    yield "  its identity: an agent that still runs there needs a join token, and comes as a newcomer"
    claims = node.get("claimed_jobs") or ()
    if claims:
        yield f"  its claims, reported lost: {', '.join(map(printable, claims))}"
    if node["in_flight_jobs"] > len(claims):
        yield f"  what is known of its {node['in_flight_jobs']} jobs in flight, which may run on unseen"
    if node.get("drain"):
        yield "  its drain: should it come back, it takes jobs"
    if node.get("cordoned") is not None:
        yield f"  its cordon ({printable(node['cordoned'])}): should it come back, it takes jobs"
    yield f"  its history: {len(node['events'])} events"
