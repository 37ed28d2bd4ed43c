"""What is kept, as JSON text: the same for every keeper, so that what one accepts all accept.

Writes and reads text; keeps nothing.
"""

import json
from collections.abc import Mapping
from typing import Any

from gpu_agent.registry.actions import Change
from gpu_agent.store.base import RegistryEvent, UnkeepableError


def of_document(change: Change) -> str | None:
    """Write a change's document, None when it is let go; raises `UnkeepableError`."""
    what = f"the {change.kind.value} {change.key!r}"
    _check_name(change.key, what)
    return None if change.document is None else _text(change.document, what)


def of_fields(event: RegistryEvent) -> str:
    """Write an event's fields; raises `UnkeepableError`."""
    what = f"the event {event.event!r}"
    _check_name(event.node_id or "", what)
    return _text(event.fields, what)


def read(text: str) -> Mapping[str, Any]:
    """Read a document or an event's fields back; raises `ValueError`."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004 - the text is at fault, not its type
    return value


def _check_name(name: str, what: str) -> None:
    """A name is matched byte by byte, so it must be text that has bytes."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UnkeepableError(f"{what} cannot be kept: its name is no text ({error.reason})") from error


def _text(value: Mapping[str, object], what: str) -> str:
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise UnkeepableError(f"{what} cannot be kept: {error}; this is a bug, please report it") from error
