"""Bytes ↔ message, with limits, and errors that name the JSON path and whose fault it is.

Knows no socket: an oversize or binary frame is refused where frames are read.
"""

import json
import reprlib
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, TypeGuard, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, from_json, to_json

from gpu_agent.records import dataclass
from gpu_agent.wire.codes import SUPPORTED_SCHEMA_VERSIONS
from gpu_agent.wire.messages import FromNode, FromRegistry, WireModel

MAX_FRAME_BYTES = 1024 * 1024
"""Largest frame (§2)."""

MAX_REPORTED_ERRORS = 16
_SHOWN_VALUE_CHARACTERS = 60
_SHORTLY = reprlib.Repr()
_SHORTLY.maxstring = _SHORTLY.maxother = _SHORTLY.maxlong = _SHOWN_VALUE_CHARACTERS
_SHORTLY.maxlevel = 2
_UNION_TAG = 1
"""A location in a union starts with the tag of its member."""

_Message = TypeVar("_Message")

_FROM_NODE: TypeAdapter[FromNode] = TypeAdapter(FromNode)
_FROM_REGISTRY: TypeAdapter[FromRegistry] = TypeAdapter(FromRegistry)


class Fault(StrEnum):
    """Whose mistake a bad frame is."""

    OURS = "ours"
    PEER = "peer"


@dataclass(frozen=True, slots=True)
class FieldError:
    """One thing wrong in a frame: where, and what."""

    path: str
    problem: str


class FrameError(Exception):
    """A frame that is no message of this protocol.

    The hierarchy: `FrameError` (malformed; the peer's fault, or ours when we wrote it)
    ├ `UnknownMessageError` (well formed, of a type we do not know: a newer peer)
    └ `UnsupportedSchemaError` (a registration of another structure, which says so itself).
    """

    def __init__(self, errors: Sequence[FieldError], *, fault: Fault, is_registration: bool = False) -> None:
        self.errors = tuple(errors[:MAX_REPORTED_ERRORS])
        self.fault = fault
        self.is_registration = is_registration
        """True for what would have been a `node_register`."""
        first = self.errors[0]
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        super().__init__(f"{first.path}: {first.problem}{more}")

    def details(self) -> dict[str, Any]:
        """Write `details.errors[]` of an `INVALID_MESSAGE` (§3.3)."""
        return {"errors": [{"path": error.path, "problem": error.problem} for error in self.errors]}


class UnknownMessageError(FrameError):
    """A well-formed object whose `type` is none of ours."""


class UnsupportedSchemaError(FrameError):
    """A registration that cannot be read because it follows a schema we do not support (R-05)."""

    def __init__(self, errors: Sequence[FieldError], *, version: str) -> None:
        self.version = version
        super().__init__(errors, fault=Fault.PEER, is_registration=True)


def decode_from_node(frame: bytes | str) -> FromNode:
    """Read what a node said; raises `FrameError`, the node's fault."""
    return _decode(_FROM_NODE, frame)


def decode_from_registry(frame: bytes | str) -> FromRegistry:
    """Read what a registry said; raises `FrameError`, the registry's fault."""
    return _decode(_FROM_REGISTRY, frame)


def encode(message: WireModel) -> str:
    """Write a message as one JSON object; raises `FrameError`, our fault, when over 1 MiB."""
    text = to_json(message.as_json()).decode()
    if len(text) > MAX_FRAME_BYTES // 4 and len(text.encode()) > MAX_FRAME_BYTES:
        raise FrameError([FieldError("$", "the message is over 1 MiB")], fault=Fault.OURS)
    return text


def _decode(adapter: TypeAdapter[_Message], frame: bytes | str) -> _Message:
    try:
        # Not by the adapter's own method, which costs a heartbeat two more calls with seven arguments.
        message: _Message = adapter.validator.validate_json(frame)
    except ValidationError as error:
        raise _frame_error(error, frame) from None
    if _may_name_a_non_number(frame):
        _refuse_non_numbers(frame)
    return message


