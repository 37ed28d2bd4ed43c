"""`gpu-agent drain`: let this machine finish its jobs, then take it offline."""

import argparse

from gpu_agent.cli.durations import seconds
from gpu_agent.cli.local.agent import ORDER_PATIENCE_SECONDS, STATUS, add_local, asked
from gpu_agent.cli.local.own_drain import drain_in_words, until_drained
from gpu_agent.cli.options import print_json
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.streams import complain
from gpu_agent.cli.teaching import teach


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
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
        type=seconds,
        metavar="TIME",
        help="how long jobs may take, such as 10m (default: the registry's)",
    )
    parser.add_argument("--reason", metavar="TEXT", help="why, for whoever looks at the node")
    parser.add_argument("--wait", action="store_true", help="end when the machine is drained")
    add_local(
        parser, json_is="the gpu-agent.status/1 document, as it stands then; with --wait when it is over"
    )


def main(arguments: argparse.Namespace) -> int:
    """Ask, wait if so told, and print."""
    now = asked(
        arguments,
        "drain",
        shape=STATUS,
        patience_seconds=ORDER_PATIENCE_SECONDS,
        deadline_seconds=arguments.deadline,
        reason=arguments.reason,
    )
    if arguments.wait:
        try:
            now = until_drained(lambda: asked(arguments, "status", shape=STATUS), now, quiet=arguments.json)
        except KeyboardInterrupt:
            complain("the drain goes on; `gpu-agent resume` would lift it")
            return ExitCode.INTERRUPTED
    if arguments.json:
        print_json(now)
    else:
        print(drain_in_words(now))
    return ExitCode.OK
