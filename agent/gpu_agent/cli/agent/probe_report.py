"""What `gpu-agent probe` prints: a page, the JSON document, or the registration that would be sent.

What only one form needs is loaded when that form is asked for: `--json` must stay quick.
"""

import json
import time
from pathlib import Path

from gpu_agent.cli.agent.reading import probe_request, read_inventory
from gpu_agent.cli.command import Arguments, ExitCode, Failure
from gpu_agent.cli.output.streams import print_stderr
from gpu_agent.probe.nvml.report import OneShotChild
from gpu_agent.probe.snapshot import exit_code, to_document
from gpu_agent.records import dataclass
from gpu_agent.wire.inventory import Inventory


@dataclass(frozen=True, slots=True)
class Preview:
    """The `node_register` frame, and whether the agent would send it: without a GPU (R-01) it does not."""

    frame: str
    """What cannot be seen is escaped as JSON escapes it: the frame is printed on a terminal."""
    would_be_sent: bool


def report(arguments: Arguments, child: OneShotChild | None) -> int:
    """Read the machine and print; the exit code says whether it could register."""
    inventory = read_inventory(probe_request(arguments), child)
    if arguments.register_preview:
        _print_preview(inventory, arguments)
    elif arguments.json:
        print(json.dumps(to_document(inventory), indent=2))
    else:
        print_inventory(inventory)
    return exit_code(inventory)


def print_inventory(inventory: Inventory) -> None:
    """Print the page, as the terminal or the pipe has room for it."""
    from gpu_agent.cli.agent.probe_page import probe_page
    from gpu_agent.cli.output.text import glyphs, print_lines, terminal_columns

    print_lines(probe_page(inventory, terminal_columns(), glyphs(), now=time.time()))


def preview(inventory: Inventory, arguments: Arguments) -> Preview:
    """Write the registration, validated as a registry does; raises `Failure` where it is malformed.

    It reads the stored identity without locking it, so that a running agent is not disturbed. An identity
    file that cannot be read stays in place, and the preview has no id, as the agent's registration.
    """
    from pydantic import ValidationError

    from gpu_agent.cli.agent.settings import load_settings
    from gpu_agent.node.identity import default_state_dir
    from gpu_agent.wire.codec import FrameError, decode_from_node, encode
    from gpu_agent.wire.declaration import declare, registration

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


def _print_preview(inventory: Inventory, arguments: Arguments) -> None:
    from gpu_agent.cli.agent.probe_page import outcome_sentence

    registration = preview(inventory, arguments)
    print(registration.frame)
    if not registration.would_be_sent:
        why = outcome_sentence(inventory)
        print_stderr(f"the agent would not send this: it waits for a GPU of known memory. {why}")


def _stored_node_id(state_dir: Path) -> str | None:
    from gpu_agent.node.identity import read_identity

    try:
        return read_identity(state_dir).node_id
    except (OSError, ValueError):
        return None


def _visible(frame: str) -> str:
    """Escape what could steer a terminal, as JSON does: a GPU's name may hold anything."""
    return "".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in frame)
