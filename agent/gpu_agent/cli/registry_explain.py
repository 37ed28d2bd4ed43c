"""`gpu-agent registry explain`: for each node, why it could or could not take a job."""

import argparse
import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpu_agent.cli.answers import EXPLANATION
from gpu_agent.cli.api import Api, add_api_option
from gpu_agent.cli.job_options import add_demands, demands_of
from gpu_agent.cli.node_table import NO_NODES
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.teaching import teach

DESCRIPTION = """\
Describe a job; every node answers whether it could take it now, and if not, which demand fails first,
what the job needs and what the node has. Nothing is reserved."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments: one for each demand that a job may state."""
    teach(
        parser,
        DESCRIPTION,
        example="gpu-agent registry explain --model my/model --gpus 2 --label zone=a",
        exits={ExitCode.OK: "explained, whether or not a node is able"},
    )
    add_demands(parser)
    parser.add_argument("--json", action="store_true", help="print what POST /v1/dispatch/explain answers")
    add_api_option(parser)


def main(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    answer = Api.of(arguments).post("/v1/dispatch/explain", demands_of(arguments), EXPLANATION)
    if arguments.json:
        print(json.dumps(answer, indent=2))
    elif not (answer["able"] or answer["excluded"]):
        print(NO_NODES)
    else:
        _print(answer)
    return ExitCode.OK


def _print(answer: Mapping[str, Any]) -> None:
    console = Console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("NODE", "VERDICT", "NEEDS", "HAS"):
        table.add_column(column, overflow="fold")
    for node_id in answer["able"]:
        table.add_row(Text(node_id), Text("able", style="green"), "", "")
    for one in answer["excluded"]:
        table.add_row(
            Text(one["node_id"]), Text(one["reason"], style="yellow"), Text(one["need"]), Text(one["have"])
        )
    if table.row_count:
        console.print(table)
    counts = ", ".join(f"{reason} {count}" for reason, count in answer["counts"].items())
    console.print(f"{len(answer['able'])} able; excluded: {counts or 'none'}", highlight=False)
