"""`gpu-agent drain` and `gpu-agent resume`: take this machine out of service, and put it back.

They follow the agent alone: a registry that is away ends no waiting, the drain's deadline does.
"""

from gpu_agent.cli.client.local import ACTION_PATIENCE_SECONDS, agent_options, request_agent
from gpu_agent.cli.command import Arguments, ExitCode
from gpu_agent.cli.declaration import Commands, Declaration, option
from gpu_agent.cli.output.streams import print_stderr
from gpu_agent.cli.output.text import print_json
from gpu_agent.cli.output.units import parse_duration


def declare_drain() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="Drain this machine: it gets no new jobs, finishes those in flight, then goes offline. The "
        "drain is "
        "the owner's; the agent sends it to the registry as soon as it is connected. After the deadline the "
        "machine goes offline whatever runs. It stays so until `gpu-agent resume` or the agent's next start.",
        example="gpu-agent drain --deadline 10m --reason 'new fans' --wait",
        exits={
            ExitCode.OK: "the drain has begun; with --wait: the machine is drained",
            ExitCode.FAILED: "with --wait: the machine was resumed meanwhile",
            ExitCode.INTERRUPTED: "with --wait: interrupted; the drain goes on",
        },
        params=[
            option(
                "--deadline",
                type=parse_duration,
                metavar="TIME",
                help="how long jobs may take, such as 10m (default: the registry's)",
            ),
            option("--reason", metavar="TEXT", help="why, for people who look at the node"),
            option("--wait", help="end when the machine is drained", flag=True),
            *agent_options(
                json_is="the gpu-agent.status/1 document, as it stands then; with --wait when it is over"
            ),
        ],
    )


def run_drain(arguments: Arguments) -> int:
    """Request the drain, wait for its end if requested, and print how it stands."""
    from gpu_agent.cli.agent.drain_progress import drain_in_words, wait_until_drained
    from gpu_agent.wire.control import StatusDocument

    now = request_agent(
        arguments,
        "drain",
        StatusDocument,
        patience_seconds=ACTION_PATIENCE_SECONDS,
        deadline_seconds=arguments.deadline,
        reason=arguments.reason,
    )
    if arguments.wait:
        try:
            now = wait_until_drained(
                lambda: request_agent(arguments, "status", StatusDocument), now, quiet=arguments.json
            )
        except KeyboardInterrupt:
            print_stderr("the drain goes on; `gpu-agent resume` would end it")
            return ExitCode.INTERRUPTED
    if arguments.json:
        print_json(now.document)
    else:
        print(drain_in_words(now.model))
    return ExitCode.OK


def declare_resume() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about="End the drain that `gpu-agent drain` requested, and have the machine register. An agent "
        "that waits "
        "for its next attempt, or yielded to a newer session, connects at once. A drain by an operator of "
        "the registry is ended there only: `registry node resume`.",
        example="gpu-agent resume",
        exits={ExitCode.OK: "the agent registers; `gpu-agent status` shows the result"},
        params=[*agent_options(json_is="the gpu-agent.status/1 document, as it stands then")],
    )


def run_resume(arguments: Arguments) -> int:
    """Request it and print."""
    from gpu_agent.cli.agent.drain_progress import node_name
    from gpu_agent.wire.control import StatusDocument

    now = request_agent(arguments, "resume", StatusDocument, patience_seconds=ACTION_PATIENCE_SECONDS)
    if arguments.json:
        print_json(now.document)
    else:
        when = "" if now.model.connected else " once the registry answers"
        print(f"{node_name(now.model)} registers{when}; `gpu-agent status` shows the result")
    return ExitCode.OK


COMMANDS: Commands = {
    "drain": (declare_drain, run_drain),
    "resume": (declare_resume, run_resume),
}
