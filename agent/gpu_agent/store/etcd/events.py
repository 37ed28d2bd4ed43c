"""The events in etcd, and the histories of nodes that they make up.

The events of one commit lie under one key, and keys go by the commit's number. A node's history is no list of
its own: the node's document says after which event it begins, and its newest events since are the history. So
it ends with the document, and costs nothing while events are recent.

Keys whose events are all old are compacted in runs: what belongs to a history goes on under the last key of
the run, the rest is deleted. An older run is compacted again in turn, as its events leave their histories.
"""

import json
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from gpu_agent.store.base import EVENTS_PER_NODE, RECENT_EVENTS, fields_text, parse_text
from gpu_agent.store.etcd.client import Delete, EtcdError, KeyValue, Put
from gpu_agent.wire.api import RegistryEvent

_TRIM_EVENTS = 256
"""Old events are looked for after so many new ones."""
_KEY_BYTES = 256 * 1024
"""The events of a commit go under several keys beyond this."""
_RUN_BYTES = 256 * 1024
"""A run that is read for compaction is about this large at most."""
_COMPACTED_BYTES = 64 * 1024
"""A run smaller than this is compacted together with the next one."""

Read = Callable[[bytes, bytes], Iterable[KeyValue]]
"""Reads the keys from the first one to before the second one."""


@dataclass(frozen=True, slots=True)
class History:
    """Which events of a stored node are its history."""

    after: int
    """Only events with greater ids belong to it: those before are another life's of its id."""
    ids: "array[int]" = field(default_factory=lambda: array("q"))
    """The newest, in order."""

    def with_event(self, number: int) -> "History":
        """Return it with one more event, or unchanged where the event belongs to it already, or never."""
        if number <= self.after or (self.ids and number <= self.ids[-1]):
            return self
        ids = self.ids[-EVENTS_PER_NODE + 1 :]
        ids.append(number)
        return History(self.after, ids)


class _Group(NamedTuple):
    newest: int
    size: int


@dataclass(slots=True)
class EventIndex:
    """What a writer must know of the stored events to plan the next commit."""

    newest: int = 0
    """The greatest id."""
    histories: dict[str, History] = field(default_factory=dict)
    """Of each stored node."""
    groups: dict[bytes, _Group] = field(default_factory=dict)
    """The keys that hold events, in order."""
    compacted: bytes = b""
    """Keys up to this one are compacted."""
    swept: bytes = b""
    """The compacted key up to which compaction in turn has come."""
    trim_at: int = 0
    """From this event id on, old events are looked for."""

    def add(self, key: bytes, size: int, events: Sequence[RegistryEvent]) -> None:
        """Take in a key as it is stored; keys come in order."""
        numbers = [one.id or 0 for one in events]
        self.groups[key] = _Group(max(numbers, default=0), size)
        self.newest = max(self.newest, self.groups[key].newest)
        for one in events:
            history = self.histories.get(one.node_id or "")
            if history is not None:
                self.histories[one.node_id or ""] = history.with_event(one.id or 0)


