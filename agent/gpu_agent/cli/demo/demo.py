"""`gpu-agent demo`: a registry and three agents as real processes on this machine."""

import argparse
import time

from rich.console import Console

from gpu_agent.cli.answers import NODES
from gpu_agent.cli.demo.fleet import Fleet, running_fleet
from gpu_agent.cli.demo.walk import Walk
from gpu_agent.cli.interruption import Interruption
from gpu_agent.cli.live import LiveLines
from gpu_agent.cli.nodes.sheet import node_lines
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.teaching import teach

REFRESH_SECONDS = 0.5
"""How often the list is drawn anew: ages in it grow though nothing happens."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
        parser,
        "Start a registry and three agents on loopback ports of their own and show them, until Ctrl-C. "
        "Uses the machine's GPUs if it has some, else simulated ones, and says which. "
        "Nothing is left behind: no process, no file.",
        example="gpu-agent demo --once",
        exits={
            ExitCode.OK: "all went well; without --once: ended by Ctrl-C",
            ExitCode.FAILED: "a step went wrong; the last line says which",
            ExitCode.INTERRUPTED: "--once was interrupted",
        },
        asks=False,
    )
    parser.add_argument(
        "--once",
        action="store_true",
        help="walk once through ready, claim, explain, drain and offline, then exit: 0 when all went well",
    )


def main(arguments: argparse.Namespace) -> int:
    """Run the demo until it is done or interrupted."""
    started = time.monotonic()
    console = Console()
    try:
        with Interruption() as interruption, running_fleet(interruption) as fleet, fleet.blaming_the_dead():
            console.print(_whose_gpus(fleet))
            if arguments.once:
                Walk(fleet, lambda line: print(line, flush=True), started=started).all_steps()
            else:
                _watch(fleet, console)
    except KeyboardInterrupt:
        console.print("Ended: all processes are gone.")
        return ExitCode.INTERRUPTED if arguments.once else ExitCode.OK
    return ExitCode.OK


def _watch(fleet: Fleet, console: Console) -> None:
    console.print(
        f"Operators' API: {fleet.api.url}. Try, in another terminal:\n"
        f"gpu-agent registry nodes --api {fleet.api.url} --token-file {fleet.token_file}",
        soft_wrap=True,
    )
    with LiveLines(console) as live:
        while True:
            fleet.check_alive()
            live.draw(node_lines(fleet.api.get("/v1/nodes", NODES), console.width, now=time.time()))
            time.sleep(REFRESH_SECONDS)


def _whose_gpus(fleet: Fleet) -> str:
    if fleet.simulated:
        return "This machine has no usable GPU: the three agents simulate theirs."
    return "The three agents share this machine's own GPUs."
