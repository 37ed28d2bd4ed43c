"""One reading of the whole machine, for commands that read once.

Where nothing is configured the settings and their library stay unloaded.
"""

import argparse
import contextlib
import os
import platform
import sys
import threading
import time
from dataclasses import replace

from gpu_agent.cli.agent.probe_request import ProbeRequest, is_configured
from gpu_agent.cli.command import ExitCode, Failure
from gpu_agent.probe.collectors.runner import collect_reports, merge_reports, start_collectors
from gpu_agent.probe.host.host import HostProbe, read_by_system_calls
from gpu_agent.probe.nvml.process import DEADLINE_SECONDS, StartedChild, dismiss, start_child
from gpu_agent.probe.nvml.report import read_once
from gpu_agent.probe.snapshot import Sources, open_sources, take
from gpu_agent.runtime.files import user_home
from gpu_agent.wire.inventory import GpuReport, Host, Inventory, Outcome

MODELS_UNKNOWN = "models"
"""Under this name the host's `unknowns` say why no models are listed."""
_UNREAD = GpuReport(outcome=Outcome.OK)
HOST_SECONDS = 0.5
"""For the host alone, after host and models together took all of their time."""
_SHARE_OF_THE_SCAN = 0.8
"""Of the time for host and models: a disk that has not answered by then is told of, and the others count."""


def probe_request(arguments: argparse.Namespace) -> ProbeRequest:
    """What to look at; raises `Failure` when the configuration is wrong."""
    if is_configured(arguments, os.environ):
        from gpu_agent.cli.agent.settings import configured_request as asked

        return asked(arguments)
    return ProbeRequest(simulate=arguments.simulate)


def read_inventory(asked: ProbeRequest, child: StartedChild | None) -> Inventory:
    """Read everything, within the deadline; `child` was started before, if it was."""
    sources = open_sources(asked.options, environ=os.environ, home=user_home())
    if asked.simulate is not None:
        if child is not None:
            dismiss(child)
        return _simulated(asked.simulate, asked.apart, sources)
    child = child or start_child()
    with contextlib.redirect_stdout(sys.stderr):  # a collector that prints must not spoil a document
        others = start_collectors(
            asked.options.collectors, asked.options.surroundings, deadline_seconds=DEADLINE_SECONDS
        )
        around = read_host_and_models(sources)  # meanwhile the child works
        gpus = merge_reports(read_once(child, DEADLINE_SECONDS), collect_reports(others))
    return replace(around, gpu=gpus, took_ms=round(gpus.took_ms + around.took_ms, 1))


def read_host_and_models(sources: Sources, *, within_seconds: float = DEADLINE_SECONDS) -> Inventory:
    """Read host and models in a thread, which a dead disk may keep: then the host alone, and why."""
    found: list[Inventory] = []
    patience = within_seconds * _SHARE_OF_THE_SCAN

    def look() -> None:
        found.append(take(_UNREAD, sources, answers_within_seconds=patience))

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    looking.join(within_seconds)
    alive = looking.is_alive()  # looked at first: what ends in between has found something
    if found:
        return found[0]
    if not alive:
        raise RuntimeError("the look at the host and the models ended without an answer")  # told on stderr
    host = _host_alone()
    why = f"the disks did not answer within {within_seconds:g} s; see `df` and `dmesg`"
    return Inventory(
        host=replace(host, unknowns={**host.unknowns, MODELS_UNKNOWN: why, "cache_disks": why}),
        gpu=_UNREAD,
        models_complete=False,
        took_ms=within_seconds * 1000,
    )


def _host_alone() -> Host:
    """Read the host, where that does not hang as well: the answer is due by now."""
    found: list[Host] = []
    reading = threading.Thread(target=lambda: found.append(HostProbe().read()), daemon=True)
    reading.start()
    reading.join(HOST_SECONDS)
    return (
        found[0] if found else read_by_system_calls(f"the machine did not answer within {HOST_SECONDS:g} s")
    )


def _simulated(spec: str, apart: str, sources: Sources) -> Inventory:
    """Read a machine that does not exist; what simulates it is loaded for that alone."""
    from gpu_agent.probe.simulation.gpu_models import SimulationError
    from gpu_agent.probe.simulation.gpus import read_simulated_once as read_simulated
    from gpu_agent.probe.simulation.models import with_simulated_models as with_models_of

    try:
        gpus = read_simulated(spec, seed=f"{platform.node()}{apart}", now=time.time())
        around = read_host_and_models(with_models_of(spec, sources))
    except SimulationError as error:
        raise Failure(f"--simulate: {error}", code=ExitCode.CONFIGURATION) from None
    return replace(around, gpu=gpus, simulated=True)
