"""`gpu-agent drain` and `gpu-agent resume`: take this machine out of service, and put it back.

They follow the agent alone: a registry that is away ends no waiting, the drain's deadline does.
"""

import argparse
import time
from collections.abc import Callable

from gpu_agent.cli.client.answers import Answer
from gpu_agent.cli.client.local import ACTION_PATIENCE_SECONDS, add_agent_options, request_agent
from gpu_agent.cli.command import Commands, ExitCode, Failure, describe
from gpu_agent.cli.output.streams import StatusLine, print_stderr
from gpu_agent.cli.output.text import print_json, printable
from gpu_agent.cli.output.units import duration_in_words, parse_duration
from gpu_agent.wire.control import DrainInfo, StatusDocument

POLL_SECONDS = 1.0
"""How often `--wait` asks the agent: the time that is left counts down by the second."""


def configure_drain(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    describe(
        parser,
        "Drain this machine: it gets no new jobs, finishes those in flight, then goes offline. The drain is "
        "the owner's; the agent sends it to the registry as soon as it is connected. After the deadline the "
        "machine goes offline whatever runs. It stays so until `gpu-agent resume` or the agent's next start.",
        example="gpu-agent drain --deadline 10m --reason 'new fans' --wait",
        exits={
            ExitCode.OK: "the drain has begun; with --wait: the machine is drained",
            ExitCode.FAILED: "with --wait: the machine was resumed meanwhile",
            ExitCode.INTERRUPTED: "with --wait: interrupted; the drain goes on",
        },
    )
    parser.add_argument(
        "--deadline",
        type=parse_duration,
        metavar="TIME",
        help="how long jobs may take, such as 10m (default: the registry's)",
    )
    parser.add_argument("--reason", metavar="TEXT", help="why, for people who look at the node")
    parser.add_argument("--wait", action="store_true", help="end when the machine is drained")
    add_agent_options(
        parser, json_is="the gpu-agent.status/1 document, as it stands then; with --wait when it is over"
    )


def run_drain(arguments: argparse.Namespace) -> int:
    """Request the drain, wait for its end if requested, and print how it stands."""
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


def configure_resume(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    describe(
        parser,
        "End the drain that `gpu-agent drain` requested, and have the machine register. An agent that waits "
        "for its next attempt, or yielded to a newer session, connects at once. A drain by an operator of "
        "the registry is ended there only: `registry resume`.",
        example="gpu-agent resume",
        exits={ExitCode.OK: "the agent registers; `gpu-agent status` shows the result"},
    )
    add_agent_options(parser, json_is="the gpu-agent.status/1 document, as it stands then")


def run_resume(arguments: argparse.Namespace) -> int:
    """Request it and print."""
    now = request_agent(arguments, "resume", StatusDocument, patience_seconds=ACTION_PATIENCE_SECONDS)
    if arguments.json:
        print_json(now.document)
    else:
        print(f"{node_name(now.model)} registers; `gpu-agent status` shows the result")
    return ExitCode.OK


def wait_until_drained(
    read: Callable[[], Answer[StatusDocument]], now: Answer[StatusDocument], *, quiet: bool
) -> Answer[StatusDocument]:
    """Read until the machine is drained; raises `Failure` when it is resumed, and as `read` does."""
    with StatusLine(quiet=quiet) as shown:
        while (drain := now.model.drain) is None or not drain.over:
            if drain is None:
                raise Failure("the drain was ended meanwhile; `gpu-agent status` says how the machine stands")
            left = (
                ""
                if drain.deadline_in_seconds is None
                else f", {duration_in_words(drain.deadline_in_seconds)} left"
            )
            words = f"{node_name(now.model)} drains, {_jobs(now.model)}"
            shown.show(words, left=left, more=_connection(now.model))
            time.sleep(POLL_SECONDS)
            now = read()
    return now


def drain_in_words(now: StatusDocument) -> str:
    """Say how it stands with the drain."""
    drain = now.drain
    if drain is None:
        return f"{node_name(now)} is not drained"
    reason = printable(drain.reason)
    if drain.over:
        return f"{node_name(now)} is drained: {reason}; `gpu-agent resume` puts it back into service"
    return f"{node_name(now)} drains: {reason}; {_jobs(now)}{_latest(drain)}{_connection(now)}"


def node_name(now: StatusDocument) -> str:
    """Return the node's id, or words for a machine that has none yet."""
    return printable(now.node_id or "This machine")


def _jobs(now: StatusDocument) -> str:
    if not now.jobs.announced:
        return "no job is announced"
    count = len(now.jobs.in_flight)
    return f"{count} {'job' if count == 1 else 'jobs'} in flight"


def _latest(drain: DrainInfo) -> str:
    seconds = drain.deadline_in_seconds
    return "" if seconds is None else f"; over in {duration_in_words(seconds)} at the latest"


def _connection(now: StatusDocument) -> str:
    return "" if now.connected else "; the registry is not connected, and receives it when it is"


COMMANDS: Commands = {
    "drain": (configure_drain, run_drain),
    "resume": (configure_resume, run_resume),
}
