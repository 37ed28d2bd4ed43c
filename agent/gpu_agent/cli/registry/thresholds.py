"""`gpu-agent registry thresholds`: what the registry judges by."""

import argparse
from collections.abc import Mapping
from typing import Any

from gpu_agent.cli.answers import THRESHOLDS
from gpu_agent.cli.asking.api import Api
from gpu_agent.cli.lines import Piece, line
from gpu_agent.cli.options import add_asking, print_json
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.sheet import Column, Row, Sheet, laid_out
from gpu_agent.cli.teaching import teach
from gpu_agent.cli.terminal import columns, show

_COLUMNS = (Column(head="THRESHOLD"), Column(head="VALUE", right=True), Column(head="UNIT"))


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
        parser,
        "Show every threshold in force, what it means, and where it is not the default.\n"
        "Each is an option of `registry serve`.",
        example="gpu-agent registry thresholds",
        exits={ExitCode.OK: "shown"},
    )
    add_asking(parser, json_is="what GET /v1/thresholds answers")


def main(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    answer = Api.of(arguments).get("/v1/thresholds", THRESHOLDS)
    if arguments.json:
        print_json(answer)
    else:
        rows = [_row(one) for one in answer["thresholds"]]
        show(laid_out(Sheet(_COLUMNS, rows, note="MEANING"), columns()))
    return ExitCode.OK


def _row(one: Mapping[str, Any]) -> Row:
    changed = one["value"] != one["default"]
    value = Piece(_written(one["value"]), "bold yellow" if changed else "")
    default = f" (default {_written(one['default'])})" if changed else ""
    return Row((line(one["name"]), line(value), line(one["unit"])), line(one["meaning"], default))


def _written(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, int | float) else str(value)
