"""What of a decision can be taken back once other things have happened on top of it.

A part that is still as the decision left it goes back to how it was; a part that has changed since
stays. A node's status and all that belongs to it is one part. Changes nothing itself.
"""

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

from gpu_agent.registry.record import NodeRecord

_Part = TypeVar("_Part")

_STATUS = ("status", "previous_status", "reason_code", "reason", "since", "story")
_FACTS = frozenset({"claims", "connection", "heard_at", "suspected", "next_status_at", *_STATUS})
"""What no decision owns: dispatch has the claims, the roster the connection, and the rest happened."""


def taken_back(before: _Part, after: _Part, present: _Part) -> _Part:
    """Return the present state without what led from `before` to `after`."""
    if present is after or present == after:
        return before
    if isinstance(present, NodeRecord):
        if isinstance(before, NodeRecord) and isinstance(after, NodeRecord):
            parts = parts_of_node(before, after, present)
            if present.connection == after.connection:
                parts["connection"] = before.connection
            return cast("_Part", replace(present, **parts))
        return present
    if is_dataclass(present) and type(before) is type(after) is type(present):
        return cast("_Part", replace(cast("Any", present), **_changed(before, after, present)))
    return present


def parts_of_node(before: NodeRecord, after: NodeRecord, present: NodeRecord) -> dict[str, Any]:
    """Return the parts of a node that go back to how they were, by their names."""
    parts = {name: part for name, part in _changed(before, after, present).items() if name not in _FACTS}
    if not has_moved(after, present):
        parts |= {name: getattr(before, name) for name in _STATUS}
    return parts


def has_moved(after: NodeRecord, present: NodeRecord) -> bool:
    """Say whether a node has been given a status since."""
    return present.story != after.story or present.status != after.status


def _changed(before: object, after: object, present: object) -> dict[str, Any]:
    names = [one.name for one in fields(cast("Any", present))]
    return {
        name: back
        for name in names
        if (back := taken_back(getattr(before, name), getattr(after, name), getattr(present, name)))
        is not getattr(present, name)
    }
