"""What happened, for whoever asks later or listens now: bounded, so that nobody's interest costs memory.

Keeps a short history of each known node and hands every event on to those who subscribed. A
listener that does not keep up loses the oldest events and is told how many. Writes no log.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

EVENTS_PER_NODE = 50
EVENTS_PER_LISTENER = 1000
MISSED = "events_missed"

_OPENING = frozenset({"node_registered", "node_status_changed"})
"""Only these begin a history: whoever merely claims an id must not make the registry remember it."""

_CLOSING = frozenset({"node_removed", "node_purged"})
"""With a node's record its history goes."""


@dataclass(frozen=True, slots=True)
class RegistryEvent:
    """One thing that happened, under its identifier of §8; `at` is Unix time."""

    at: float
    event: str
    node_id: str | None = None
    fields: Mapping[str, object] = field(default_factory=dict)


class Listener:
    """One subscriber's queue of events; iterating waits for the next one."""

    def __init__(self) -> None:
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

    async def next(self) -> RegistryEvent:
        """Wait for the next event; after a loss, the first one says how many were missed."""
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        if self._missed:
            missed, self._missed = self._missed, 0
            return RegistryEvent(self._waiting[0].at, MISSED, fields={"count": missed})
        return self._waiting.popleft()


class Chronicle:
    """The recent past of all nodes, and those who listen."""

    def __init__(self) -> None:
        self._histories: dict[str, deque[RegistryEvent]] = {}
        self._listeners: set[Listener] = set()

    def add(self, event: RegistryEvent) -> None:
        """Write an event down for its node, if it has one, and hand it to all listeners."""
        if event.node_id is not None:
            self._remember(event.node_id, event)
        for listener in self._listeners:
            listener.offer(event)

    def of(self, node_id: str) -> tuple[RegistryEvent, ...]:
        """Return a node's recent events, oldest first."""
        return tuple(self._histories.get(node_id, ()))

    @contextmanager
    def listening(self) -> Iterator[Listener]:
        """Subscribe for the length of a block."""
        listener = Listener()
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    def _remember(self, node_id: str, event: RegistryEvent) -> None:
        if event.event in _CLOSING:
            self._histories.pop(node_id, None)
            return
        if event.event in _OPENING:
            self._histories.setdefault(node_id, deque(maxlen=EVENTS_PER_NODE))
        if node_id in self._histories:
            self._histories[node_id].append(event)


async def follow(chronicle: Chronicle) -> AsyncIterator[RegistryEvent]:
    """Yield every event from now on, until the iterator is closed."""
    with chronicle.listening() as listener:
        while True:
            yield await listener.next()
