"""`gpu-agent why`: which jobs this machine would be refused now, and why, by its own agent's word."""

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from gpu_agent.cli.answers import OBJECTION, ListOf, Shape
from gpu_agent.cli.lines import BLANK, Line, Piece, line, wrapped
from gpu_agent.cli.local.agent import add_local, asked
from gpu_agent.cli.nodes.objection_sheet import objection_lines, taken
from gpu_agent.cli.options import print_json
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.teaching import teach
from gpu_agent.cli.terminal import columns, show

_ENDLESS = 1_000_000
_WHY: Shape = {
    "node_id": str | None,
    "refuses_every_job": bool,
    "objections": ListOf(OBJECTION),
    "only_the_registry_knows": list,
    "ask": str,
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
        parser,
        "Say which jobs this machine would be refused now and why, as far as its agent knows: the "
        "connection, the registry's last word, the owner's limits, GPUs and models, each with what "
        "would end it. What only the registry knows is named; `registry why` asks it.",
        example="gpu-agent why",
        exits={ExitCode.OK: "said, whatever it is"},
    )
    add_local(parser, json_is="the gpu-agent.why/1 document")


def main(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    answer = asked(arguments, "why", shape=_WHY)
    if arguments.json:
        print_json(answer)
    else:
        show(_page(answer, columns()))
    return ExitCode.OK


def _page(answer: Mapping[str, Any], columns: int | None) -> Iterator[Line]:
    yield taken(answer["node_id"] or "This machine", answer)
    if answer["objections"]:
        yield BLANK
        yield from objection_lines("NOW REFUSED", answer["objections"], columns)
    yield BLANK
    known = "; ".join(map(str, answer["only_the_registry_knows"]))
    words = line(Piece(f"Only the registry knows {known}. Ask it: {answer['ask']}", "dim"))
    yield from wrapped(words, _ENDLESS if columns is None else columns)
