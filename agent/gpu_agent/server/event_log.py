"""The registry's event log: it numbers events, holds histories and recent events, and serves subscribers.

Bounded: a subscriber that does not keep up loses the oldest events and receives how many. Many readers read
them as server-sent events, each from where it left off. Writes no log and no file.
"""

import asyncio
import itertools
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from pydantic import TypeAdapter

from gpu_agent.registry.actions import Change, DocumentKind
from gpu_agent.store.base import EVENTS_PER_NODE, RECENT_EVENTS, Loaded
from gpu_agent.wire.api import RegistryEvent
from gpu_agent.wire.event_words import MISSED, is_warning

EVENTS_PER_SUBSCRIBER = 1000

MOST_STREAMS = 256
MOST_STREAMS_OF_ONE = 64
"""Of one token: a reader leaves room for others."""
HEARTBEAT_SECONDS = 15.0
WATCH_SECONDS = 1.0
"""How often a stream looks whether it is still valid, or its document has changed."""
MOST_IN_A_PIECE = 256
TOGETHER_SECONDS = 1 / 800
"""While events follow each other closely, what so long brings, times the number of streams, comes at once:
all streams together write at most 800 pieces a second, for each piece costs as much as a request. All wait
for the same moment, so that one text serves them all."""
OPENING = b"retry: 2000\n: every change from here on\n\n"
HEARTBEAT = b": still here\n\n"

_MOST_TEXTS = 1024
_EVENT = TypeAdapter(RegistryEvent)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFilter:
    """Conditions on an event, all of which must hold; one that is left out always holds."""

    node_id: str | None = None
    events: frozenset[str] = frozenset()
    """Any one of these identifiers."""
    warnings_only: bool = False
    since: float | None = None
    """Unix time in seconds."""

    def matches(self, event: RegistryEvent) -> bool:
        """Return whether every condition holds."""
        return (
            (self.node_id is None or event.node_id == self.node_id)
            and (not self.events or event.event in self.events)
            and (not self.warnings_only or is_warning(event))
            and (self.since is None or event.at >= self.since)
        )


ALL_EVENTS = EventFilter()


class _Feed:
    """The newest events, once for all subscribers: each knows how far it is."""

    def __init__(self) -> None:
        self.events: deque[RegistryEvent] = deque()
        self.end = 0
        """How many there were in all."""
        self.gone = 0
        """How many of them are not held any more; one that reports missed events counts as these."""
        self.reports_missed = False
        """Whether an event of this feed has reported missed events."""
        self.arrived = asyncio.Event()
        """Set for a moment whenever one has arrived."""

    def add(self, event: RegistryEvent) -> None:
        """Add an event; a full feed drops its oldest one."""
        if len(self.events) >= EVENTS_PER_SUBSCRIBER:
            self.gone += _count(self.events.popleft())
        self.events.append(event)
        self.end += 1
        self.reports_missed |= event.event == MISSED
        self.wake()

    def wake(self) -> None:
        """Let all that wait look."""
        self.arrived.set()
        self.arrived.clear()

    def count(self, events: Sequence[RegistryEvent]) -> int:
        """Count events of this feed as `gone` does."""
        return sum(map(_count, events)) if self.reports_missed else len(events)


class Subscriber:
    """How far one subscriber is."""

    def __init__(
        self, feed: _Feed, before: Iterable[RegistryEvent] = (), *, last_id: int | None = None
    ) -> None:
        self.last_id = last_id
        """The last event before the subscription; None when there was none."""
        self._before = deque(before)
        """Events from before the subscription; none of them is lost."""
        self._feed = feed
        self._next = feed.end
        """The place of the next event in the feed."""
        self._passed = feed.gone + feed.count(feed.events)
        """How many events are before that place."""

    @property
    def has_more(self) -> bool:
        """True when `next` need not wait."""
        return bool(self._before) or self._next < self._feed.end

    def take(self, most: int) -> list[RegistryEvent]:
        """Return what `next` would return without waiting, at most so many."""
        feed = self._feed
        taken = [self._before.popleft() for _ in range(min(most, len(self._before)))]
        oldest = feed.end - len(feed.events)
        if self._next < oldest and len(taken) < most:
            missed = {"count": feed.gone - self._passed}
            taken.append(RegistryEvent(feed.events[0].at, MISSED, fields=missed))
            self._next, self._passed = oldest, feed.gone
        if self._next < feed.end and len(taken) < most:
            first = self._next - oldest
            some = list(itertools.islice(feed.events, first, first + most - len(taken)))
            self._next += len(some)
            self._passed += feed.count(some)
            taken += some
        return taken

    async def next(self) -> RegistryEvent:
        """Wait for the next event; after a loss the first one says how many were missed."""
        while not self.has_more:
            await self._feed.arrived.wait()
        return self.take(1)[0]


