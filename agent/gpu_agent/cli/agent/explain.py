"""`gpu-agent why`: which jobs this machine would be refused now, and why, by its agent's report."""

import argparse
from collections.abc import Iterator

from gpu_agent.cli.client.local import add_agent_options, request_agent
from gpu_agent.cli.command import Commands, ExitCode, describe
from gpu_agent.cli.output.exclusions import acceptance_line, reasons_table
from gpu_agent.cli.output.text import (
    BLANK,
    Line,
    Piece,
    line,
    print_json,
    print_lines,
    terminal_columns,
    wrap,
)
from gpu_agent.wire.control import WhyDocument


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    describe(
        parser,
        "Say which jobs this machine would be refused now and why, as far as its agent knows: the "
        "connection, the status that the registry sent last, the owner's limits, GPUs and models, each "
        "with what would end it. What only the registry knows is named; `registry why` asks it.",
        example="gpu-agent why",
        exits={ExitCode.OK: "explained, whatever the reasons"},
    )
    add_agent_options(parser, json_is="the gpu-agent.why/1 document")


def main(arguments: argparse.Namespace) -> int:
    """Read the explanation and print it."""
    answer = request_agent(arguments, "why", WhyDocument)
    if arguments.json:
        print_json(answer.document)
    else:
        print_lines(_page(answer.model, terminal_columns()))
    return ExitCode.OK


def _page(answer: WhyDocument, columns: int | None) -> Iterator[Line]:
    yield acceptance_line(answer.node_id or "This machine", answer)
    if answer.exclusions:
        yield BLANK
        yield from reasons_table("NOW REFUSED", answer.exclusions, columns)
    yield BLANK
    unknown = "; ".join(answer.only_the_registry_knows)
    yield from wrap(line(Piece(f"Only the registry knows {unknown}. Ask it: {answer.ask}", "dim")), columns)


COMMANDS: Commands = {
    "why": (configure, main),
}