class EventPlan:
    """What a commit does to events and histories; only `adopt`, once it is stored, changes the index."""

    def __init__(self, index: EventIndex, first_id: int | None) -> None:
        """`first_id` is that of the commit's first event."""
        self._index = index
        self._before = index.newest if first_id is None else min(index.newest, first_id - 1)
        """The event before what comes next; a commit may repeat events that are stored."""
        self._newest = index.newest
        self._histories: dict[str, History | None] = {}
        self._groups: dict[bytes, _Group | None] = {}
        self._rows: list[str] = []
        self._compacted, self._swept, self._trim_at = index.compacted, index.swept, index.trim_at

    def store_node(self, node_id: str) -> int:
        """Return after which event the history of a node that is stored begins."""
        history = self._history(node_id)
        if history is None:
            history = self._histories[node_id] = History(self._before)
        return history.after

    def delete_node(self, node_id: str) -> None:
        """End the node's history."""
        self._histories[node_id] = None

    def add(self, event: RegistryEvent) -> None:
        """Store an event, unless it is stored; raises `UnstorableError`."""
        text, number, node_id = fields_text(event), event.id or 0, event.node_id
        self._before = number
        if number > self._newest:
            self._newest = number
            self._rows.append(_row((number, event.at, event.event, node_id, text)))
        if node_id is not None and (history := self._history(node_id)) is not None:
            self._histories[node_id] = history.with_event(number)

    def writes(self, new_key: Callable[[int], bytes], read: Read) -> Iterator[Put | Delete]:
        """Store the new events and compact old ones; `new_key` names the commit's keys in order.

        Old ones that cannot be read now are compacted with a later commit.
        """
        newest = self._newest
        for number, rows in enumerate(_parts(self._rows)):
            key, value = new_key(number), _value(rows)
            self._groups[key] = _Group(newest, len(value))
            yield Put(key, value)
        if newest >= self._trim_at:
            self._trim_at = newest + _TRIM_EVENTS
            with suppress(EtcdError):
                yield from self._trim(newest, read)

    def adopt(self) -> None:
        """Change the index: the commit is stored."""
        index = self._index
        index.newest, index.trim_at = self._newest, self._trim_at
        index.compacted, index.swept = self._compacted, self._swept
        for changed, known in ((self._histories, index.histories), (self._groups, index.groups)):
            _update(changed, known)  # type: ignore[arg-type]

    def _trim(self, newest: int, read: Read) -> Iterator[Put | Delete]:
        """Compact a run of keys whose events are all old, and an older run in turn; raises `EtcdError`."""
        old = [key for key, group in self._index.groups.items() if group.newest <= newest - RECENT_EVENTS]
        fresh = [key for key in old if key > self._index.compacted]
        compacted = old[: len(old) - len(fresh)]
        if fresh:
            if compacted and self._size(compacted[-1]) < _COMPACTED_BYTES:
                fresh.insert(0, compacted.pop())
            run = self._run(fresh)
            yield from self._compact(run, read)
            self._compacted = run[-1]
        swept = [key for key in compacted if key > self._index.swept] or compacted
        if swept:
            run = self._run(swept[:2])
            yield from self._compact(run, read)
            self._swept = run[0]

    def _history(self, node_id: str) -> History | None:
        if node_id in self._histories:
            return self._histories[node_id]
        return self._index.histories.get(node_id)

    def _size(self, key: bytes) -> int:
        return self._index.groups[key].size

    def _run(self, keys: Sequence[bytes]) -> list[bytes]:
        """Return the first of these keys, as many as may be read together, but at least one."""
        run, size = [keys[0]], self._size(keys[0])
        for key in keys[1:]:
            size += self._size(key)
            if size > _RUN_BYTES:
                break
            run.append(key)
        return run

    def _compact(self, run: Sequence[bytes], read: Read) -> Iterator[Put | Delete]:
        """Put what still belongs to a history under the last key of the run, and delete the rest."""
        first, last = run[0], run[-1]
        rows = [row for one in read(first, last + b"\0") for row in json.loads(one.value)]
        live = [row for row in rows if self._is_live(row[0], row[3])]
        if len(live) == len(rows) and len(run) == 1:
            return
        if len(run) > 1:
            yield Delete(first, last)
            self._groups.update(dict.fromkeys(run[:-1]))
        if live:
            value = _value(map(_row, live))
            self._groups[last] = _Group(live[-1][0], len(value))
            yield Put(last, value)
        else:
            self._groups[last] = None
            yield Delete(last)

    def _is_live(self, number: int, node_id: str | None) -> bool:
        history = None if node_id is None else self._history(node_id)
        return history is not None and bool(history.ids) and number >= history.ids[0]


class EventReader:
    """Reads the values under events' keys; most events repeat the fields of others, so each is held once."""

    def __init__(self) -> None:
        self._names: dict[str | None, str | None] = {}
        self._fields: dict[str, Mapping[str, object]] = {}

    def read(self, value: bytes) -> list[RegistryEvent]:
        """Raises `ValueError`, `TypeError` for what is no such value."""
        events = []
        for number, at, event, node_id, text in json.loads(value):
            fields = self._fields.get(text)
            if fields is None:
                fields = self._fields[text] = parse_text(text)
            node = self._names.setdefault(node_id, node_id)
            events.append(RegistryEvent(float(at), sys.intern(event), node, fields, int(number)))
        return events


def event_values(events: Iterable[RegistryEvent]) -> Iterator[bytes]:
    """Write events as values of keys, in order; raises `UnstorableError`."""
    rows = [_row((one.id or 0, one.at, one.event, one.node_id, fields_text(one))) for one in events]
    return map(_value, _parts(rows))


def _update(changed: Mapping[object, object], known: dict[object, object]) -> None:
    for key, value in changed.items():
        if value is None:
            known.pop(key, None)
        else:
            known[key] = value  # in its place where it is there already


def _parts(rows: Sequence[str]) -> Iterator[list[str]]:
    part: list[str] = []
    size = 0
    for row in rows:
        if part and size + len(row) > _KEY_BYTES:
            yield part
            part, size = [], 0
        part.append(row)
        size += len(row)
    if part:
        yield part


def _row(row: Sequence[object]) -> str:
    """Write an id, a time, a name, a node's id or None, and the fields as text."""
    return json.dumps(row, separators=(",", ":"))


def _value(rows: Iterable[str]) -> bytes:
    return f"[{','.join(rows)}]".encode()
