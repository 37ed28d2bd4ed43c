"""The registry's event log: numbers events, keeps each node's history and the last events, serves subscribers.

Bounded: a subscriber that does not keep up loses the oldest events and receives how many. Streams events as text
(server-sent events) for many readers, each from where it left off. Writes no log and no file.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from pydantic import TypeAdapter

from gpu_agent.registry.actions import Change, DocumentKind
from gpu_agent.store.base import EVENTS_PER_NODE, RECENT_EVENTS, Loaded
from gpu_agent.wire.api import RegistryEvent

# What happened, for whoever asks later or listens now: bounded, so that nobody's interest costs memory.
#
# Numbers the events, keeps a short history of each known node and the last events of all, and hands
# every event on to those who subscribed. A listener that does not keep up loses the oldest events and
# is told how many. Writes no log and no file.


__all__ = ["EVENTS_PER_LISTENER", "MISSED", "RegistryEvent", "RegistryEventLog", "Subscriber", "follow"]

EVENTS_PER_LISTENER = 1000
MISSED = "events_missed"


class Subscriber:
    """One subscriber's queue of events; iterating waits for the next one."""

    def __init__(self, before: Iterable[RegistryEvent] = (), *, reached: int | None = None) -> None:
        self.reached = reached
        """The last event before the subscription; None when there was none."""
        self._before = deque(before)
        """What happened before the subscription; none of it is lost."""
        self._waiting: deque[RegistryEvent] = deque()
        self._missed = 0
        self._arrived = asyncio.Event()

    def offer(self, event: RegistryEvent) -> None:
        """Queue an event; the oldest one goes when the queue is full."""
        if len(self._waiting) >= EVENTS_PER_LISTENER:
            self._waiting.popleft()
            self._missed += 1
        self._waiting.append(event)
        self._arrived.set()

    @property
    def has_more(self) -> bool:
        """True when `next` need not wait."""
        return bool(self._before or self._waiting)

    async def next(self) -> RegistryEvent:
        """Wait for the next event; after a loss, the first one says how many were missed."""
        if self._before:
            return self._before.popleft()
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        if self._missed:
            missed, self._missed = self._missed, 0
            return RegistryEvent(self._waiting[0].at, MISSED, fields={"count": missed})
        return self._waiting.popleft()


class RegistryEventLog:
    """The recent past of all nodes, and those who listen.

    Remembers what a `Store` would, by the same rules: a history begins when its node's document is
    first kept, and goes with it.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._histories: dict[str, deque[RegistryEvent]] = {}
        self._recent: deque[RegistryEvent] = deque()
        self._listeners: set[Subscriber] = set()

    def restore(self, loaded: Loaded) -> None:
        """Go on from what a store kept."""
        self._recent.extend(loaded.recent)
        self.keep(loaded.changes)
        for node_id, events in loaded.histories.items():
            self._histories[node_id] = deque(events, EVENTS_PER_NODE)
        self._numbers = itertools.count((self._recent[-1].id or 0) + 1 if self._recent else 1)

    def next_id(self) -> int:
        """Draw the number of the event that comes next."""
        return next(self._numbers)

    def keep(self, changes: Iterable[Change]) -> None:
        """Begin the histories of the nodes that are kept from now on, and drop those of which are not."""
        for change in changes:
            if change.kind is DocumentKind.NODE:
                if change.document is None:
                    self._histories.pop(change.key, None)
                elif change.key not in self._histories:
                    self._histories[change.key] = deque(maxlen=EVENTS_PER_NODE)

    def add(self, event: RegistryEvent) -> None:
        """Write down an event that is kept, and hand it to all listeners, kept or not."""
        if event.id is not None:
            self._recent.append(event)
            while (self._recent[0].id or 0) <= event.id - RECENT_EVENTS:
                self._recent.popleft()
            history = self._histories.get(event.node_id or "")
            if history is not None:
                history.append(event)
        for listener in self._listeners:
            listener.offer(event)

    def of(self, node_id: str) -> tuple[RegistryEvent, ...]:
        """Return a node's recent events, oldest first."""
        return tuple(self._histories.get(node_id, ()))

    @property
    def listeners(self) -> int:
        """How many follow."""
        return len(self._listeners)

    @contextmanager
    def listening(self, *, after: int | None = None) -> Iterator[Subscriber]:
        """Subscribe for the length of a block, from now on or from the event `after` on."""
        reached = self._recent[-1].id if self._recent else None
        listener = Subscriber(() if after is None else self._since(after), reached=reached)
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    def _since(self, after: int) -> Sequence[RegistryEvent]:
        """What came after an event; where that is not known in full, the first thing says so."""
        recent = self._recent
        oldest, newest = (recent[0].id or 0, recent[-1].id or 0) if recent else (1, 0)
        later = [event for event in recent if (event.id or 0) > after]
        if oldest - 1 <= after <= newest:
            return later
        at = later[0].at if later else 0.0
        return [RegistryEvent(at, MISSED, fields={"count": None}), *later]


