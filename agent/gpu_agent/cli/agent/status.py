"""`gpu-agent status` and `gpu-agent refresh`: the state of this machine's agent, by its own report."""

import time

from gpu_agent.cli.client.answers import Answer
from gpu_agent.cli.client.local import ACTION_PATIENCE_SECONDS, agent_options, request_agent
from gpu_agent.cli.command import Arguments, ExitCode
from gpu_agent.cli.declaration import Commands, Declaration, option
from gpu_agent.cli.output.text import glyphs, print_json, print_lines, terminal_columns


def declare_status() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Show the state of the agent on this machine: the node's status at the registry and why, the "
        "connection, the last heartbeat and the next attempt, drains, jobs in flight, the owner's limits "
        "for public jobs, GPUs, models, and what is wrong with them. It asks the agent alone, and so works "
        "while the registry is away.",
        example="gpu-agent status",
        exits={ExitCode.OK: "shown, whatever the state"},
        params=[
            option(
                "--watch",
                help="read it again every second until Ctrl-C: live on a terminal, elsewhere a line for each "
                "change, or with --json the document whenever something changed",
                flag=True,
            ),
            *agent_options(json_is="the gpu-agent.status/1 document"),
        ],
    )


def run_status(arguments: Arguments) -> int:
    """Read the status and print it, or watch it."""
    from gpu_agent.wire.control import StatusDocument

    def read() -> Answer[StatusDocument]:
        return request_agent(arguments, "status", StatusDocument)

    if arguments.watch:
        from gpu_agent.cli.agent.status_watch import watch_status

        return watch_status(read, as_json=arguments.json)
    answer = read()
    if arguments.json:
        print_json(answer.document)
    else:
        from gpu_agent.cli.agent.status_page import status_page

        print_lines(status_page(answer.model, terminal_columns(), glyphs(), now=time.time()))
    return ExitCode.OK


def declare_refresh() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Have the agent probe its machine now, and send the registry all of it: after a repair, a "
        "new model "
        "or a new driver that should not wait for the next probe. Ends when the probe has ended.",
        example="gpu-agent refresh",
        exits={ExitCode.OK: "probed, whatever was found"},
        params=[*agent_options(json_is="the gpu-agent.status/1 document, as it stands then")],
    )


def run_refresh(arguments: Arguments) -> int:
    """Request it and print what was found."""
    from gpu_agent.wire.control import StatusDocument

    answer = request_agent(arguments, "refresh", StatusDocument, patience_seconds=ACTION_PATIENCE_SECONDS)
    if arguments.json:
        print_json(answer.document)
    else:
        from gpu_agent.cli.agent.status_page import refreshed_in_words

        print(refreshed_in_words(answer.model))
    return ExitCode.OK


COMMANDS: Commands = {
    "status": (declare_status, run_status),
    "refresh": (declare_refresh, run_refresh),
}
