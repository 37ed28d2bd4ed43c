"""A list of the fleet's actions made ready for its way: what must be kept first, and what is done then.

A note that is more than a matter of debugging is kept as an event, numbered here. Keeps nothing
and tells nothing itself.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from gpu_agent.registry.actions import Action as Asked
from gpu_agent.registry.actions import (
    Answer,
    Change,
    CloseConnection,
    Level,
    Note,
    Save,
    Send,
    TellStatus,
)
from gpu_agent.registry.documents import Restored
from gpu_agent.server.chronicle import Chronicle
from gpu_agent.server.clock import Clock
from gpu_agent.store.base import Batch, RegistryEvent

WRITTEN_AT = "written_at"
DOCUMENT = "document"

LOGGED_ONLY = frozenset({"dispatch_failed", "dispatch_candidate_excluded"})
"""Notes of every failed placement: they go to the log and are counted; nobody's history needs them."""


@dataclass(frozen=True, slots=True)
class Publish:
    """Log an event, and hand it to those who listen."""

    event: RegistryEvent
    level: Level


@dataclass(frozen=True, slots=True)
class Open:
    """Begin and end nodes' histories as their documents are kept and let go."""

    changes: Sequence[Change]


Doing = Send | TellStatus | CloseConnection | Answer | Note | Publish | Open


@dataclass(frozen=True, slots=True)
class Ready:
    """A list made ready."""

    batch: Batch | None
    """What is kept before anything is done; None when that is nothing."""
    save: int | None
    """The number of the save that the batch holds."""
    doings: Sequence[Doing]


class Clerk:
    """Makes lists ready."""

    def __init__(self, chronicle: Chronicle, clock: Clock) -> None:
        self._chronicle = chronicle
        self._clock = clock

    def make_ready(self, actions: Sequence[Asked]) -> Ready:
        """Sort a list, which stays in its order."""
        doings: list[Doing] = []
        changes: list[Change] = []
        events: list[RegistryEvent] = []
        save: int | None = None
        for action in actions:
            if isinstance(action, Save):
                save = action.save
                changes += self._dated(action.changes)
                doings.append(Open(changes))
            elif isinstance(action, Note) and _is_kept(action):
                event = self._event(action)
                events.append(event)
                doings.append(Publish(event, action.level))
            else:
                doings.append(action)
        return Ready(Batch(changes, events) if events or save is not None else None, save, doings)

    def _dated(self, changes: Iterable[Change]) -> list[Change]:
        """Write beside each document when it was written, by wall time."""
        now = round(self._clock.wall(), 3)
        return [
            change
            if change.document is None
            else Change(change.kind, change.key, {WRITTEN_AT: now, DOCUMENT: change.document})
            for change in changes
        ]

    def _event(self, note: Note) -> RegistryEvent:
        node_id = note.fields.get("node_id")
        return RegistryEvent(
            at=round(self._clock.wall(), 3),
            event=note.event,
            node_id=node_id if isinstance(node_id, str) else None,
            fields={name: value for name, value in note.fields.items() if name != "node_id"},
            id=self._chronicle.next_id(),
        )


def unkept(doings: Iterable[Doing]) -> list[Doing]:
    """Take the numbers off events that are told although they could not be kept."""
    return [
        Publish(replace(doing.event, id=None), doing.level) if isinstance(doing, Publish) else doing
        for doing in doings
    ]


def _is_kept(note: Note) -> bool:
    return note.level is not Level.DEBUG and note.event not in LOGGED_ONLY


def restored(kept: Iterable[Change], now: float) -> Iterator[Restored]:
    """Say of each document that was made ready once how long ago that was, by wall time."""
    for change in kept:
        wrapped = change.document or {}
        document, written_at = wrapped.get(DOCUMENT), wrapped.get(WRITTEN_AT)
        if isinstance(document, Mapping) and isinstance(written_at, int | float):
            yield Restored(change.kind, change.key, document, now - written_at)
