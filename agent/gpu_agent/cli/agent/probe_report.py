"""What `gpu-agent probe` prints: a page, the JSON document, or the registration that would be sent.

What only one form needs is loaded when that form is asked for: `--json` must stay quick.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from gpu_agent.cli.agent.probe_page import probe_page
from gpu_agent.cli.agent.reading import probe_request, read_inventory
from gpu_agent.cli.agent.settings import load_settings
from gpu_agent.cli.command import ExitCode, Failure
from gpu_agent.cli.output.streams import print_stderr
from gpu_agent.cli.output.text import glyphs, print_lines, terminal_columns
from gpu_agent.node.identity import default_state_dir, read_identity
from gpu_agent.probe.nvml.process import StartedChild
from gpu_agent.probe.snapshot import exit_code, to_document
from gpu_agent.wire.codec import FrameError, decode_from_node, encode
from gpu_agent.wire.declaration import declare, registration
from gpu_agent.wire.inventory import Inventory

# The exact `node_register` that this machine would send, validated as a registry would.
#
# It reads the stored identity without taking hold of it: a running agent is not disturbed, and a file
# that cannot be understood stays where it is, since the agent would begin afresh without it.


@dataclass(frozen=True, slots=True)
class Preview:
    """The frame, and whether the agent would send it: one without a GPU (R-01) stays unsent."""

    frame: str
    """With escapes, as JSON has them, for what cannot be seen: it is printed on a terminal."""
    would_be_sent: bool


def preview(inventory: Inventory, arguments: argparse.Namespace) -> Preview:
    """Write the frame; raises `Failure` where a registry would refuse it as malformed."""
    settings = load_settings(arguments)
    try:
        declaration = declare(inventory, settings.owner)
        message = registration(
            declaration, node_id=_stored_node_id(settings.state_dir or default_state_dir())
        )
        frame = encode(message)
        decode_from_node(frame)
    except (ValidationError, FrameError) as error:
        raise Failure(f"no registry would understand this machine: {error}", ExitCode.CONFIGURATION) from None
    return Preview(_visible(frame), declaration.has_gpu)


def _visible(frame: str) -> str:
    """Write the same JSON so that nothing in it steers a terminal: a GPU's name may hold anything."""
    return "".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in frame)


def _stored_node_id(state_dir: Path) -> str | None:
    try:
        return read_identity(state_dir).node_id
    except (OSError, ValueError):
        return None


# Prints the probe's page, as the terminal or the pipe has room for it.


def print_inventory(inventory: Inventory) -> None:
    """Print everything: GPUs, host, models, what is wrong, the verdict."""
    print_lines(probe_page(inventory, terminal_columns(), glyphs(), now=time.time()))


# The probe's report: reads everything, then prints it in the form that was asked for.
#
# What only one form needs (pydantic for the preview, tables for people, the settings where
# there are any) is loaded when that form is asked for: `--json` must stay quick.


def report(arguments: argparse.Namespace, child: StartedChild | None) -> int:
    """Read and print; the exit code says whether this machine could register."""
    inventory = read_inventory(probe_request(arguments), child)
    if arguments.register_preview:
        _print_preview(inventory, arguments)
    elif arguments.json:
        print(json.dumps(to_document(inventory), indent=2))
    else:
        print_inventory(inventory)
    return exit_code(inventory)


def _print_preview(inventory: Inventory, arguments: argparse.Namespace) -> None:
    from gpu_agent.cli.agent.probe_page import outcome_sentence as verdict

    registration = preview(inventory, arguments)
    print(registration.frame)
    if not registration.would_be_sent:
        why = verdict(inventory)
        print_stderr(f"the agent would not send this: it waits for a GPU of known memory. {why}")
