"""The exact `node_register` that this machine would send, validated as a registry would.

It reads the stored identity without taking hold of it: a running agent is not disturbed, and a file
that cannot be understood stays where it is, since the agent would begin afresh without it.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.cli.probe_settings import settings_of
from gpu_agent.node.identity import default_state_dir, peek
from gpu_agent.wire.codec import FrameError, decode_from_node, encode
from gpu_agent.wire.declaration import declare, registration
from gpu_agent.wire.inventory import Inventory


@dataclass(frozen=True, slots=True)
class Preview:
    """The frame, and whether the agent would send it: one without a GPU (R-01) stays unsent."""

    frame: str
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
    return Preview(frame, declaration.has_gpu)


def _stored_node_id(state_dir: Path) -> str | None:
    try:
        return peek(state_dir).node_id
    except (OSError, ValueError):
        return None