async def follow(chronicle: RegistryEventLog, *, after: int | None = None) -> AsyncIterator[RegistryEvent]:
    """Yield every event from now on, or after the one of that id, until the iterator is closed."""
    with chronicle.listening(after=after) as listener:
        while True:
            yield await listener.next()


# Events as a stream of text for many readers at once (server-sent events), each from where it left off.
#
# Bounded in readers, and per reader in what waits for it: who reads slowly loses the oldest events
# and is told how many. Each event is written once, however many read it. Knows no web framework.


MOST_STREAMS = 256
HEARTBEAT_SECONDS = 15.0
MOST_IN_A_PIECE = 64
OPENING = b"retry: 2000\n: every change from here on\n\n"
HEARTBEAT = b": still here\n\n"

_MOST_TEXTS = 1024
_EVENT = TypeAdapter(RegistryEvent)


class EventSource(Protocol):
    """Where events come from."""

    def listening(self, *, after: int | None) -> AbstractContextManager[Subscriber]:
        """Subscribe for the length of a block."""


class EventStreams:
    """The open streams of one server."""

    def __init__(self, *, most: int = MOST_STREAMS, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> None:
        self._most = most
        self._heartbeat_seconds = heartbeat_seconds
        self._open = 0
        self._closing = False
        self._waits: set[asyncio.Timeout] = set()
        self._texts: dict[int, bytes] = {}

    @property
    def full(self) -> bool:
        """True while nobody else may read."""
        return self._closing or self._open >= self._most

    def close(self) -> None:
        """End all streams now, and begin no other."""
        self._closing = True
        now = asyncio.get_running_loop().time()
        for wait in self._waits:
            if not wait.expired():
                wait.reschedule(now)

    async def stream(
        self, source: EventSource, *, after: int | None, node_id: str | None = None, on: bool = True
    ) -> AsyncGenerator[bytes, None]:
        """Write every event from now on, or after the one of that id; of one node if one is named.

        Goes on as long as the reader does, unless `on` is false: then it ends where the present begins.
        """
        now = asyncio.get_running_loop().time
        self._open += 1
        try:
            with source.listening(after=after) as listener:
                yield _opening(listener, after)
                reader = _Reader(after, node_id)
                due = now() + self._heartbeat_seconds
                while not self._closing and (on or listener.has_more):
                    piece = await self._piece(listener, reader, due=due)
                    if piece or now() >= due:
                        yield piece or reader.sign_of_life()
                        due = now() + self._heartbeat_seconds
                    await asyncio.sleep(0)  # a long past must not keep others waiting
        finally:
            self._open -= 1

    async def _piece(self, listener: Subscriber, reader: "_Reader", *, due: float) -> bytes:
        """Wait for something to write, and write with it what waits behind it; nothing when `due` passes."""
        event = await self._next(listener, due=due)
        if event is None:
            return b""
        piece = bytearray()
        for place in range(MOST_IN_A_PIECE):
            if place:
                event = await listener.next()
            if reader.wants(event):
                piece += self._text(event)
            if not listener.has_more:
                break
        return bytes(piece)

    async def _next(self, listener: Subscriber, *, due: float) -> RegistryEvent | None:
        """Wait for an event; None when it is time for a sign of life, or to go."""
        wait = asyncio.timeout_at(due)
        try:
            async with wait:
                self._waits.add(wait)
                return await listener.next()
        except TimeoutError:
            return None
        finally:
            self._waits.discard(wait)

    def _text(self, event: RegistryEvent) -> bytes:
        if event.id is None:
            return _written(event)
        text = self._texts.get(event.id)
        if text is None:
            if len(self._texts) >= _MOST_TEXTS:
                self._texts.clear()
            text = self._texts[event.id] = _written(event)
        return text


class _Reader:
    """One reader's wish, and how far it has come."""

    def __init__(self, after: int | None, node_id: str | None) -> None:
        self._node_id = node_id
        self._seen = after
        self._told = after

    def wants(self, event: RegistryEvent) -> bool:
        """Say whether the reader is told an event."""
        wanted = self._node_id is None or event.node_id == self._node_id or event.event == MISSED
        if event.id is not None:
            self._seen = event.id
            self._told = event.id if wanted else self._told
        return wanted

    def sign_of_life(self) -> bytes:
        """Write a sign of life, and how far a reader has come who was not told of everything."""
        if self._seen == self._told:
            return HEARTBEAT
        self._told = self._seen
        return f"id: {self._seen}\n\n".encode()


def _opening(listener: Subscriber, after: int | None) -> bytes:
    """Say to a reader from where on it reads, so that it can go on even if it hears of nothing."""
    if after is not None or listener.reached is None:
        return OPENING
    return OPENING + f"id: {listener.reached}\n\n".encode()


def _written(event: RegistryEvent) -> bytes:
    numbered = b"" if event.id is None else f"id: {event.id}\n".encode()
    return b"%sevent: %s\ndata: %s\n\n" % (numbered, event.event.encode(), _EVENT.dump_json(event))
