"""Events as a stream of text for many readers at once (server-sent events), each from where it left off.

Bounded in readers, and per reader in what waits for it: who reads slowly loses the oldest events
and is told how many. Each event is written once, however many read it. Knows no web framework.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from typing import Protocol

from pydantic import TypeAdapter

from gpu_agent.server.chronicle import MISSED, Listener, RegistryEvent

MOST_STREAMS = 256
HEARTBEAT_SECONDS = 15.0
MOST_IN_A_PIECE = 64
OPENING = b"retry: 2000\n: every change from here on\n\n"
HEARTBEAT = b": still here\n\n"

_MOST_TEXTS = 1024
_EVENT = TypeAdapter(RegistryEvent)


class Source(Protocol):
    """Where events come from."""

    def listening(self, *, after: int | None) -> AbstractContextManager[Listener]:
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
        self, source: Source, *, after: int | None, node_id: str | None = None, on: bool = True
    ) -> AsyncIterator[bytes]:
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

    async def _piece(self, listener: Listener, reader: "_Reader", *, due: float) -> bytes:
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

    async def _next(self, listener: Listener, *, due: float) -> RegistryEvent | None:
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


def _opening(listener: Listener, after: int | None) -> bytes:
    """Say to a reader from where on it reads, so that it can go on even if it hears of nothing."""
    if after is not None or listener.reached is None:
        return OPENING
    return OPENING + f"id: {listener.reached}\n\n".encode()


def _written(event: RegistryEvent) -> bytes:
    numbered = b"" if event.id is None else f"id: {event.id}\n".encode()
    return b"%sevent: %s\ndata: %s\n\n" % (numbered, event.event.encode(), _EVENT.dump_json(event))
