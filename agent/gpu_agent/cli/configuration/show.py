"""`gpu-agent config show`: every setting of one half, its value, and where that comes from."""

import argparse
import json

from gpu_agent.cli.configuration.read import Configuration, Setting, add_arguments, failure, read
from gpu_agent.cli.configuration.values import plain, toml
from gpu_agent.cli.lines import Piece, line
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.sheet import Column, Row, Sheet, laid_out
from gpu_agent.cli.streams import complain
from gpu_agent.cli.teaching import teach
from gpu_agent.cli.terminal import columns, show
from gpu_agent.runtime.layers import SettingsError
from gpu_agent.runtime.origins import Layer

_COLUMNS = (Column(head="SETTING"), Column(head="VALUE", folds=True), Column(head="FROM", folds=True))


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
        parser,
        "Show every setting of the agent or the registry as it holds, and where its value comes from: a "
        "default, a line of the file, a variable, an option, or a credential that systemd hands the unit. "
        "Secrets are masked, and what must be stated and is not is shown as none. It sees the variables of "
        "whoever asks, not those of a running service; what a unit gives as options is told by --with.",
        example="gpu-agent config show agent --changed",
        exits={
            ExitCode.OK: "shown",
            ExitCode.CONFIGURATION: "the settings cannot be used, or one is lacking; it says which",
        },
        asks=False,
    )
    add_arguments(parser)
    parser.add_argument("--changed", action="store_true", help="leave out what holds by default")
    parser.add_argument("--json", action="store_true", help="print one object, for programs")


def main(arguments: argparse.Namespace) -> int:
    """Read and print."""
    try:
        configuration = read(arguments)
    except SettingsError as fault:
        raise failure(fault) from None
    settings = [
        one for one in configuration.settings if not (arguments.changed and one.origin.layer is Layer.DEFAULT)
    ]
    if arguments.json:
        print(json.dumps(_document(configuration, settings), indent=2, ensure_ascii=False))
    else:
        show(laid_out(Sheet(_COLUMNS, [_row(one) for one in settings]), columns()))
    if configuration.lacking:
        complain(configuration.lacking)
        return ExitCode.CONFIGURATION
    return ExitCode.OK


def _row(one: Setting) -> Row:
    style = "dim" if one.origin.layer is Layer.DEFAULT else ""
    words = (one.key, toml(one.value), str(one.origin))
    return Row([line(Piece(word, style)) for word in words])


def _document(configuration: Configuration, settings: list[Setting]) -> dict[str, object]:
    return {
        "file": str(configuration.file),
        "file_is_there": configuration.file_is_there,
        "lacking": configuration.lacking or None,
        "settings": [
            {
                "key": one.key,
                "value": plain(one.value),
                "layer": one.origin.layer.value,
                "line": one.origin.line,
                "variable": one.origin.variable,
            }
            for one in settings
        ],
    }