def _count(event: RegistryEvent) -> int:
    """Count an event; one that reports missed events counts as these."""
    count = event.fields["count"] if event.event == MISSED else 1
    return count if isinstance(count, int) else 1


class RegistryEventLog:
    """The events of all nodes, and the subscribers.

    Holds what a `Store` does, by the same rules: a node's history begins when its document is first stored,
    and is deleted with it.
    """

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self._histories: dict[str, deque[RegistryEvent]] = {}
        self._recent: deque[RegistryEvent] = deque()
        self._feed = _Feed()
        self._subscribers = 0

    def restore(self, loaded: Loaded) -> None:
        """Go on from what a store has loaded."""
        self._recent.extend(loaded.recent)
        self.update_histories(loaded.changes)
        for node_id, events in loaded.histories.items():
            self._histories[node_id] = deque(events, EVENTS_PER_NODE)
        self._ids = itertools.count((self._recent[-1].id or 0) + 1 if self._recent else 1)
        self._feed.wake()

    def begin_again(self, loaded: Loaded) -> None:
        """Hold only what another history of the store has, such as a snapshot that was restored.

        Subscribers receive a report of missed events, without a count, and then its new events.
        """
        self._recent.clear()
        self._histories.clear()
        self.restore(loaded)
        at = self._recent[-1].at if self._recent else 0.0
        self._feed.add(RegistryEvent(at, MISSED, fields={"count": None}))

    def next_id(self) -> int:
        """Draw the id of the next event."""
        return next(self._ids)

    def update_histories(self, changes: Iterable[Change]) -> None:
        """Begin the histories of nodes whose documents are now stored, and delete those of deleted ones."""
        for change in changes:
            if change.kind is DocumentKind.NODE:
                if change.document is None:
                    self._histories.pop(change.key, None)
                elif change.key not in self._histories:
                    self._histories[change.key] = deque(maxlen=EVENTS_PER_NODE)

    def publish(self, event: RegistryEvent) -> None:
        """Add an event that is stored, and hand it to all subscribers.

        Ids that are left out are those of events that a long outage of the store dropped.
        """
        dropped = (event.id or 0) - (self._recent[-1].id or 0) - 1 if self._recent else 0
        if dropped > 0:
            self._recent.clear()
            self._feed.add(RegistryEvent(event.at, MISSED, fields={"count": dropped}))
        self._recent.append(event)
        oldest = (event.id or 0) - RECENT_EVENTS
        while (self._recent[0].id or 0) <= oldest:
            self._recent.popleft()
        history = self._histories.get(event.node_id or "")
        if history is not None:
            history.append(event)
        self._feed.add(event)

    @property
    def newest(self) -> RegistryEvent | None:
        """The newest event; None where there was none."""
        return self._recent[-1] if self._recent else None

    @property
    def last_id(self) -> int:
        """The id of the newest event; 0 where there was none."""
        return (self._recent[-1].id or 0) if self._recent else 0

    def later(self, after: int) -> Sequence[RegistryEvent]:
        """Return the events behind one that are still here, in order; it takes as long as there are such."""
        behind = self.last_id - after
        if behind <= 0:
            return ()
        newest = list(itertools.islice(reversed(self._recent), behind))
        return [one for one in reversed(newest) if (one.id or 0) > after]

    def latest(self, most: int, *, since: float) -> list[RegistryEvent]:
        """Return the newest events, the newest first: at most so many, none before a moment of Unix time."""
        newest = itertools.islice(reversed(self._recent), most)
        return list(itertools.takewhile(lambda event: event.at >= since, newest))

    def search(
        self, wanted: EventFilter = ALL_EVENTS, *, before: int | None = None
    ) -> Iterator[RegistryEvent]:
        """Yield the stored events of all nodes that are wanted, the newest first: those before an id."""
        for event in reversed(self._recent):
            if (before is None or (event.id or 0) < before) and wanted.matches(event):
                yield event

    def history_of(self, node_id: str) -> tuple[RegistryEvent, ...]:
        """Return a node's recent events, oldest first."""
        return tuple(self._histories.get(node_id, ()))

    @property
    def subscribers(self) -> int:
        """How many there are."""
        return self._subscribers

    @contextmanager
    def subscribe(self, *, after: int | None = None) -> Iterator[Subscriber]:
        """Subscribe for the length of a block, from now on or from the event `after` on."""
        last_id = self._recent[-1].id if self._recent else None
        before = () if after is None else self._since(after)
        self._subscribers += 1
        try:
            yield Subscriber(self._feed, before, last_id=last_id)
        finally:
            self._subscribers -= 1

    async def reach(self, event_id: int, *, within_seconds: float) -> bool:
        """Wait for an event, not for ever: an instance's copy may be behind the one that a reader left.

        Returns whether the event is reached.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(within_seconds):
                while self.last_id < event_id:
                    await self._feed.arrived.wait()
        return self.last_id >= event_id

    async def follow(self, *, after: int | None = None) -> AsyncIterator[RegistryEvent]:
        """Yield every event from now on, or after the one of that id, until the iterator is closed."""
        with self.subscribe(after=after) as subscriber:
            while True:
                yield await subscriber.next()

    def _since(self, after: int) -> Sequence[RegistryEvent]:
        """Return the events after one; where some of them are gone, the first one says so."""
        recent = self._recent
        oldest, newest = (recent[0].id or 0, recent[-1].id or 0) if recent else (1, 0)
        later = [event for event in recent if (event.id or 0) > after]
        if oldest - 1 <= after <= newest:
            return later
        at = later[0].at if later else 0.0
        return [RegistryEvent(at, MISSED, fields={"count": None}), *later]


def _always() -> bool:
    return True


class EventStreams:
    """The open streams of server-sent events of one server; each event is written once for all of them."""

    def __init__(self, *, most: int = MOST_STREAMS, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> None:
        self._most = most
        self._heartbeat_seconds = heartbeat_seconds
        self._open: Counter[str | None] = Counter()
        """By token id; with auth off under None."""
        self._closing = False
        self._waits: set[asyncio.Timeout] = set()
        self._moment: asyncio.Event | None = None
        """Set when all that wait for the same moment go on."""
        self._texts: dict[int, bytes] = {}
        self._newest: tuple[int | None, int | None, bytes] = (None, None, b"")
        """Ids of the first and the last event of the piece that was written last, and the piece."""

    @property
    def full(self) -> bool:
        """True while no further stream may open."""
        return self._closing or self._open.total() >= self._most

    def full_for(self, token_id: str | None) -> bool:
        """Whether one token has as many streams as it may; with auth off nobody has too many."""
        return token_id is not None and self._open[token_id] >= MOST_STREAMS_OF_ONE

    def close(self) -> None:
        """End all streams now, and open no other."""
        self._closing = True
        now = asyncio.get_running_loop().time()
        for wait in self._waits:
            if not wait.expired():
                wait.reschedule(now)

    async def stream(
        self,
        event_log: RegistryEventLog,
        *,
        after: int | None,
        wanted: EventFilter = ALL_EVENTS,
        follow: bool = True,
        token_id: str | None = None,
        is_valid: Callable[[], bool] = _always,
    ) -> AsyncGenerator[bytes, None]:
        """Write every event that is wanted from now on, or after the one of that id.

        Without `follow` the stream ends with the newest event; in any case once it is not valid any more.
        """
        now = asyncio.get_running_loop().time
        with self._counted(token_id), event_log.subscribe(after=after) as subscriber:
            yield _opening(subscriber, after)
            reader = _Reader(after, wanted)
            due, written_at = now() + self._heartbeat_seconds, 0.0
            while not self._closing and (follow or subscriber.has_more):
                piece = await self._piece(subscriber, reader, due=min(due, now() + WATCH_SECONDS))
                if not is_valid():
                    return
                if piece or now() >= due:
                    yield piece or reader.heartbeat()
                    due = now() + self._heartbeat_seconds
                before, written_at, period = written_at, now(), TOGETHER_SECONDS * self._open.total()
                waits = not subscriber.has_more and written_at - before < 2 * period
                if waits:
                    await self._same_moment(period - written_at % period)
                else:  # many old events must not keep other tasks waiting
                    await asyncio.sleep(0)

    async def watch(
        self,
        read: Callable[[], bytes],
        *,
        event: str,
        token_id: str | None = None,
        is_valid: Callable[[], bool] = _always,
    ) -> AsyncGenerator[bytes, None]:
        """Write a document of one line now, and again when it has changed; looks once a second."""
        now = asyncio.get_running_loop().time
        with self._counted(token_id):
            written, due = b"", 0.0
            while not self._closing and is_valid():
                document = read()
                if document != written or now() >= due:
                    yield HEARTBEAT if document == written else _block(event, document)
                    written, due = document, now() + self._heartbeat_seconds
                await self._pause(WATCH_SECONDS)

    async def _same_moment(self, seconds: float) -> None:
        """Wait until so long has passed for the first stream that waits: one timer serves them all."""
        if self._moment is None:
            self._moment = asyncio.Event()
            asyncio.get_running_loop().call_later(seconds, self._end_moment)
        await self._moment.wait()

    def _end_moment(self) -> None:
        moment, self._moment = self._moment, None
        if moment is not None:
            moment.set()

    @contextmanager
    def _counted(self, token_id: str | None) -> Iterator[None]:
        self._open[token_id] += 1
        try:
            yield
        finally:
            self._open[token_id] -= 1
            if not self._open[token_id]:
                del self._open[token_id]

    async def _pause(self, seconds: float) -> None:
        """Wait, and no longer once the streams close."""
        wait = asyncio.timeout(seconds)
        with suppress(TimeoutError):
            async with wait:
                self._waits.add(wait)
                try:
                    await asyncio.Event().wait()
                finally:
                    self._waits.discard(wait)

    async def _piece(self, subscriber: Subscriber, reader: "_Reader", *, due: float) -> bytes:
        """Wait for an event, and write it with those that wait behind it; nothing when `due` passes."""
        events = subscriber.take(MOST_IN_A_PIECE)
        if not events:
            event = await self._next(subscriber, due=due)
            if event is None:
                return b""
            events = [event, *subscriber.take(MOST_IN_A_PIECE - 1)]
        if reader.takes_all(events):
            return self._joined(events)
        return b"".join([self._text(one) for one in events if reader.wants(one)])

    def _joined(self, events: Sequence[RegistryEvent]) -> bytes:
        """Write numbered events without a gap, once for all followers that are as far."""
        first, last = events[0].id, events[-1].id
        if self._newest[:2] != (first, last):
            self._newest = (first, last, b"".join([self._text(one) for one in events]))
        return self._newest[2]

    async def _next(self, subscriber: Subscriber, *, due: float) -> RegistryEvent | None:
        """Wait for an event; None when a heartbeat is due, or the stream closes."""
        wait = asyncio.timeout_at(due)
        try:
            async with wait:
                self._waits.add(wait)
                return await subscriber.next()
        except TimeoutError:
            return None
        finally:
            self._waits.discard(wait)

    def _text(self, event: RegistryEvent) -> bytes:
        if event.id is None:
            return _server_sent(event)
        text = self._texts.get(event.id)
        if text is None:
            if len(self._texts) >= _MOST_TEXTS:
                self._texts.clear()
            text = self._texts[event.id] = _server_sent(event)
        return text


class _Reader:
    """Which events one reader wants, and which it has received."""

    def __init__(self, after: int | None, wanted: EventFilter) -> None:
        self._wanted = wanted
        self._last_seen = self._last_sent = after

    def takes_all(self, events: Sequence[RegistryEvent]) -> bool:
        """Say whether all events go to the reader, and are numbered without a gap."""
        first, last = events[0].id, events[-1].id
        if self._wanted is not ALL_EVENTS or first is None or last is None or last - first + 1 != len(events):
            return False
        self._last_seen = self._last_sent = last
        return True

    def wants(self, event: RegistryEvent) -> bool:
        """Say whether an event goes to the reader."""
        wanted = event.event == MISSED or self._wanted.matches(event)
        if event.id is not None:
            self._last_seen = event.id
            self._last_sent = event.id if wanted else self._last_sent
        return wanted

    def heartbeat(self) -> bytes:
        """Write a heartbeat, with the id of the last event that was left out for this reader, if any was."""
        if self._last_seen == self._last_sent:
            return HEARTBEAT
        self._last_sent = self._last_seen
        return f"id: {self._last_seen}\n\n".encode()


def _opening(subscriber: Subscriber, after: int | None) -> bytes:
    """Write the first lines, with the id from which the reader can go on even if no event follows."""
    if after is not None or subscriber.last_id is None:
        return OPENING
    return OPENING + f"id: {subscriber.last_id}\n\n".encode()


def _block(event: str, data: bytes) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (event.encode(), data)


def _server_sent(event: RegistryEvent) -> bytes:
    numbered = b"" if event.id is None else f"id: {event.id}\n".encode()
    return b"%sevent: %s\ndata: %s\n\n" % (numbered, event.event.encode(), _EVENT.dump_json(event))
