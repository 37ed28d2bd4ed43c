"""`gpu-agent registry thresholds`: the thresholds in force."""

import argparse
from collections.abc import Mapping
from typing import Any

from gpu_agent.cli.client.http import THRESHOLDS, Api
from gpu_agent.cli.command import Commands, ExitCode, describe
from gpu_agent.cli.options import add_request_options, print_json
from gpu_agent.cli.output.table import Column, Row, Table, render_table
from gpu_agent.cli.output.text import Piece, line, print_lines, terminal_columns

_COLUMNS = (Column(head="THRESHOLD"), Column(head="VALUE", right=True), Column(head="UNIT"))


def configure_thresholds(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    describe(
        parser,
        "Show every threshold in force, what it means, and where it is not the default.\n"
        "Each is an option of `registry serve`.",
        example="gpu-agent registry thresholds",
        exits={ExitCode.OK: "shown"},
    )
    add_request_options(parser, json_is="what GET /v1/thresholds answers")


def run_thresholds(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    answer = Api.of(arguments).get("/v1/thresholds", THRESHOLDS)
    if arguments.json:
        print_json(answer)
    else:
        rows = [_threshold_row(one) for one in answer["thresholds"]]
        print_lines(render_table(Table(_COLUMNS, rows, note="MEANING"), terminal_columns()))
    return ExitCode.OK


def _threshold_row(one: Mapping[str, Any]) -> Row:
    changed = one["value"] != one["default"]
    value = Piece(_value_in_words(one["value"]), "bold yellow" if changed else "")
    default = f" (default {_value_in_words(one['default'])})" if changed else ""
    return Row((line(one["name"]), line(value), line(one["unit"])), line(one["meaning"], default))


def _value_in_words(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, int | float) else str(value)


COMMANDS: Commands = {
    "thresholds": (configure_thresholds, run_thresholds),
}
