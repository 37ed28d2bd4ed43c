"""The JSON Schema of `gpu-agent why --json`; it allows fields that it does not know."""

from typing import Any

from gpu_agent.node.socket.why import SCHEMA
from gpu_agent.registry.dispatch.verdict import Exclusion
from gpu_agent.wire.schema import DIALECT

NAME = "why"


def schema() -> dict[str, Any]:
    """Return the JSON Schema of one document."""
    objection = {
        "reason": {
            "enum": [reason.value for reason in Exclusion],
            "description": "as dispatch excludes a node by it; docs/operating.md explains each",
        },
        "refuses": {"type": "string", "description": "which jobs, for a person; `every job` is all of them"},
        "need": {"type": "string", "description": "what such a job needs"},
        "have": {"type": "string", "description": "what this node has instead"},
        "clears_when": {"type": "string", "description": "what would end it; empty where that is not known"},
    }
    properties: dict[str, Any] = {
        "schema": {"const": SCHEMA},
        "node_id": {"type": ["string", "null"], "description": "null until a registry has given it one"},
        "connected": {"type": "boolean", "description": "whether the registry hears this node"},
        "refuses_every_job": {"type": "boolean", "description": "whether one objection refuses every job"},
        "objections": {
            "type": "array",
            "items": {"type": "object", "required": list(objection), "properties": objection},
        },
        "only_the_registry_knows": {"type": "array", "items": {"type": "string"}},
        "ask": {"type": "string", "description": "the command that asks the registry the same"},
    }
    return {
        "$schema": DIALECT,
        "title": NAME,
        "description": f"What `gpu-agent why --json` prints ({SCHEMA}): which jobs this node would be "
        "refused now, as far as the node itself knows.",
        "type": "object",
        "required": list(properties),
        "properties": properties,
    }
