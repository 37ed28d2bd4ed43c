"""`gpu-agent refresh`: have the agent look at this machine again, now."""

import argparse
from collections.abc import Mapping
from typing import Any

from gpu_agent.cli.local.agent import ORDER_PATIENCE_SECONDS, STATUS, add_local, asked
from gpu_agent.cli.local.own_drain import who
from gpu_agent.cli.nodes.sheet import gpus_in_words, models_in_words
from gpu_agent.cli.options import print_json
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.printable import printable
from gpu_agent.cli.teaching import teach


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
        parser,
        "Have the agent probe its machine again, now, and tell the registry all of it: after a repair, a "
        "new model or a new driver that is not to wait for the next look. Ends when it has looked.",
        example="gpu-agent refresh",
        exits={ExitCode.OK: "it has looked, whatever it found"},
    )
    add_local(parser, json_is="the gpu-agent.status/1 document, as it stands then")


def main(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    now = asked(arguments, "refresh", shape=STATUS, patience_seconds=ORDER_PATIENCE_SECONDS)
    if arguments.json:
        print_json(now)
    else:
        print(f"{who(now)} has been probed anew: {_found(now['machine'])}; {_told(now)}.")
    return ExitCode.OK


def _found(machine: Mapping[str, Any] | None) -> str:
    if machine is None:
        return "nothing was found"
    if machine["outcome"] != "ok":
        return printable(machine["detail"] or machine["outcome"]).rstrip(".")
    gpus, models = gpus_in_words(machine["gpus"]), models_in_words(machine["models"])
    return printable(f"GPUs {gpus}; models ready {models}")


def _told(now: Mapping[str, Any]) -> str:
    if now["connected"]:
        return "the registry is told with the next beat"
    return "the registry is not connected, and is told when it is"
