"""`gpu-agent why`: which jobs this machine would be refused now, and why, by its agent's report."""

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from gpu_agent.cli.client.http import OBJECTION, ListOf, Shape
from gpu_agent.cli.client.local import add_agent_options, request_agent
from gpu_agent.cli.command import Commands, ExitCode, describe
from gpu_agent.cli.options import print_json
from gpu_agent.cli.output.exclusions import acceptance_line, exclusion_table
from gpu_agent.cli.output.text import BLANK, Line, Piece, line, print_lines, terminal_columns, wrap

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
    describe(
        parser,
        "Say which jobs this machine would be refused now and why, as far as its agent knows: the "
        "connection, the registry's last word, the owner's limits, GPUs and models, each with what "
        "would end it. What only the registry knows is named; `registry why` asks it.",
        example="gpu-agent why",
        exits={ExitCode.OK: "said, whatever it is"},
    )
    add_agent_options(parser, json_is="the gpu-agent.why/1 document")


def main(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    answer = request_agent(arguments, "why", shape=_WHY)
    if arguments.json:
        print_json(answer)
    else:
        print_lines(_page(answer, terminal_columns()))
    return ExitCode.OK


def _page(answer: Mapping[str, Any], columns: int | None) -> Iterator[Line]:
    yield acceptance_line(answer["node_id"] or "This machine", answer)
    if answer["objections"]:
        yield BLANK
        yield from exclusion_table("NOW REFUSED", answer["objections"], columns)
    yield BLANK
    known = "; ".join(map(str, answer["only_the_registry_knows"]))
    words = line(Piece(f"Only the registry knows {known}. Ask it: {answer['ask']}", "dim"))
    yield from wrap(words, _ENDLESS if columns is None else columns)


COMMANDS: Commands = {
    "why": (configure, main),
}
