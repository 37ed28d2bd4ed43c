"""The field types that messages share: how tolerant reading is, in one place.

Reading is strict about types (a string is not a number, a bool is not an int)
and tolerant about what the protocol says so: a fractional integer is rounded,
null stands for absent, unknown fields are ignored (§3.1, principle 4).
"""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    SerializerFunctionWrapHandler,
    Strict,
    StringConstraints,
    WithJsonSchema,
    model_serializer,
)
from pydantic_core import CoreSchema

MAX_INTEGER = 2**53
"""Largest integer that every JSON reader keeps exact."""

MAX_MAGNITUDE = 1e15
"""Beyond any figure of a machine; sums and products of such numbers stay finite."""

MAX_GPUS, MAX_REASONS, MAX_LABELS, MAX_FEATURES = 1024, 64, 256, 1024
MAX_MODELS, MAX_JOBS = 20_000, 20_000
"""More than a frame of 1 MiB can sensibly hold; lists end being read at their first fault."""


class WireModel(BaseModel):
    """Base of every message and part: frozen, strict, deaf to unknown fields.

    Writing leaves out what is `None`, except the fields that the protocol wants as null.
    """

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="ignore",
        allow_inf_nan=False,
        protected_namespaces=(),
        json_schema_extra={"additionalProperties": True},
    )

    @model_serializer(mode="wrap")
    def _leave_out_unknown(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = handler(self)
        return {key: value for key, value in written.items() if value is not None or key in _WRITTEN_AS_NULL}


_WRITTEN_AS_NULL = frozenset({"memory_gb", "node_id"})


def _rounded(value: float) -> int:
    return round(value)


def _empty_is_absent(value: str | None) -> str | None:
    return value or None


def _null_is_empty_list(value: object) -> object:
    return () if value is None else value


def _null_is_empty_object(value: object) -> object:
    return {} if value is None else value


def _null_is_false(value: object) -> object:
    return False if value is None else value


def _names_of_flags(value: object) -> object:
    """Accept both forms of `advanced_features`: a list of names, or an object of flags."""
    if value is None:
        return ()
    if isinstance(value, Mapping):
        wrong = [name for name, flag in value.items() if flag not in (True, False, None)]
        if wrong:
            raise ValueError(f"flag {wrong[0]!r} must be true, false or null")
        return tuple(name for name, flag in value.items() if flag)
    return value


_WholeOrFractional = Annotated[
    Annotated[int, Field(ge=0, le=MAX_INTEGER)]
    | Annotated[float, Field(ge=0, le=MAX_INTEGER), AfterValidator(_rounded)],
    Field(union_mode="left_to_right"),
]


class _ReadAsWhole:
    """Reads a fractional number too; what comes out is an `int`, and type checkers see no other."""

    def __get_pydantic_core_schema__(self, _source: type[int], handler: GetCoreSchemaHandler) -> CoreSchema:
        return handler.generate_schema(_WholeOrFractional)


WireInt = Annotated[int, _ReadAsWhole(), WithJsonSchema({"type": "integer", "minimum": 0})]
"""A whole number on the wire; a fractional one is rounded when read."""

Finite = Annotated[float, Field(ge=-MAX_MAGNITUDE, le=MAX_MAGNITUDE, allow_inf_nan=False)]
"""A number that can be reckoned with: finite, and so is its product with any other figure."""

Seconds = Annotated[float, Field(ge=0, le=MAX_MAGNITUDE, allow_inf_nan=False)]
"""A span in seconds; fractions allowed."""

Name = Annotated[str, StringConstraints(max_length=1024)]
"""A word, name or id that the reader will keep, compare and print."""

Text = Annotated[str, StringConstraints(max_length=4096)]
"""Words for a person."""

NodeId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,128}$")]
"""A node's identity."""

SuggestedNodeId = Annotated[
    Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{0,128}$")] | None,
    AfterValidator(_empty_is_absent),
]
"""An identity the node asks for; empty or null asks the registry to assign one."""

SchemaVersion = Annotated[Name | None, AfterValidator(_empty_is_absent)]
"""A capability schema version; empty or null means "1.0"."""

Flag = Annotated[bool, BeforeValidator(_null_is_false)]
"""A boolean for which null means false."""

FeatureNames = Annotated[
    tuple[Name, ...],
    Strict(strict=False),
    Field(max_length=MAX_FEATURES, fail_fast=True),
    BeforeValidator(_names_of_flags),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "items": {"type": "string"}},
                {"type": "object", "additionalProperties": {"type": ["boolean", "null"]}},
                {"type": "null"},
            ]
        }
    ),
]
"""Names of features, from a list or from an object of flags."""


_Item = TypeVar("_Item")

Listed = Annotated[
    tuple[_Item, ...], Strict(strict=False), Field(fail_fast=True), BeforeValidator(_null_is_empty_list)
]
"""A list for which null means empty. Not strict itself: behind a validator it is met as a Python list."""


def entries_at_most(most: int) -> BeforeValidator:
    """Refuse an object with more entries before any is looked at: each fault found costs time and memory."""

    def counted(value: object) -> object:
        if isinstance(value, Mapping) and len(value) > most:
            raise ValueError(f"at most {most} entries are allowed, not {len(value)}")
        return value

    return BeforeValidator(counted)


_Value = TypeVar("_Value")

Mapped = Annotated[dict[str, _Value], BeforeValidator(_null_is_empty_object)]
"""An object for which null means empty."""
