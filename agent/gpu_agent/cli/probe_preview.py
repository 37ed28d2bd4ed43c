"""The exact `node_register` that this machine would send, validated as a registry would."""

from gpu_agent.cli.probe_settings import owner_of
from gpu_agent.wire.codec import decode_from_node, encode
from gpu_agent.wire.declaration import declare, registration
from gpu_agent.wire.inventory import Inventory


def preview(inventory: Inventory, configuration: str | None) -> str:
    """Write the frame; raises `FrameError` where a registry would refuse it as malformed."""
    frame = encode(registration(declare(inventory, owner_of(configuration)), node_id=None))
    decode_from_node(frame)
    return frame
