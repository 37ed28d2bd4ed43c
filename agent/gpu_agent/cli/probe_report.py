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
from types import ModuleType
from typing import cast

from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.cli.probe_asked import Asked, something_configured
from gpu_agent.cli.probe_verdict import verdict
from gpu_agent.cli.streams import complain
from gpu_agent.probe.collect_once import collect, start_collectors
from gpu_agent.probe.merging import merged
from gpu_agent.probe.nvml_once import StartedChild, dismiss, read_once, start_child
from gpu_agent.probe.nvml_process import DEADLINE_SECONDS
from gpu_agent.probe.options import sources_of
from gpu_agent.probe.products import SimulationError
from gpu_agent.probe.simulated import SimulatedGpus
from gpu_agent.probe.snapshot import exit_code, take, to_document
from gpu_agent.runtime.places import home
from gpu_agent.wire.inventory import GpuReport, Inventory


def main(arguments: argparse.Namespace, child: StartedChild | None) -> int:
    """Read and print; the exit code says whether this machine could register."""
    inventory = _inventory(_asked(arguments), child)
    if arguments.register_preview:
        _print_preview(inventory, arguments)
    elif arguments.json:
        print(json.dumps(to_document(inventory), indent=2))
    else:
        _later("probe_shown").print_inventory(inventory)
    return exit_code(inventory)


def _asked(arguments: argparse.Namespace) -> Asked:
    """What to look at; where nothing is configured the settings need not be loaded at all."""
    if something_configured(arguments, os.environ):
        return cast("Asked", _later("probe_settings").asked(arguments))
    return Asked(simulate=arguments.simulate)


def _inventory(asked: Asked, child: StartedChild | None) -> Inventory:
    sources = sources_of(asked.options, environ=os.environ, home=home())
    if asked.simulate is not None:
        if child is not None:
            dismiss(child)
        return take(_simulated(asked.simulate, asked.apart), sources, simulated=True)
    child = child or start_child()
    others = start_collectors(
        asked.options.collectors, asked.options.surroundings, deadline_seconds=DEADLINE_SECONDS
    )
    return take(merged(read_once(child, DEADLINE_SECONDS), collect(others)), sources)


def _simulated(spec: str, apart: str) -> GpuReport:
    try:
        return SimulatedGpus(spec, seed=f"{platform.node()}{apart}").read(time.time())
    except SimulationError as error:
        raise Failure(f"--simulate: {error}", code=ExitCode.CONFIGURATION) from None


def _print_preview(inventory: Inventory, arguments: argparse.Namespace) -> None:
    preview = _later("probe_preview").preview(inventory, arguments)
    print(preview.frame)
    if not preview.would_be_sent:
        complain(f"the agent would not send this: it waits for a GPU of known memory. {verdict(inventory)}")


def _later(module: str) -> ModuleType:
    return importlib.import_module(f"gpu_agent.cli.{module}")
