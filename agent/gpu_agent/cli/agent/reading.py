"""One reading of the whole machine, for commands that read once.

Where nothing is configured the settings and their library stay unloaded.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from gpu_agent.cli.command import Arguments, ExitCode, Failure
from gpu_agent.probe.collectors.runner import collect_reports, merge_reports, start_collectors
from gpu_agent.probe.host.host import HostProbe, read_by_system_calls
from gpu_agent.probe.nvml.no_answer import DEADLINE_SECONDS
from gpu_agent.probe.nvml.report import OneShotChild, read_once
from gpu_agent.probe.snapshot import ProbeOptions, Sources, open_sources, take
from gpu_agent.records import dataclass, field, replace
from gpu_agent.runtime.files import user_home
from gpu_agent.wire.inventory import GpuReport, Host, Inventory, Outcome

SYSTEM_CONFIGURATION = Path("/etc/gpu-agent/agent.toml")
ENVIRONMENT_PREFIX = "GPU_AGENT_"
MODELS_UNKNOWN = "models"
"""Under this name the host's `unknowns` say why no models are listed."""
HOST_SECONDS = 0.5
"""The deadline for the host alone, after host and models together missed theirs."""
_UNREAD = GpuReport(outcome=Outcome.OK)
_SHARE_OF_THE_SCAN = 0.8
"""The share of the time for host and models after which a disk without an answer is reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRequest:
    """What to read: the probe's part of the settings that `gpu-agent run` would have."""

    options: ProbeOptions = field(default_factory=ProbeOptions)
    simulate: str | None = None
    state_dir: Path | None = None

    @property
    def seed(self) -> str:
        """Distinguishes simulated machines, also those of several agents on one host."""
        import platform

        return platform.node() if self.state_dir is None else f"{platform.node()}\n{self.state_dir}"


def probe_request(arguments: Arguments) -> ProbeRequest:
    """Return what to read; raises `Failure` when the configuration is wrong."""
    if not is_configured(arguments, os.environ):
        return ProbeRequest(simulate=arguments.simulate)
    from gpu_agent.cli.agent.settings import load_settings

    settings = load_settings(arguments)
    return ProbeRequest(
        options=settings.probe_options, simulate=settings.simulate, state_dir=settings.state_dir
    )


def is_configured(arguments: Arguments, environ: Mapping[str, str]) -> bool:
    """Say whether there are settings to load: named, in the environment, or in the system's file."""
    if arguments.config is not None or arguments.state_dir is not None:
        return True
    return any(name.upper().startswith(ENVIRONMENT_PREFIX) for name in environ) or (
        SYSTEM_CONFIGURATION.exists()
    )


def read_inventory(request: ProbeRequest, child: OneShotChild | None) -> Inventory:
    """Read everything, within the deadline; `child` was started before, if it was."""
    options = request.options
    sources = open_sources(options, environ=os.environ, home=user_home())
    if request.simulate is not None:
        if child is not None:
            child.dismiss()
        return _simulated(request.simulate, request.seed, sources)
    if child is None:
        from gpu_agent.probe.nvml.process import start_child

        child = start_child()
    with contextlib.redirect_stdout(sys.stderr):  # a collector that prints must not spoil a document
        others = start_collectors(options.collectors, options.surroundings, deadline_seconds=DEADLINE_SECONDS)
        around = read_host_and_models(sources)  # meanwhile the child works
        gpus = merge_reports(read_once(child, DEADLINE_SECONDS), collect_reports(others))
    return replace(around, gpu=gpus, took_ms=round(gpus.took_ms + around.took_ms, 1))


def read_host_and_models(sources: Sources, *, within_seconds: float = DEADLINE_SECONDS) -> Inventory:
    """Read both in a thread, which a dead disk may block: then the host alone, and why."""
    found: list[Inventory] = []
    failed: list[RuntimeError] = []
    patience = within_seconds * _SHARE_OF_THE_SCAN

    def read() -> None:
        try:
            found.append(take(_UNREAD, sources, answers_within_seconds=patience))
        except RuntimeError as error:  # it may start no thread of its own
            failed.append(error)

    reading = threading.Thread(target=read, daemon=True)
    reading.start()
    reading.join(within_seconds)
    alive = reading.is_alive()  # before `found` is read: a thread that ends in between has found something
    if found:
        return found[0]
    if failed:
        raise failed[0]
    if not alive:
        raise RuntimeError("the host and the models could not be read")  # the thread's traceback is on stderr
    host = _host_alone()
    why = f"the disks did not answer within {within_seconds:g} s; see `df` and `dmesg`"
    return Inventory(
        host=replace(host, unknowns={**host.unknowns, MODELS_UNKNOWN: why, "cache_disks": why}),
        gpu=_UNREAD,
        models_complete=False,
        took_ms=within_seconds * 1000,
    )


def _host_alone() -> Host:
    """Read the host, or only what system calls say of it where that hangs as well."""
    found: list[Host] = []
    reading = threading.Thread(target=lambda: found.append(HostProbe().read()), daemon=True)
    reading.start()
    reading.join(HOST_SECONDS)
    if found:
        return found[0]
    return read_by_system_calls(f"the machine did not answer within {HOST_SECONDS:g} s")


def _simulated(spec: str, seed: str, sources: Sources) -> Inventory:
    """Read a machine that does not exist; what simulates it is loaded for that alone."""
    from gpu_agent.probe.simulation.gpu_models import SimulationError
    from gpu_agent.probe.simulation.gpus import read_simulated_once
    from gpu_agent.probe.simulation.models import simulated_sources

    try:
        gpus = read_simulated_once(spec, seed=seed, now=time.time())
        around = read_host_and_models(simulated_sources(spec, sources))
    except SimulationError as error:
        raise Failure(f"--simulate: {error}", code=ExitCode.CONFIGURATION) from None
    return replace(around, gpu=gpus, simulated=True)
