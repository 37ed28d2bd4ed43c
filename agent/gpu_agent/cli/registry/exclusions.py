"""`gpu-agent registry exclusions`: what jobs failed on lately."""

import argparse
import time
from collections.abc import Iterator, Mapping
from typing import Any

from gpu_agent.cli.answers import EXCLUSIONS
from gpu_agent.cli.asking.api import Api
from gpu_agent.cli.lines import Piece, line
from gpu_agent.cli.nodes.event_words import clock
from gpu_agent.cli.nodes.verdict_sheet import need_and_have
from gpu_agent.cli.options import add_asking, print_json
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.sheet import Column, Row, Sheet, laid_out
from gpu_agent.cli.teaching import teach
from gpu_agent.cli.terminal import columns, show

_COLUMNS = (
    Column(head="FROM"),
    Column(head="FAILED", right=True),
    Column(head="REASON"),
    Column(head="NODES", right=True),
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
        parser,
        "Count what jobs failed on in the last hour, by the minute: how many found no node, and how "
        "many nodes fell to each reason, with one of them as an example.",
        example="gpu-agent registry exclusions",
        exits={ExitCode.OK: "counted, even if no job failed"},
    )
    add_asking(parser, json_is="what GET /v1/exclusions answers")


def main(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    answer = Api.of(arguments).get("/v1/exclusions", EXCLUSIONS)
    if arguments.json:
        print_json(answer)
        return ExitCode.OK
    now = time.time()
    rows = [row for window in answer["windows"] for row in _rows(window, now)]
    if rows:
        show(laid_out(Sheet(_COLUMNS, rows, note="FOR EXAMPLE"), columns()))
    else:
        print("Every job of the last hour found a node, or none asked for one.")
    return ExitCode.OK


def _rows(window: Mapping[str, Any], now: float) -> Iterator[Row]:
    for reason, count in window["counts"].items():
        examples = window["examples"].get(reason) or ()
        yield Row(
            (
                line(clock(window["window_start"], now)),
                line(window["failed"]),
                line(Piece(reason, "yellow")),
                line(count),
            ),
            line(*(f"{one['node_id']} {need_and_have(one)}" for one in examples[:1])),
        )
    if window["failed"] and not window["counts"]:
        yield Row(
            (line(clock(window["window_start"], now)), line(window["failed"]), line("no node known"), line(0))
        )
