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

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_SUBJECTS: dict[str, TypeAdapter[Any]] = {
    "from_node": TypeAdapter(FromNode),
    "from_registry": TypeAdapter(FromRegistry),
    "node_register": TypeAdapter(NodeRegister),
    "node_register_ack": TypeAdapter(NodeRegisterAck),
    "node_error": TypeAdapter(NodeError),
    "node_heartbeat": TypeAdapter(NodeHeartbeat),
    "node_status": TypeAdapter(NodeStatusMessage),
    "node_control": TypeAdapter(NodeControl),
    "node_unregister": TypeAdapter(NodeUnregister),
}

NAMES: tuple[str, ...] = tuple(_SUBJECTS)
"""What a schema exists for: the two directions, then each message."""


def schema_of(name: str) -> dict[str, Any]:
    """Return the JSON Schema of one of `NAMES`, as a reader applies it; `KeyError` otherwise."""
    return {"$schema": DIALECT, "title": name, **_SUBJECTS[name].json_schema()}
