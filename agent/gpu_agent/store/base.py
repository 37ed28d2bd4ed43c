"""The contract that every store of the registry's state fulfils, and the JSON text that they all write.

A store holds documents under a kind and a key, and events in order. It knows no statuses, no claims and no
clock: the fleet gives documents their meaning. Times in documents are wall time because they survive a reboot.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from gpu_agent.registry.actions import Change
from gpu_agent.wire.api import RegistryEvent as RegistryEvent

# The promise that every keeper of the registry's state makes.
#
# A keeper holds plain documents under a kind and a key, and what happened, in order. It knows
# no statuses, no claims, no clock: what a document means is the fleet's business, and its times
# are wall time because they must survive a reboot.


EVENTS_PER_NODE = 50
"""A node's history is this long, for as long as the node's document is kept."""

RECENT_EVENTS = 10_000
"""Of all events, those whose ids are less than this behind the newest are kept besides."""


class StoreError(Exception):
    """What was asked could not be kept, and nothing of it was: the machine's fault.

    The root of this floor's exceptions. Its sentence says what to do next.
    """


class UnusableError(StoreError):
    """What is kept there cannot be read by this release: a person has to mend it."""


class NothingToBackUpError(StoreError):
    """What is kept lies on no disk."""


class UnstorableError(StoreError):
    """What was asked is of a form that no keeper takes: our fault, and the keeper is well."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What is kept together: changes, then what happened, each event with an id above all before it."""

    changes: Sequence[Change] = ()
    events: Sequence[RegistryEvent] = ()


@dataclass(frozen=True, slots=True)
class Loaded:
    """All that a keeper holds: documents, the last events of all, and those of each node that is kept."""

    changes: Sequence[Change] = ()
    recent: Sequence[RegistryEvent] = ()
    histories: Mapping[str, Sequence[RegistryEvent]] = field(default_factory=dict)


class Store(Protocol):
    """Keeps documents and events. One writer: the registry that opened it.

    A document is what JSON can hold, with finite numbers. What is kept is a copy. An event joins the
    history of its node where that node's document is kept; the history goes with the document.
    """

    def load(self) -> Loaded:
        """Return all that is kept; raises `StoreError`."""

    def save(self, batches: Sequence[Batch]) -> None:
        """Store all of these, in order, or none; raises `StoreError`.

        After a `StoreError` either all of them are stored or none, and nobody knows which. So saving them
        again, alone or with later ones, must be harmless: an event is stored once under its id. A change
        without a document deletes what is stored under its key; that there is nothing is no error.
        """

    def backup(self, target: Path, *, overwrite: bool = False) -> None:
        """Write all that is kept now to a file, while others save; raises `StoreError`.

        What lies there is replaced only with `overwrite`.
        """

    def close(self) -> None:
        """Let go of what the keeper holds open; a second time does nothing."""


# What is kept, as JSON text: the same for every keeper, so that what one accepts all accept.
#
# Writes and reads text; keeps nothing.


def document_text(change: Change) -> str | None:
    """Write a change's document, None when it is let go; raises `UnkeepableError`."""
    what = f"the {change.kind.value} {change.key!r}"
    _check_name(change.key, what)
    return None if change.document is None else _text(change.document, what)


def fields_text(event: RegistryEvent) -> str:
    """Write an event's fields; raises `UnkeepableError`."""
    what = f"the event {event.event!r}"
    _check_name(event.node_id or "", what)
    return _text(event.fields, what)


def parse_text(text: str) -> Mapping[str, Any]:
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
        raise UnstorableError(f"{what} cannot be kept: its name is no text ({error.reason})") from error


def _text(value: Mapping[str, object], what: str) -> str:
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise UnstorableError(f"{what} cannot be kept: {error}; this is a bug, please report it") from error
