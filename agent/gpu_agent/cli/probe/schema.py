"""The JSON Schema of `gpu-agent probe --json`, made from the inventory itself so that it cannot drift.

Every field is always there; an unknown one is null. It allows fields that it does not know, because
a later version of the same schema may add some.
"""

from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode
from pydantic_core import CoreSchema
from pydantic_core.core_schema import ComputedField, DataclassField, ModelField, TypedDictField

from gpu_agent.probe.snapshot import SCHEMA
from gpu_agent.wire.inventory import Gpu, Host, Model, Outcome
from gpu_agent.wire.schema import DIALECT

NAME = "probe"
_TEMPLATE = "#/$defs/{model}"


class _AlwaysThere(GenerateJsonSchema):
    """A field's default is what the document holds, not a reason to leave it out."""

    def field_is_required(
        self,
        field: ModelField | DataclassField | TypedDictField | ComputedField,  # noqa: ARG002 - pydantic's signature
        total: bool,  # noqa: ARG002, FBT001 - pydantic's signature
    ) -> bool:
        return True


def schema() -> dict[str, Any]:
    """Return the JSON Schema of one document."""
    kinds = {"host": Host, "gpu": Gpu, "model": Model, "outcome": Outcome}
    inputs: list[tuple[str, JsonSchemaMode, CoreSchema]] = [
        (name, "serialization", TypeAdapter(kind).core_schema) for name, kind in kinds.items()
    ]
    made, definitions = _AlwaysThere(ref_template=_TEMPLATE).generate_definitions(inputs)
    of = {name: made[name, "serialization"] for name in kinds}
    properties: dict[str, Any] = {
        "schema": {"const": SCHEMA},
        "outcome": of["outcome"],
        "detail": _nullable("string", "what to do where the outcome is not `ok`"),
        "could_register": {"type": "boolean", "description": "as the exit code 0 says"},
        "simulated": {"type": "boolean", "description": "true for a machine that does not exist"},
        "host": of["host"],
        "gpus": {"type": "array", "items": of["gpu"]},
        "models": {"type": "array", "items": of["model"]},
        "models_complete": {"type": "boolean", "description": "false: the search ran out of its time"},
        "models_unsearched": {
            "type": "object",
            "description": "place: why it could not be searched for models",
            "additionalProperties": {"type": "string"},
        },
        "features_supported": {"type": "object", "additionalProperties": {"type": "boolean"}},
        "advanced_features": {"type": "array", "items": {"type": "string"}},
        "driver_version": _nullable("string", "the NVIDIA driver's"),
        "cuda_version": _nullable("string", "the newest that the driver serves"),
        "took_ms": {"type": "number"},
    }
    watched = {
        "at": {"type": "number", "description": "Unix time; with --watch only"},
        "probe_age_seconds": _nullable(
            "number", "age of the last good reading of the GPUs; with --watch only"
        ),
    }
    return {
        "$schema": DIALECT,
        "title": NAME,
        "description": f"What `gpu-agent probe --json` prints ({SCHEMA}). Sizes are MiB (`_mb`) or bytes, "
        "temperatures °C, power W, times Unix seconds. Unknown is null, with its reason in `unknowns`.",
        "type": "object",
        "required": list(properties),
        "properties": {**properties, **watched},
        "$defs": definitions,
    }


def _nullable(kind: str, meaning: str) -> dict[str, Any]:
    return {"type": [kind, "null"], "description": meaning}
