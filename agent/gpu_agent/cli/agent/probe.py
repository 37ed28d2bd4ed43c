"""`gpu-agent probe`: what this machine has, once, without daemon, network or file.

The NVML child is started before anything else is loaded: it takes longest, and the rest of the program loads
while it works.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

from gpu_agent.cli.command import Arguments, ExitCode, Failure
from gpu_agent.probe.nvml.forked_child import ForkedChild

SIMULATE_VARIABLE = "GPU_AGENT_SIMULATE"


def main(arguments: Arguments) -> int:
    """Start the child, load the rest, print the report."""
    if arguments.watch and arguments.register_preview:
        raise Failure("--watch and --register-preview do not go together", ExitCode.CONFIGURATION)
    if arguments.watch:
        from gpu_agent.cli.agent.probe_watch import watch_probe

        return watch_probe(arguments)
    pretends = arguments.simulate is not None or SIMULATE_VARIABLE in os.environ
    forked: ForkedChild | None = None if pretends else arguments.child
    started = None
    if forked is None and not pretends:
        from gpu_agent.probe.nvml.process import start_child

        started = start_child()
    with _without_gc():
        from gpu_agent.cli.agent.probe_report import report

        return report(arguments, forked or started)


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
