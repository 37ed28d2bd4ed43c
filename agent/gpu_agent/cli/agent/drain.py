"""`gpu-agent drain` and `gpu-agent resume`: take this machine out of service, and put it back.

They follow the agent alone: a registry that is away ends no waiting, the drain's deadline does.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

from gpu_agent.cli.client.local import ORDER_PATIENCE_SECONDS, STATUS_SHAPE, add_agent_options, request_agent
from gpu_agent.cli.command import Commands, ExitCode, Failure, describe
from gpu_agent.cli.options import print_json
from gpu_agent.cli.output.streams import StatusLine, print_stderr
from gpu_agent.cli.output.text import printable
from gpu_agent.cli.output.units import duration_in_words, parse_duration


def configure_drain(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    describe(
        parser,
        "Have this machine get no more jobs, let those in flight end, then take it offline: the owner's "
        "word, given to the agent, which tells the registry as soon as it hears. After the deadline the "
        "machine goes offline whatever runs. It stays so until `gpu-agent resume` or the agent's next start.",
        example="gpu-agent drain --deadline 10m --reason 'new fans' --wait",
        exits={
            ExitCode.OK: "the drain is under way; with --wait: the machine is drained",
            ExitCode.FAILED: "with --wait: somebody lifted the drain meanwhile",
            ExitCode.INTERRUPTED: "with --wait: interrupted; the drain goes on",
        },
    )
    parser.add_argument(
        "--deadline",
        type=parse_duration,
        metavar="TIME",
        help="how long jobs may take, such as 10m (default: the registry's)",
    )
    parser.add_argument("--reason", metavar="TEXT", help="why, for whoever looks at the node")
    parser.add_argument("--wait", action="store_true", help="end when the machine is drained")
    add_agent_options(
        parser, json_is="the gpu-agent.status/1 document, as it stands then; with --wait when it is over"
    )


def run_drain(arguments: argparse.Namespace) -> int:
    """Ask, wait if so told, and print."""
    now = request_agent(
        arguments,
        "drain",
        shape=STATUS_SHAPE,
        patience_seconds=ORDER_PATIENCE_SECONDS,
        deadline_seconds=arguments.deadline,
        reason=arguments.reason,
    )
    if arguments.wait:
        try:
            now = wait_until_drained(
                lambda: request_agent(arguments, "status", shape=STATUS_SHAPE), now, quiet=arguments.json
            )
        except KeyboardInterrupt:
            print_stderr("the drain goes on; `gpu-agent resume` would lift it")
            return ExitCode.INTERRUPTED
    if arguments.json:
        print_json(now)
    else:
        print(drain_in_words(now))
    return ExitCode.OK


def configure_resume(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    describe(
        parser,
        "Lift the drain that `gpu-agent drain` asked for, and have the machine register. An agent that "
        "waits to try again, or gave way to a newer session, tries at once. A drain that an operator of "
        "the registry asked for is his alone to lift: `registry resume`.",
        example="gpu-agent resume",
        exits={ExitCode.OK: "the agent registers; `gpu-agent status` shows what comes of it"},
    )
    add_agent_options(parser, json_is="the gpu-agent.status/1 document, as it stands then")


def run_resume(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    now = request_agent(arguments, "resume", shape=STATUS_SHAPE, patience_seconds=ORDER_PATIENCE_SECONDS)
    if arguments.json:
        print_json(now)
    else:
        print(f"{node_name(now)} registers; `gpu-agent status` shows what comes of it")
    return ExitCode.OK


LOOK_SECONDS = 1.0
"""How often the agent is asked: what is left counts down by the second."""
Answer = Mapping[str, Any]


def wait_until_drained(
    look: Callable[[], dict[str, Any]], now: dict[str, Any], *, quiet: bool
) -> dict[str, Any]:
    """Look until the machine is drained; raises `Failure` when its drain is lifted, and as `look` does."""
    with StatusLine(quiet=quiet) as shown:
        while not (now["drain"] or {}).get("over"):
            if now["drain"] is None:
                raise Failure(
                    "the drain was lifted meanwhile; `gpu-agent status` says how the machine stands"
                )
            shown.show(f"{node_name(now)} drains, {_jobs(now)}", left=_left(now), more=_away(now))
            time.sleep(LOOK_SECONDS)
            now = look()
    return now


def drain_in_words(now: Answer) -> str:
    """Say how it stands with the drain."""
    drain = now["drain"]
    if drain is None:
        return f"{node_name(now)} is not drained"
    reason = printable(drain["reason"])
    if drain["over"]:
        return f"{node_name(now)} is drained: {reason}; `gpu-agent resume` takes it back"
    return f"{node_name(now)} drains: {reason}; {_jobs(now)}{_latest(now)}{_away(now)}"


def node_name(now: Answer) -> str:
    """Name the node, which may have no id yet."""
    return printable(now["node_id"] or "This machine")


def _jobs(now: Answer) -> str:
    count = len(now["jobs"]["in_flight"])
    if not now["jobs"]["announced"]:
        return "no job is announced"
    return f"{count} {'job' if count == 1 else 'jobs'} in flight"


def _latest(now: Answer) -> str:
    seconds = now["drain"]["deadline_in_seconds"]
    return "" if seconds is None else f"; over in {duration_in_words(seconds)} at the latest"


def _left(now: Answer) -> str:
    seconds = now["drain"]["deadline_in_seconds"]
    return "" if seconds is None else f", {duration_in_words(seconds)} left"


def _away(now: Answer) -> str:
    return "" if now["connected"] else "; the registry is not connected, and hears of it when it is"


COMMANDS: Commands = {
    "drain": (configure_drain, run_drain),
    "resume": (configure_resume, run_resume),
}
