"""`gpu-agent status`: how the agent on this machine stands, by its own word."""

import argparse
import time
from functools import partial

from gpu_agent.cli.bars import letters
from gpu_agent.cli.local.agent import STATUS, add_local, asked
from gpu_agent.cli.local.status_page import status_page
from gpu_agent.cli.options import print_json
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.teaching import teach
from gpu_agent.cli.terminal import columns, show


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
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
    add_local(parser, json_is="the gpu-agent.status/1 document")


def main(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    look = partial(asked, arguments, "status", shape=STATUS)
    if arguments.watch:
        from gpu_agent.cli.local.status_watch import main as watch

        return watch(look, as_json=arguments.json)
    answer = look()
    if arguments.json:
        print_json(answer)
    else:
        show(status_page(answer, columns(), letters(), now=time.time()))
    return ExitCode.OK
