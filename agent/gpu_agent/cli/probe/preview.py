"""The exact `node_register` that this machine would send, validated as a registry would.

It reads the stored identity without taking hold of it: a running agent is not disturbed, and a file
that cannot be understood stays where it is, since the agent would begin afresh without it.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.cli.probe.settings import settings_of
from gpu_agent.node.identity import default_state_dir, peek
from gpu_agent.wire.codec import FrameError, decode_from_node, encode
from gpu_agent.wire.declaration import declare, registration
from gpu_agent.wire.inventory import Inventory


@dataclass(frozen=True, slots=True)
class Preview:
    """The frame, and whether the agent would send it: one without a GPU (R-01) stays unsent."""

    frame: str
    """With escapes, as JSON has them, for what cannot be seen: it is printed on a terminal."""
    would_be_sent: bool


def preview(inventory: Inventory, arguments: argparse.Namespace) -> Preview:
    """Write the frame; raises `Failure` where a registry would refuse it as malformed."""
    settings = settings_of(arguments)
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
        return peek(state_dir).node_id
    except (OSError, ValueError):
        return None
