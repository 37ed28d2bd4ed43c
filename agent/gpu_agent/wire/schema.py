"""JSON Schemas of the messages, made from the models so that they cannot drift."""

from typing import Any

from pydantic import TypeAdapter

from gpu_agent.wire.messages import (
    FromNode,
    FromRegistry,
    NodeControl,
    NodeError,
    NodeHeartbeat,
    NodeRegister,
    NodeRegisterAck,
    NodeStatusMessage,
    NodeUnregister,
)
from gpu_agent.wire.probe_document import DIALECT

_SUBJECTS: dict[str, Any] = {
    "from_node": FromNode,
    "from_registry": FromRegistry,
    "node_register": NodeRegister,
    "node_register_ack": NodeRegisterAck,
    "node_error": NodeError,
    "node_heartbeat": NodeHeartbeat,
    "node_status": NodeStatusMessage,
    "node_control": NodeControl,
    "node_unregister": NodeUnregister,
}

NAMES: tuple[str, ...] = tuple(_SUBJECTS)
"""What a schema exists for: the two directions, then each message."""


def schema_of(name: str) -> dict[str, Any]:
    """Return the JSON Schema of one of `NAMES`, as a reader applies it; `KeyError` otherwise."""
    return {"$schema": DIALECT, "title": name, **TypeAdapter(_SUBJECTS[name]).json_schema()}
