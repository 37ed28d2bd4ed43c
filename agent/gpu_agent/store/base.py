"""The contract that every store of the registry's state fulfils, and the JSON text that all of them write.

A store holds documents under a kind and a key, and events in order. It knows no statuses, no claims and no
clock: the fleet gives documents their meaning. Their times are wall time because they survive a reboot.

To add a store:

1. a module beside this one that fulfils `Store`. A backup is an SQLite database, whatever the store: write
   one, or raise `NothingToBackUpError`;
2. `server.storage`: its class in `Location`, its form in `parse_location` and in the words of the setting,
   and its `case` in `open_store`, `restore` and `_is_at`, which mypy asks for; `secure_location` where it is
   a folder, and `refuse_foreign_state_dir` for the name of its file;
3. `tests/store/test_NAME.py`, whose class inherits `StoreContract`;
4. `docs/explanation/durability.md`, `open_store` in `docs/howto/embedding.md`, and `make reference`.

A library that it needs is an extra in `pyproject.toml` and has its one door in `.importlinter`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from gpu_agent.registry.actions import Change
from gpu_agent.wire.api import RegistryEvent

EVENTS_PER_NODE = 50
"""The length of a node's history, for as long as the node's document is stored."""

RECENT_EVENTS = 10_000
"""Besides the histories a store holds every event whose id is less than this behind the newest."""


class StoreError(Exception):
    """The store could not do it: a fault of the machine, with the next step in its sentence.

    The root of this package's exceptions.
    """


class UnusableError(StoreError):
    """This release cannot read what is stored there: a person has to fix it."""


class NothingToBackUpError(StoreError):
    """The store has no file on a disk."""


class UnstorableError(StoreError):
    """No store can hold a document or an event of this form: our fault; the store works."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Changes and events that are stored together; each event has an id above all before it."""

    changes: Sequence[Change] = ()
    events: Sequence[RegistryEvent] = ()


@dataclass(frozen=True, slots=True)
class Loaded:
    """All that a store holds: documents, the recent events, and the history of each stored node."""

    changes: Sequence[Change] = ()
    recent: Sequence[RegistryEvent] = ()
    histories: Mapping[str, Sequence[RegistryEvent]] = field(default_factory=dict)


class Store(Protocol):
    """Holds documents and events. One writer: the registry that opened it.

    A document is what JSON can hold, with finite numbers; the store holds a copy. An event joins the history
    of its node while that node's document is stored; the history is deleted with the document.
    """

    def load(self) -> Loaded:
        """Return all that is stored; raises `StoreError`."""

    def save(self, batches: Sequence[Batch]) -> None:
        """Store all of these, in order, or none; raises `StoreError`.

        After a `StoreError` either all of them are stored or none; the caller cannot know which. So it must
        be harmless to save them again, alone or with later ones: an event is stored once under its id. A
        change without a document deletes what is stored under its key, if anything is.
        """

    def backup(self, target: Path, *, overwrite: bool = False) -> None:
        """Write all that is stored now to a file, while others save; raises `StoreError`.

        A file that lies at `target` is replaced only with `overwrite`.
        """

    def close(self) -> None:
        """Release what the store holds open; a second time does nothing."""


def document_text(change: Change) -> str | None:
    """Write a change's document as JSON text, None where it is deleted; raises `UnstorableError`."""
    what = f"the {change.kind.value} {change.key!r}"
    _check_name(change.key, what)
    return None if change.document is None else _text(change.document, what)


def fields_text(event: RegistryEvent) -> str:
    """Write an event's fields as JSON text; raises `UnstorableError`."""
    what = f"the event {event.event!r}"
    _check_name(event.node_id or "", what)
    return _text(event.fields, what)


_JSON = json.JSONEncoder(allow_nan=False, separators=(",", ":"))


def parse_text(text: str) -> Mapping[str, Any]:
    """Read a document or an event's fields back; raises `ValueError`."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004 - the text is at fault, not its type
    return value


def _check_name(name: str, what: str) -> None:
    """A name is compared byte by byte, so it must be text that has bytes."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UnstorableError(f"{what} cannot be stored: its name is no text ({error.reason})") from error


def _text(value: Mapping[str, object], what: str) -> str:
    try:
        return _JSON.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise UnstorableError(f"{what} cannot be stored: {error}; this is a bug, please report it") from error
