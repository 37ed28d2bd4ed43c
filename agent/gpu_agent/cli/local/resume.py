"""`gpu-agent resume`: take this machine back, and have it register."""

import argparse

from gpu_agent.cli.local.agent import ORDER_PATIENCE_SECONDS, STATUS, add_local, asked
from gpu_agent.cli.local.own_drain import who
from gpu_agent.cli.options import print_json
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.teaching import teach


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
        parser,
        "Lift the drain that `gpu-agent drain` asked for, and have the machine register. An agent that "
        "waits to try again, or gave way to a newer session, tries at once. A drain that an operator of "
        "the registry asked for is his alone to lift: `registry resume`.",
        example="gpu-agent resume",
        exits={ExitCode.OK: "the agent registers; `gpu-agent status` shows what comes of it"},
    )
    add_local(parser, json_is="the gpu-agent.status/1 document, as it stands then")


def main(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    now = asked(arguments, "resume", shape=STATUS, patience_seconds=ORDER_PATIENCE_SECONDS)
    if arguments.json:
        print_json(now)
    else:
        print(f"{who(now)} registers; `gpu-agent status` shows what comes of it")
    return ExitCode.OK
