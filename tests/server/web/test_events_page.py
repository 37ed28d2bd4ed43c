"""The page of events, as a browser without the script gets it: filters, pages, and what came since."""

import asyncio
import json
import re
from collections import Counter

import httpx
import pytest

from gpu_agent.server.service import RegistryService
from gpu_agent.server.web import live
from gpu_agent.server.web.event_lines import EventLine, event_line
from gpu_agent.wire.api import RegistryEvent
from tests.server.web.fleet import Fleet, Machine
from tests.waiting import patience


def events_in(text: str) -> list[str]:
    cells = re.findall(r'<td role="cell" class="e-e mono">(.*?)</td>', text)
    return [re.sub(r"<[^>]+>|warning: ", "", cell) for cell in cells]


async def follow(admin: httpx.AsyncClient, path: str, rel: str) -> tuple[list[list[str]], str]:
    """Return the ids of each page from one on, as long as there is a link; and the last page's path."""
    pages = []
    while True:
        text = (await admin.get(path)).text
        pages.append(re.findall(r'id="e-(\d+)"', text))
        following = re.findall(rf'rel="{rel}" href="([^"]+)"', text)
        if not following:
            return pages, path
        path = following[0].replace("&amp;", "&")


async def machine(played: Fleet) -> Machine:
    joined = await played.join(Machine("gpu-1", count=1))
    await played.service.cordon(joined.node_id, reason="a <b>fan</b>", by="ann")
    await played.service.uncordon(joined.node_id)
    return joined


async def test_the_newest_event_comes_first(played: Fleet, admin: httpx.AsyncClient) -> None:
    await machine(played)
    text = (await admin.get("/events")).text
    assert events_in(text)[:2] == ["node_uncordoned", "node_cordoned"]
    assert "cordoned: a &lt;b&gt;fan&lt;/b&gt; (by ann)" in text


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("event=node_cordoned", ["node_cordoned"]),
        ("q=FAN", ["node_cordoned"]),
        ("node=gpu-1&event=node_uncordoned", ["node_uncordoned"]),
        ("node=GPU-1&q=fan", ["node_cordoned"]),
        ("node=elsewhere", []),
        ("level=warning", []),
        ("since=600&q=fan", ["node_cordoned"]),
        ("event=unheard_of&q=fan", ["node_cordoned"]),
    ],
)
async def test_filters_apply_together(
    played: Fleet, admin: httpx.AsyncClient, query: str, expected: list[str]
) -> None:
    await machine(played)
    text = (await admin.get(f"/events?{query}")).text
    assert events_in(text) == expected
    assert ("No event matches these filters." in text) is not bool(expected)


async def test_older_events_are_on_later_pages_each_once(played: Fleet, admin: httpx.AsyncClient) -> None:
    joined = await machine(played)
    for number in range(230):
        await played.service.cordon(joined.node_id, reason=f"reason {number}")
    pages, path = await follow(admin, "/events?q=reason", "next")
    ids = [one for page in pages for one in page]
    assert len(ids) == len(set(ids)) == 230
    assert ids == sorted(ids, key=int, reverse=True)
    assert (await follow(admin, path, "prev"))[0] == pages[::-1]


async def test_new_events_are_counted_and_no_row_moves(played: Fleet, admin: httpx.AsyncClient) -> None:
    joined = await machine(played)
    page = (await admin.get("/events?event=node_cordoned")).text
    main = re.findall(r'data-live="events" data-since="([^"]*)".*? data-order="([^"]*)"', page)[0]
    query = {"page": "events", "event": "node_cordoned", "since": main[0], "order": main[1]}
    async with admin.stream("GET", "/web/stream", params=query) as stream:
        lines = stream.aiter_lines()
        await anext(lines)
        for number in range(3):
            await played.service.cordon(joined.node_id, reason=f"again {number}")
        changed: dict[str, str] = {}
        async with asyncio.timeout(patience(10)):
            while "3 new: show" not in changed.get("fresh", ""):
                line = await anext(lines)
                if line.startswith("data: {"):
                    changed = json.loads(line.removeprefix("data: "))
    assert not [name for name in changed if name.startswith("e-")]


async def test_an_open_page_searches_each_event_once_however_long_it_is_looked_at(
    played: Fleet, admin: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = await machine(played)
    page = (await admin.get("/events?q=fan")).text
    main = re.findall(r'data-live="events" data-since="([^"]*)".*? data-order="([^"]*)"', page)[0]
    searched: list[int | None] = []
    line_of = event_line

    def counted(registry: RegistryService, event: RegistryEvent) -> EventLine:
        searched.append(event.id)
        return line_of(registry, event)

    monkeypatch.setattr("gpu_agent.server.web.events.event_line", counted)
    monkeypatch.setattr(live, "ORDER_SECONDS", 0.0)
    query = {"page": "events", "q": "fan", "since": main[0], "order": main[1]}
    async with admin.stream("GET", "/web/stream", params=query) as stream:
        lines = stream.aiter_lines()
        for number in range(3):  # each is seen by a look of its own
            await played.service.cordon(joined.node_id, reason=f"fan {number}")
            async with asyncio.timeout(patience(10)):
                while f"{number + 1} new: show" not in await anext(lines):
                    pass
    assert max(Counter(searched).values()) <= 2  # for the order, and for what is new
