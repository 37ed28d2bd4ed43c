"""`gpu-agent explain`: which jobs this machine would be refused now, and why, by its agent's report."""

from gpu_agent.cli.client.local import agent_options, request_agent
from gpu_agent.cli.command import Arguments, ExitCode
from gpu_agent.cli.declaration import Commands, Declaration
from gpu_agent.cli.output.text import print_json, print_lines, terminal_columns


def declare() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Say which jobs this machine would be refused now and why, as far as its agent knows: the "
        "connection, the status that the registry sent last, the owner's limits, GPUs and models, each "
        "with what would end it. What only the registry knows is named; `registry explain node` asks it.",
        example="gpu-agent explain",
        exits={ExitCode.OK: "explained, whatever the reasons"},
        params=[*agent_options(json_is="the gpu-agent.explain/1 document")],
    )


def main(arguments: Arguments) -> int:
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
    "explain": (declare, main),
}
