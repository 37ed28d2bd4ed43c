"""The JSON Schema of `gpu-agent doctor --json`; it allows fields that it does not know."""

from typing import Any

from gpu_agent.cli.doctor.shown import SCHEMA
from gpu_agent.runtime.findings import Verdict
from gpu_agent.wire.schema import DIALECT

NAME = "doctor"


def schema() -> dict[str, Any]:
    """Return the JSON Schema of one document."""
    check = {
        "check": {"type": "string", "description": "what was looked at; docs/probe.md lists them"},
        "verdict": {"enum": [verdict.value for verdict in Verdict]},
        "detail": {"type": "string", "description": "what was seen, for a person"},
        "mend": {"type": ["string", "null"], "description": "what to do; null where there is nothing"},
    }
    properties = {
        "schema": {"const": SCHEMA},
        "ok": {"type": "boolean", "description": "true when nothing fails, as the exit code 0 says"},
        "checks": {
            "type": "array",
            "description": "in the order of the way from the driver to the registry",
            "items": {"type": "object", "required": list(check), "properties": check},
        },
    }
    return {
        "$schema": DIALECT,
        "title": NAME,
        "description": f"What `gpu-agent doctor --json` prints ({SCHEMA}).",
        "type": "object",
        "required": list(properties),
        "properties": properties,
    }
