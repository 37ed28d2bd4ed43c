"""`gpu-agent registry claims`: who holds which place."""

import argparse
import time
from collections.abc import Mapping
from typing import Any

from gpu_agent.cli.answers import CLAIMS, NODE_DETAIL
from gpu_agent.cli.asking.api import Api
from gpu_agent.cli.asking.paging import listed
from gpu_agent.cli.durations import in_words
from gpu_agent.cli.lines import line
from gpu_agent.cli.options import add_asking, print_json
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.registry.node_action import Node
from gpu_agent.cli.sheet import Column, Row, Sheet, laid_out
from gpu_agent.cli.teaching import teach
from gpu_agent.cli.terminal import columns, show

_COLUMNS = (
    Column(head="JOB", folds=True),
    Column(head="NODE"),
    Column(head="HELD", right=True, worth=2),
    Column(head="ENDS IN", right=True),
    Column(head="GPUS", folds=True),
    Column(head="ENDPOINT", worth=1),
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
        parser,
        "List the claims that are held: job, node, for how long already, and when each ends\n"
        "unless it is renewed.",
        example="gpu-agent registry claims --node node-7",
        exits={ExitCode.OK: "listed, even if there is none"},
    )
    parser.add_argument("--node", metavar="ID", help="only those on this node")
    add_asking(parser, json_is="what GET /v1/claims answers, all pages as one")


def main(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    api = Api.of(arguments)
    query = [] if arguments.node is None else [("node_id", arguments.node)]
    answer = listed(api, "/v1/claims", CLAIMS, key="claims", query=query)
    if arguments.node is not None and not answer["claims"]:
        Node(api, arguments.node).get(shape=NODE_DETAIL)  # "none" of a node that nobody knows would mislead
    if arguments.json:
        print_json(answer)
    elif answer["claims"]:
        now = time.time()
        show(laid_out(Sheet(_COLUMNS, [_row(claim, now) for claim in answer["claims"]]), columns()))
    else:
        print("No claim is held." if arguments.node is None else f"No claim is held on {arguments.node}.")
    return ExitCode.OK


def _row(claim: Mapping[str, Any], now: float) -> Row:
    granted = claim.get("granted_at")
    return Row(
        (
            line(claim["job_id"]),
            line(claim["node_id"]),
            line("" if granted is None else in_words(now - granted)),
            line(in_words(claim["expires_at"] - now)),
            line(" ".join(claim.get("gpu_uuids") or ())),
            line(claim.get("endpoint") or ""),
        )
    )
