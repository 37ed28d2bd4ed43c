"""`gpu-agent explain`: which jobs this machine would be refused now, and why, by its agent's report."""

import argparse

from gpu_agent.cli.client.local import add_agent_options, request_agent
from gpu_agent.cli.command import Commands, ExitCode, describe
from gpu_agent.cli.output.text import print_json, print_lines, terminal_columns


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    describe(
        parser,
        "Say which jobs this machine would be refused now and why, as far as its agent knows: the "
        "connection, the status that the registry sent last, the owner's limits, GPUs and models, each "
        "with what would end it. What only the registry knows is named; `registry explain node` asks it.",
        example="gpu-agent explain",
        exits={ExitCode.OK: "explained, whatever the reasons"},
    )
    add_agent_options(parser, json_is="the gpu-agent.explain/1 document")


def main(arguments: argparse.Namespace) -> int:
    """Read the explanation and print it."""
    from gpu_agent.wire.explain_document import ExplainDocument

    answer = request_agent(arguments, "explain", ExplainDocument)
    if arguments.json:
        print_json(answer.document)
    else:
        from gpu_agent.cli.output.exclusions import local_explanation_page

        print_lines(local_explanation_page(answer.model, terminal_columns()))
    return ExitCode.OK


COMMANDS: Commands = {
    "explain": (configure, main),
}
