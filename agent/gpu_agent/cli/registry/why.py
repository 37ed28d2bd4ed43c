"""`gpu-agent registry why`: which jobs a node would be refused now, and why."""

import argparse
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

from gpu_agent.cli.answers import WHY
from gpu_agent.cli.asking.api import Api
from gpu_agent.cli.lines import BLANK, Line, Piece, line, wrapped
from gpu_agent.cli.nodes.objection_sheet import objection_lines, taken
from gpu_agent.cli.options import add_asking, add_node_id, print_json
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.registry.node_action import Node
from gpu_agent.cli.teaching import teach
from gpu_agent.cli.terminal import columns, show

_ENDLESS = 1_000_000


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
        parser,
        "Say which jobs a node would be refused now, and why: first what may pass, with what would "
        "clear it, then what the node is, beyond which no job ever fits. With --model also how it "
        "stands with that model there.",
        example="gpu-agent registry why node-7 --model my/model",
        exits={ExitCode.OK: "said, whatever it is"},
    )
    add_node_id(parser)
    parser.add_argument("--model", metavar="M", help="also how it stands with this model there")
    add_asking(parser, json_is="what GET /v1/nodes/ID/why answers")


def main(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    query = "" if arguments.model is None else f"?{urllib.parse.urlencode({'model': arguments.model})}"
    answer = Node(Api.of(arguments), arguments.node_id).get(f"/why{query}", shape=WHY)
    if arguments.json:
        print_json(answer)
    else:
        show(_page(answer, columns()))
    return ExitCode.OK


def _page(answer: Mapping[str, Any], columns: int | None) -> Iterator[Line]:
    objections, limits = answer["objections"], answer["limits"]
    yield taken(answer["node_id"], answer)
    if objections:
        yield BLANK
        yield from objection_lines("NOW REFUSED", objections, columns)
    if limits:
        yield BLANK
        yield from objection_lines("NEVER FITS", limits, columns)
    if answer.get("model"):
        yield BLANK
        yield from wrapped(_model(answer["model"]), _ENDLESS if columns is None else columns)


def _model(model: Mapping[str, Any]) -> Line:
    style = "green" if model["ready"] else "yellow"
    versions = ", ".join(
        f"{one['version']} {one['status']}{'' if one['enabled'] else ' disabled'}"
        for one in model["versions"]
    )
    told = f" (versions: {versions})" if versions else ""
    return line(f"Model {model['model_id']}: ", Piece(model["state"], style), told)
