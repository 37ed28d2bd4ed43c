"""`gpu-agent probe`: what this machine has, once, without daemon, network or file.

The NVML child is started before anything else is loaded: it takes longest, and the rest of the program loads
while it works.
"""

import argparse
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

from gpu_agent.cli.command import Commands, ExitCode, describe
from gpu_agent.probe.nvml.forked_child import ForkedChild
from gpu_agent.probe.nvml.process import start_child

DESCRIPTION = """\
Show what this machine has: GPUs with their health, host, models, and whether it could register.
A dry run: it starts no daemon, sends nothing, writes no file, and answers within its deadline
even when the driver hangs."""

EXITS = {
    ExitCode.OK: "could register",
    ExitCode.NO_GPU: "no GPU or no driver",
    ExitCode.DRIVER_BROKEN: "the driver is broken, or no GPU is usable; the output says what to do",
}

SIMULATE_VARIABLE = "GPU_AGENT_SIMULATE"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    describe(parser, DESCRIPTION, example="gpu-agent probe --json", exits=EXITS, asks=False)
    parser.add_argument("--json", action="store_true", help="print the gpu-agent.probe/1 document")
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument(
        "--register-preview",
        action="store_true",
        help="print the exact node_register that would be sent, validated",
    )
    forms.add_argument(
        "--watch",
        action="store_true",
        help="look again every two seconds until Ctrl-C: live on a terminal, elsewhere a line for each "
        "change, or with --json a document for each look",
    )
    parser.add_argument(
        "--simulate",
        metavar="SPEC",
        help="a machine that does not exist, such as 8xH100-80GB or 4xL4:lost@60s (docs/howto/simulation.md)",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="the agent's configuration (default /etc/gpu-agent/agent.toml)"
    )
    parser.add_argument(
        "--state-dir",
        metavar="DIR",
        help="where the agent keeps its identity (default: the platform's folder); only read",
    )


def main(arguments: argparse.Namespace) -> int:
    """Start the child, load the rest, print the report."""
    if arguments.watch:
        from gpu_agent.cli.agent.probe_watch import watch_probe

        return watch_probe(arguments)
    pretends = arguments.simulate is not None or SIMULATE_VARIABLE in os.environ
    forked: ForkedChild | None = arguments.child
    child = None if pretends else forked or start_child()
    with _without_gc():
        from gpu_agent.cli.agent.probe_report import report

        return report(arguments, child)


@contextmanager
def _without_gc() -> Iterator[None]:
    """Collect no garbage meanwhile: loading makes next to none, and a collection walks all that is loaded."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


COMMANDS: Commands = {
    "probe": (configure, main),
}
