"""The probe's report: reads everything, then prints it in the form that was asked for.

What only one form needs (pydantic for the preview, tables for people, the settings where
there are any) is loaded when that form is asked for: `--json` must stay quick.
"""

import argparse
import json

from gpu_agent.cli.probe.reading import asked_by, inventory_of
from gpu_agent.cli.streams import complain
from gpu_agent.probe.nvml.head_start import StartedChild
from gpu_agent.probe.snapshot import exit_code, to_document
from gpu_agent.wire.inventory import Inventory


def main(arguments: argparse.Namespace, child: StartedChild | None) -> int:
    """Read and print; the exit code says whether this machine could register."""
    inventory = inventory_of(asked_by(arguments), child)
    if arguments.register_preview:
        _print_preview(inventory, arguments)
    elif arguments.json:
        print(json.dumps(to_document(inventory), indent=2))
    else:
        from gpu_agent.cli.probe.shown import print_inventory

        print_inventory(inventory)
    return exit_code(inventory)


def _print_preview(inventory: Inventory, arguments: argparse.Namespace) -> None:
    from gpu_agent.cli.probe.preview import preview
    from gpu_agent.cli.probe.verdict import verdict

    registration = preview(inventory, arguments)
    print(registration.frame)
    if not registration.would_be_sent:
        why = verdict(inventory)
        complain(f"the agent would not send this: it waits for a GPU of known memory. {why}")