def _may_name_a_non_number(frame: bytes | str) -> bool:
    """Whether a frame may hold NaN or Infinity; the words may also be inside a string.

    The first letters are searched first: that is many times faster, and a heartbeat seldom holds them.
    """
    if isinstance(frame, bytes):
        return (b"N" in frame and b"NaN" in frame) or (b"I" in frame and b"Infinity" in frame)
    return "NaN" in frame or "Infinity" in frame


def _refuse_non_numbers(frame: bytes | str) -> None:
    """Refuse NaN and Infinity even in fields that we do not know (§3.1)."""

    def refuse(word: str) -> None:
        raise FrameError([FieldError("$", f"{word} is not a number JSON knows")], fault=Fault.PEER)

    json.loads(frame, parse_constant=refuse)


def _frame_error(error: ValidationError, frame: bytes | str) -> FrameError:
    found = error.errors(include_url=False, include_context=False)
    kind = found[0]["type"]
    if kind == "json_invalid":
        return FrameError([FieldError("$", f"not valid JSON: {_reason(found[0])}")], fault=Fault.PEER)
    if kind == "union_tag_invalid":
        return UnknownMessageError([FieldError("$.type", _unknown_type(found[0]))], fault=Fault.PEER)
    if kind == "union_tag_not_found":
        return FrameError(
            [FieldError("$.type", "missing: every message is an object that names its type")],
            fault=Fault.PEER,
        )
    if not found[0]["loc"]:
        return FrameError([FieldError("$", "a message is a JSON object")], fault=Fault.PEER)
    document = from_json(frame)
    errors = _faults(found, document)
    version = _claimed_schema(document)
    if version is not None and version not in SUPPORTED_SCHEMA_VERSIONS:
        return UnsupportedSchemaError(errors, version=version)
    return FrameError(errors, fault=Fault.PEER, is_registration=_is_registration(document))


def _faults(found: Sequence[ErrorDetails], document: object) -> list[FieldError]:
    """One fault a path, and no more of them than are reported: a frame may hold very many."""
    errors: dict[str, FieldError] = {}
    for one in found:
        path = _json_path(one["loc"][_UNION_TAG:], document)
        if path not in errors:
            errors[path] = FieldError(path, _problem(one))
        if len(errors) == MAX_REPORTED_ERRORS:
            break
    return list(errors.values())


def _is_registration(document: object) -> TypeGuard[Mapping[str, object]]:
    return isinstance(document, Mapping) and document.get("type") == "node_register"


def _claimed_schema(document: object) -> str | None:
    """The schema that a registration says it follows, if it says so in a readable way."""
    if not _is_registration(document):
        return None
    version = document.get("capability_schema_version")
    return version if isinstance(version, str) and version else None


def _json_path(location: Sequence[int | str], document: object) -> str:
    """Follow a pydantic location through the document, without the steps that name nothing in it."""
    path, here = "$", document
    for position, step in enumerate(location):
        last = position == len(location) - 1
        if isinstance(step, int) and isinstance(here, list) and step < len(here):
            path, here = f"{path}[{step}]", here[step]
        elif isinstance(step, str) and isinstance(here, Mapping) and (step in here or last):
            path, here = path + _member(step), here.get(step)
    return path


def _member(name: str) -> str:
    shown = name if len(name) <= _SHOWN_VALUE_CHARACTERS else f"{name[:_SHOWN_VALUE_CHARACTERS]}…"
    return f".{shown}" if name.isidentifier() else f"[{json.dumps(shown)}]"


def _problem(error: ErrorDetails) -> str:
    if error["type"] == "missing":
        return "required, but missing"
    return f"{_reason(error)}, got {_SHORTLY.repr(error['input'])}"


def _reason(error: ErrorDetails) -> str:
    return error["msg"].removeprefix("Invalid JSON: ").removeprefix("Value error, ")


def _unknown_type(error: ErrorDetails) -> str:
    named = error["input"].get("type") if isinstance(error["input"], Mapping) else None
    shown = named[:_SHOWN_VALUE_CHARACTERS] if isinstance(named, str) else _SHORTLY.repr(named)
    return f"{shown!r} is no message type that this side reads"
