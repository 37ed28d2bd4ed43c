"""`gpu-agent registry settings`: the thresholds in force."""

from gpu_agent.cli.client.http import Api, request_options
from gpu_agent.cli.command import Arguments, ExitCode
from gpu_agent.cli.declaration import Commands, Declaration
from gpu_agent.cli.output.table import Column, Row, Table, render_table
from gpu_agent.cli.output.text import Piece, line, print_json, print_lines, terminal_columns
from gpu_agent.wire.api import ThresholdList, ThresholdView

_MIB = 2**20
_COLUMNS = (Column(head="THRESHOLD"), Column(head="VALUE", right=True), Column(head="UNIT"))


def declare_settings() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Show every threshold in force, what it means, and where it is not the default.\n"
        "Each is a setting: an option of `registry serve`, a key of its file, or a variable.",
        example="gpu-agent registry settings",
        exits={ExitCode.OK: "shown"},
        params=[*request_options(json_is="what GET /v1/thresholds answers")],
    )


def run_settings(arguments: Arguments) -> int:
    """Read them and print."""
    answer = Api.of(arguments).get("/v1/thresholds", ThresholdList)
    if arguments.json:
        print_json(answer.document)
    else:
        rows = [_row(one) for one in answer.model.thresholds]
        print_lines(render_table(Table(_COLUMNS, rows, note="MEANING"), terminal_columns()))
    return ExitCode.OK


def _row(one: ThresholdView) -> Row:
    changed = one.value != one.default
    scale, unit = (_MIB, "MiB") if one.unit == "bytes" else (1, one.unit)
    value = Piece(_value_in_words(one.value, scale), "bold yellow" if changed else "")
    default = f" (default {_value_in_words(one.default, scale)})" if changed else ""
    return Row((line(one.name), line(value), line(unit)), line(one.meaning, default))


def _value_in_words(value: float | tuple[str, ...], scale: int) -> str:
    """Give a number in every digit that it has: `:g` alone rounds to six."""
    return f"{value / scale:.15g}" if isinstance(value, int | float) else ",".join(value) or "none"


COMMANDS: Commands = {
    "settings": (declare_settings, run_settings),
}
