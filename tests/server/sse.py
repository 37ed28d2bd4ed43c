"""Reads server-sent events as a browser does (WHATWG HTML, 9.2.6), from a true socket or from pieces."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from tests.waiting import patience


@dataclass(frozen=True)
class Heard:
    id: str | None
    name: str
    data: str

    @property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.data)
        return document


class Parser:
    """From bytes to events; keeps the last id, with which a reader comes back, and the unread events."""

    def __init__(self) -> None:
        self.last_id: str | None = None
        self.unread: deque[Heard] = deque()
        self._rest = b""

    def feed(self, data: bytes) -> list[Heard]:
        *blocks, self._rest = (self._rest + data).split(b"\n\n")
        return [event for block in blocks if (event := self._event(block.decode())) is not None]

    def _event(self, block: str) -> Heard | None:
        fields: dict[str, str] = {}
        for line in block.split("\n"):
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        self.last_id = fields.get("id", self.last_id)
        return Heard(fields.get("id"), fields.get("event", ""), fields["data"]) if "data" in fields else None


class Stream:
    """One reader of /v1/events."""

    def __init__(self, response: httpx.Response, parser: Parser) -> None:
        self.response = response
        self.parser = parser
        self._pieces = response.aiter_raw()

    async def next(self) -> Heard:
        async with asyncio.timeout(patience(10)):
            while not self.parser.unread:
                self.parser.unread.extend(self.parser.feed(await anext(self._pieces)))
        return self.parser.unread.popleft()

    async def until(self, name: str) -> list[Heard]:
        heard = [await self.next()]
        while heard[-1].name != name:
            heard.append(await self.next())
        return heard

    async def end(self) -> None:
        """Wait until the other side ends the stream."""
        async with asyncio.timeout(patience(10)):
            async for _ in self._pieces:
                pass


@asynccontextmanager
async def following(
    api: httpx.AsyncClient, parser: Parser | None = None, **params: str | int
) -> AsyncIterator[Stream]:
    """Follow, from where `parser` left off."""
    parser = parser or Parser()
    headers = {} if parser.last_id is None else {"Last-Event-ID": parser.last_id}
    async with api.stream("GET", "/v1/events", params=params, headers=headers, timeout=30) as response:
        assert response.status_code == 200
        stream = Stream(response, parser)
        parser.unread.extend(parser.feed(await anext(stream._pieces)))
        yield stream
