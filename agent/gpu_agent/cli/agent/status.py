"""`gpu-agent status` and `gpu-agent refresh`: how this machine's agent stands, by its own report."""

import argparse
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from gpu_agent.cli.agent.drain import node_name
from gpu_agent.cli.agent.status_page import status_page
from gpu_agent.cli.client.local import ORDER_PATIENCE_SECONDS, STATUS_SHAPE, add_agent_options, request_agent
from gpu_agent.cli.command import Commands, ExitCode, describe
from gpu_agent.cli.options import print_json
from gpu_agent.cli.output.nodes import gpus_in_words, models_in_words
from gpu_agent.cli.output.text import glyphs, print_lines, printable, terminal_columns


def configure_status(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    describe(
        parser,
        "Show how the agent on this machine stands: what the registry says of the node and why, the "
        "connection, the last beat and the next attempt, drains, jobs in flight, the owner's limits for "
        "public jobs, GPUs, models, and what is wrong with them. It asks the agent alone, and so works "
        "while the registry is away.",
        example="gpu-agent status",
        exits={ExitCode.OK: "shown, however it stands"},
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="look again every second until Ctrl-C: live on a terminal, elsewhere a line for each change, or "
        "with --json the document whenever something changed",
    )
    add_agent_options(parser, json_is="the gpu-agent.status/1 document")


def run_status(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    look = partial(request_agent, arguments, "status", shape=STATUS_SHAPE)
    if arguments.watch:
        from gpu_agent.cli.agent.status_watch import watch_status as watch

        return watch(look, as_json=arguments.json)
    answer = look()
    if arguments.json:
        print_json(answer)
    else:
        print_lines(status_page(answer, terminal_columns(), glyphs(), now=time.time()))
    return ExitCode.OK


def configure_refresh(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    describe(
        parser,
        "Have the agent probe its machine again, now, and tell the registry all of it: after a repair, a "
        "new model or a new driver that is not to wait for the next look. Ends when it has looked.",
        example="gpu-agent refresh",
        exits={ExitCode.OK: "it has looked, whatever it found"},
    )
    add_agent_options(parser, json_is="the gpu-agent.status/1 document, as it stands then")


def run_refresh(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    now = request_agent(arguments, "refresh", shape=STATUS_SHAPE, patience_seconds=ORDER_PATIENCE_SECONDS)
    if arguments.json:
        print_json(now)
    else:
        print(f"{node_name(now)} has been probed anew: {_findings(now['machine'])}; {_when_sent(now)}.")
    return ExitCode.OK


def _findings(machine: Mapping[str, Any] | None) -> str:
    if machine is None:
        return "nothing was found"
    if machine["outcome"] != "ok":
        return printable(machine["detail"] or machine["outcome"]).rstrip(".")
    gpus, models = gpus_in_words(machine["gpus"]), models_in_words(machine["models"])
    return printable(f"GPUs {gpus}; models ready {models}")


def _when_sent(now: Mapping[str, Any]) -> str:
    if now["connected"]:
        return "the registry is told with the next beat"
    return "the registry is not connected, and is told when it is"


COMMANDS: Commands = {
    "status": (configure_status, run_status),
    "refresh": (configure_refresh, run_refresh),
}
