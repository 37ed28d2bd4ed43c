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
from gpu_agent.cli.node_table import NO_NODES
from gpu_agent.cli.outcome import ExitCode, Failure

DESCRIPTION = """\
Describe a job; every node answers whether it could take it now, and if not, which demand fails first,
what the job needs and what the node has. Nothing is reserved."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments: one for each demand that a job may state."""
    parser.description = DESCRIPTION
    parser.add_argument(
        "--model", action="append", default=[], metavar="M", help="a required model (repeatable)"
    )
    parser.add_argument(
        "--feature", action="append", default=[], metavar="F", help="a required feature (repeatable)"
    )
    parser.add_argument("--public", action="store_true", help="a job of the public pool")
    parser.add_argument(
        "--gpus", type=_at_least_one, default=1, metavar="N", help="how many GPUs (default 1)"
    )
    parser.add_argument("--gpu-name", metavar="NAME", help="part of the GPU's name")
    parser.add_argument(
        "--min-gpu-memory-mb", type=_at_least_one, metavar="MB", help="free memory on each GPU, in MiB"
    )
    parser.add_argument(
        "--label", action="append", default=[], metavar="K=V", help="a required label (repeatable)"
    )
    parser.add_argument(
        "--node", action="append", default=None, metavar="ID", help="only on these nodes (repeatable)"
    )
    parser.add_argument("--json", action="store_true", help="print what the API returns")
    add_api_option(parser)


def main(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    answer = Api.of(arguments).post("/v1/dispatch/explain", _job(arguments), EXPLANATION)
    if arguments.json:
        print(json.dumps(answer, indent=2))
    elif not (answer["able"] or answer["excluded"]):
        print(NO_NODES)
    else:
        _print(answer)
    return ExitCode.OK


def _job(arguments: argparse.Namespace) -> dict[str, object]:
    job: dict[str, object] = {
        "job_id": "explain",
        "required_models": arguments.model,
        "required_features": arguments.feature,
        "public": arguments.public,
        "gpu_count": arguments.gpus,
        "gpu_name": arguments.gpu_name,
        "min_gpu_memory_mb": arguments.min_gpu_memory_mb,
        "labels": dict(_pair(label) for label in arguments.label),
        "allowed_nodes": arguments.node,
    }
    return {name: value for name, value in job.items() if value not in (None, [], {})}


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


_at_least_one.__name__ = "whole number"  # argparse names it so where the text is no number at all


def _pair(label: str) -> tuple[str, str]:
    key, equals, value = label.partition("=")
    if not (key and equals):
        raise Failure(f"--label {label!r} is no label; write it like zone=a", code=ExitCode.CONFIGURATION)
    return key, value


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
