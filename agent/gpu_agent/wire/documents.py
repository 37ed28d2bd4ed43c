"""What every document of the operators' HTTP API has in common: its base, its bounds, its codes.

A request with an unknown field is refused: a job must not run where its owner believed that it could not. A
number in quotes is no number. A reader ignores unknown fields of an answer, because a newer registry may send
more.
"""

import json
from typing import Annotated

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    StringConstraints,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from gpu_agent.wire.codes import MAX_LABELS, NODE_ID_PATTERN

DAY_SECONDS = 86_400.0
MAX_TTL_SECONDS = 3_650 * DAY_SECONDS
MAX_NOTE = 200
MAX_USES = 1_000_000

TOKEN_KINDS = ("join", "node", "operator", "session")
TOKEN_STATES = ("live", "used_up", "expired", "revoked")
TOKEN_ROLES = ("read", "operate", "admin")

PROBLEM_CODES = (
    "BACKUP_FAILED",
    "BODY_TOO_LARGE",
    "CLAIM_NOT_FOUND",
    "CLAIM_SUPERSEDED",
    "DRAINED_BY_NODE",
    "FORBIDDEN",
    "HOST_NOT_ALLOWED",
    "INTERNAL_ERROR",
    "INVALID_PATH",
    "INVALID_REQUEST",
    "JOB_ID_IN_USE",
    "JSON_REQUIRED",
    "METHOD_NOT_ALLOWED",
    "NODE_NOT_CONNECTED",
    "NOTHING_TO_BACK_UP",
    "NOTHING_TO_ROTATE",
    "NOT_CLAIM_OWNER",
    "NOT_FOUND",
    "NOT_READY",
    "NO_AVAILABLE_NODE",
    "ORIGIN_NOT_ALLOWED",
    "OUTCOME_UNKNOWN",
    "QUEUE_FULL",
    "REGISTRY_BUSY",
    "REQUEST_UNREADABLE",
    "TOO_MANY_BODIES",
    "TOO_MANY_BODIES_OF_ALL",
    "TOO_MANY_STREAMS",
    "TOO_MANY_STREAMS_OF_TOKEN",
    "UNAUTHORIZED",
    "UNKNOWN_GPU",
    "UNKNOWN_NODE",
    "UNKNOWN_RECEIVER",
    "UNKNOWN_TOKEN",
    "INVALID_MESSAGE",
)
"""Every code of a refusal over HTTP."""


def _whole(value: object) -> object:
    """Read `3.0` as `3`, as JSON Schema does."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _flag(value: object) -> object:
    """Read a word of a query: these two, of the many that pydantic takes for a boolean."""
    if not isinstance(value, str):
        return value
    if value not in _FLAGS:
        raise PydanticCustomError("flag", "Input should be 'true' or 'false'")
    return _FLAGS[value]


_FLAGS = {"true": True, "false": False}
Flag = Annotated[bool, Field(strict=True), BeforeValidator(_flag)]
WholeNumber = BeforeValidator(_whole)
Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Names = Annotated[tuple[Name, ...], Field(max_length=10_000)]
Labels = Annotated[
    dict[str, Annotated[str, StringConstraints(max_length=1024)]], Field(max_length=MAX_LABELS)
]
Sentence = Annotated[str, StringConstraints(max_length=500)]
Note = Annotated[str, StringConstraints(max_length=MAX_NOTE)]
NodeId = Annotated[str, StringConstraints(pattern=f"^{NODE_ID_PATTERN}$")]
Seconds = Annotated[float, Field(strict=True, ge=0, le=MAX_TTL_SECONDS, allow_inf_nan=False)]
Ttl = Annotated[float, Field(strict=True, gt=0, le=MAX_TTL_SECONDS, allow_inf_nan=False)]


def open_words(*words: str) -> WithJsonSchema:
    """List in JSON Schema the words that a node of this version sends; another node may send others."""
    return WithJsonSchema({"anyOf": [{"type": "string", "enum": [*words]}, {"type": "string"}]})


class ApiRequest(BaseModel):
    """Base of what a client sends."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """State defaults in words: what generates clients takes a field with `default` for required."""
        schema = handler(core_schema)
        for one in handler.resolve_ref_schema(schema).get("properties", {}).values():
            default = one.pop("default", None)
            if default or default is False or default == 0:
                meaning = one["description"].removesuffix(".")
                one["description"] = f"{meaning}. Default: {json.dumps(default)}."
        return schema


class ApiAnswer(BaseModel):
    """Base of what the registry answers."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True, protected_namespaces=())
