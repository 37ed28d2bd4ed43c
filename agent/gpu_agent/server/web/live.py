"""What changes on open pages: each element is rendered once per change, for all viewers.

A page is made of parts, each an element with an id. A part has a *look*: a value that is equal as long as
the element looks the same, and cheap enough to compare for each row of each open page twice a second. Only
where the look differs is the template rendered. Each rendering has a serial number; a page says up to which
one it has, so the stream sends what is newer, and after a lost connection what came meanwhile.

Viewers of the same page with the same filters share a feed: it looks once for all of them, and writes one
message. A viewer that reads slowly gets the newest state of what changed, and nothing in between.

Rows never move or appear by themselves: a stream goes on with the rows that its page has, and says once that
another order, or other rows, would be shown now.
"""

import asyncio
import hashlib
import json
import secrets
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

LOOK_SECONDS = 0.5
ORDER_SECONDS = 2.0
"""How often it is looked whether a list would show other rows: that may take a look at every node."""
ALIVE_SECONDS = 5.0
"""A stream says at least so often that it is alive; the script counts on it."""
MARK_DIGITS = 16
MOST_STREAMS = 128
MOST_STREAMS_OF_ONE = 96
"""Of one operator token, with all its sessions: a browser closes the stream of a page that is hidden."""
SLICE_SECONDS = 0.02
"""So long a look renders before other tasks run."""
_MOST_PARTS = 4096
_MOST_CHARACTERS = 32 * 1024 * 1024
_MOST_ORDERS = 512
_SERIAL_DIGITS = 15


@dataclass(frozen=True, slots=True)
class Part:
    """An element of a page that changes by itself."""

    id: str
    """The element's id."""
    look: Hashable
    """Equal while the element looks the same."""
    html: Callable[[], str]
    variant: str = ""
    """Distinguishes what people with different roles see."""


@dataclass(frozen=True, slots=True)
class LiveView:
    """What of one page changes by itself, for people with one role and with one set of filters."""

    page: str
    key: Hashable
    """Equal for viewers who see the same."""
    parts: Callable[[Sequence[str]], Iterable[Part]]
    """The parts as they are now, given the rows that the page has."""
    order: Callable[[], tuple[str, ...]] = tuple
    """The rows that the page would have now."""
    apart: str = ""
    """Rows whose ids begin with this are of another list, which says itself that its order has changed."""


@dataclass(frozen=True, slots=True)
class _Rendered:
    look: Hashable
    html: str
    serial: int


class PartCache:
    """The parts of all pages as they were rendered last: bounded in their number and their length."""

    def __init__(self) -> None:
        self.boot = secrets.token_hex(4)
        """Distinguishes the serial numbers of this process from those of one before it."""
        self.number = 0
        """The newest serial number."""
        self.characters = 0
        """What all parts together have."""
        self._parts: OrderedDict[tuple[str, str], _Rendered] = OrderedDict()
        self._orders: OrderedDict[str, tuple[str, ...]] = OrderedDict()

    @property
    def serial(self) -> str:
        """What a page says that it has."""
        return f"{self.boot}-{self.number}"

    def html(self, part: Part) -> str:
        """Return a part's element, rendered again only where it looks different."""
        return self.rendered(part).html

    def rendered(self, part: Part) -> _Rendered:
        """Return a part's element with its serial number."""
        key = part.id, part.variant
        before = self._parts.get(key)
        if before is not None and before.look == part.look:
            self._parts.move_to_end(key)
            return before
        html = part.html()
        if before is not None and before.html == html:
            after = _Rendered(part.look, html, before.serial)
        else:
            self.number += 1
            after = _Rendered(part.look, html, self.number)
        self._parts[key] = after
        self._parts.move_to_end(key)
        self.characters += len(html) - (0 if before is None else len(before.html))
        while len(self._parts) > _MOST_PARTS or self.characters > _MOST_CHARACTERS:
            self.characters -= len(self._parts.popitem(last=False)[1].html)
        return after

    def remember_order(self, mark: str, rows: tuple[str, ...]) -> None:
        """Remember the rows of a page that is sent, for its stream."""
        self._orders[mark] = rows
        self._orders.move_to_end(mark)
        while len(self._orders) > _MOST_ORDERS:
            self._orders.popitem(last=False)

    def rows_of(self, mark: str) -> tuple[str, ...] | None:
        """Return the rows of the page with this mark; None where that is forgotten, as after a restart."""
        return self._orders.get(mark)

    def had(self, shown: str) -> int:
        """Read what a page says that it has: a serial number of this process, or nothing."""
        boot, _, number = shown.partition("-")
        is_number = number.isdecimal() and len(number) <= _SERIAL_DIGITS
        return int(number) if boot == self.boot and is_number else 0


def order_mark(rows: Sequence[str], apart: str = "") -> str:
    """Return what is equal for equal rows in the same order; it begins with the mark of those not `apart`."""
    if not apart:
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:MARK_DIGITS]
    lists: tuple[list[str], list[str]] = [], []
    for row in rows:
        lists[row.startswith(apart)].append(row)
    return "".join(map(order_mark, lists))


