"""The probe's report: reads everything, then prints it in the form that was asked for.

What only one form needs (pydantic for the preview, rich for people, the settings where
there are any) is loaded when that form is asked for: `--json` must stay quick.
"""

import argparse
import importlib
import json
import os
import platform
import time
from pathlib import Path
from types import ModuleType
from typing import cast

from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.probe.nvml_once import StartedChild, read_once
from gpu_agent.probe.nvml_process import DEADLINE_SECONDS
from gpu_agent.probe.options import ProbeOptions, sources_of
from gpu_agent.probe.products import SimulationError
from gpu_agent.probe.simulated import SimulatedGpus
from gpu_agent.probe.snapshot import exit_code, take, to_document
from gpu_agent.runtime.places import home
from gpu_agent.wire.inventory import GpuReport, Inventory

SYSTEM_CONFIGURATION = Path("/etc/gpu-agent/agent.toml")
ENVIRONMENT_PREFIX = "GPU_AGENT_"


def main(arguments: argparse.Namespace, child: StartedChild | None) -> int:
    """Read and print; the exit code says whether this machine could register."""
    inventory = _inventory(arguments, child)
    if arguments.register_preview:
        print(_later("probe_preview").preview(inventory, arguments.config))
    elif arguments.json:
        print(json.dumps(to_document(inventory), indent=2))
    else:
        _later("probe_table").print_inventory(inventory)
    return exit_code(inventory)


def _inventory(arguments: argparse.Namespace, child: StartedChild | None) -> Inventory:
    options = _options(arguments.config)
    sources = sources_of(options, environ=os.environ, home=home())
    if child is not None:
        return take(read_once(child, DEADLINE_SECONDS), sources)
    return take(_simulated(arguments.simulate), sources, simulated=True)


def _simulated(spec: str) -> GpuReport:
    try:
        return SimulatedGpus(spec, seed=platform.node()).read(time.time())
    except SimulationError as error:
        raise Failure(f"--simulate: {error}", code=ExitCode.CONFIGURATION) from None


def _options(configuration: str | None) -> ProbeOptions:
    """The owner's options; where nothing is configured the settings need not be loaded at all."""
    configured = any(name.startswith(ENVIRONMENT_PREFIX) for name in os.environ)
    if configuration is None and not configured and not SYSTEM_CONFIGURATION.exists():
        return ProbeOptions()
    return cast("ProbeOptions", _later("probe_settings").probe_options(configuration))


def _later(module: str) -> ModuleType:
    return importlib.import_module(f"gpu_agent.cli.{module}")