@dataclass(slots=True)
class _Feed:
    """One page with one set of filters and rows, for all who look at it.

    It keeps its parts: how many other pages are open makes no look at it dearer.
    """

    view: LiveView
    rows: tuple[str, ...]
    rendered: dict[str, _Rendered] = field(default_factory=dict)
    order_now: str = ""
    order_at: float = 0.0
    viewers: int = 0
    newest: int = 0
    """The newest serial number among its parts."""
    message: tuple[int, int, bytes] = (0, 0, b"")
    """Serial numbers from and up to which a message has changes, and the message."""

    async def look(self, cache: PartCache) -> None:
        """Look at what the page shows, and render what looks different, in slices."""
        now = asyncio.get_running_loop().time
        slice_ends, has_waited = now() + SLICE_SECONDS, False
        parts = tuple(self.view.parts(self.rows))
        for part in parts:
            if not self._has(part):
                cache.rendered(part)
                if now() >= slice_ends:
                    await asyncio.sleep(0)
                    slice_ends, has_waited = now() + SLICE_SECONDS, True
        # What is sent was looked at in one go: a part that another page has rendered meanwhile would
        # otherwise be older than the newest serial number here, and be left out.
        self._take(tuple(self.view.parts(self.rows)) if has_waited else parts, cache)
        if now() - self.order_at >= ORDER_SECONDS:
            mark = order_mark(self.view.order(), self.view.apart)
            self.order_now, self.order_at = mark[:MARK_DIGITS], now()

    def _has(self, part: Part) -> bool:
        shown = self.rendered.get(part.id)
        return shown is not None and shown.look == part.look

    def _take(self, parts: Sequence[Part], cache: PartCache) -> None:
        for part in parts:
            if not self._has(part):
                shown = self.rendered[part.id] = cache.rendered(part)
                self.newest = max(self.newest, shown.serial)

    def changes(self, since: int, boot: str) -> bytes:
        """Write what is newer than a serial number, for everybody who is as far."""
        if self.message[:2] != (since, self.newest):
            changed = {name: one.html for name, one in self.rendered.items() if one.serial > since}
            text = b""
            if changed:
                data = json.dumps(changed, ensure_ascii=False, separators=(",", ":"))
                text = f"id: {boot}-{self.newest}\nevent: parts\ndata: {data}\n\n".encode()
            self.message = since, self.newest, text
        return self.message[2]


class LivePages:
    """The streams of all open pages of one registry."""

    def __init__(self, cache: PartCache, refresh: Callable[[], Awaitable[None]]) -> None:
        """Call `refresh` before each look: it brings up to date what the parts are made from."""
        self._cache = cache
        self._refresh = refresh
        self._feeds: dict[Hashable, _Feed] = {}
        self._open: Counter[str | None] = Counter()
        """By operator token; with auth off under None."""
        self._closed = asyncio.Event()
        self._looking: asyncio.Event | None = None
        """Set when the look is done for which one of the streams waits, and the others wait for it."""

    @property
    def full(self) -> bool:
        """True while no further stream may open."""
        return self._closed.is_set() or self._open.total() >= MOST_STREAMS

    def full_for(self, token_id: str | None) -> bool:
        """Whether one operator token has as many streams as it may; with auth off nobody has too many."""
        return token_id is not None and self._open[token_id] >= MOST_STREAMS_OF_ONE

    def close(self) -> None:
        """End all streams now, and open no other."""
        self._closed.set()

    async def stream(
        self, view: LiveView, *, since: str, mark: str, token_id: str | None, is_valid: Callable[[], bool]
    ) -> AsyncGenerator[bytes, None]:
        """Write what changes on a page from what it has on, until its session is not valid any more."""
        now = asyncio.get_running_loop().time
        with self._viewing(view, mark, token_id) as feed:
            had, said_order, alive_at = self._cache.had(since), False, now()
            await feed.look(self._cache)
            yield b"retry: 1000\n\nevent: alive\ndata: \n\n"
            while not self._closed.is_set() and is_valid():
                text = feed.changes(had, self._cache.boot) if feed.newest > had else b""
                had = max(had, feed.newest)
                if feed.order_now not in {"", mark[:MARK_DIGITS]} and not said_order:
                    text, said_order = text + b"event: order\ndata: \n\n", True
                if not text and now() - alive_at >= ALIVE_SECONDS:
                    text = b"event: alive\ndata: \n\n"
                if text:
                    alive_at = now()
                    yield text
                await self._next_look()

    async def _next_look(self) -> None:
        """Wait until every page that somebody has open was looked at again: one stream does it for all."""
        if self._looking is not None:
            await self._looking.wait()
            return
        looking = self._looking = asyncio.Event()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._closed.wait()
            await self._refresh()
            for feed in tuple(self._feeds.values()):
                await feed.look(self._cache)
                await asyncio.sleep(0)
        finally:
            self._looking = None
            looking.set()

    @contextmanager
    def _viewing(self, view: LiveView, mark: str, token_id: str | None) -> Iterator[_Feed]:
        rows = self._cache.rows_of(mark)
        if rows is None:  # of a page before a restart, or a mark that a caller has made up
            rows = view.order()
        key = view.page, view.key, order_mark(rows)
        feed = self._feeds.get(key)
        if feed is None:
            feed = self._feeds[key] = _Feed(view, rows)
        feed.viewers += 1
        self._open[token_id] += 1
        try:
            yield feed
        finally:
            feed.viewers -= 1
            self._open[token_id] -= 1
            if not self._open[token_id]:
                del self._open[token_id]
            if not feed.viewers:
                del self._feeds[key]
