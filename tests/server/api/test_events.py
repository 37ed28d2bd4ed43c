"""Events over HTTP, on a real registry, with many readers on real sockets."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import dropwhile
from pathlib import Path

import httpx
import pytest

from gpu_agent.runtime.address import bound_address
from gpu_agent.server.api.app import ApiServer
from gpu_agent.server.event_log import EventFilter
from gpu_agent.server.service import RegistryService
from gpu_agent.store.sqlite import SqliteStore
from gpu_agent.wire.event_words import MISSED
from tests.server.api_harness import problem, serving
from tests.server.harness import LOOPBACK, Node, node, running, until
from tests.server.sse import Heard, Parser, following
from tests.waiting import patience

READERS = 50
LAST = "node_removed"


async def heard(api: httpx.AsyncClient, parser: Parser, *, until: str) -> list[Heard]:
    async with following(api, parser) as stream:
        return await stream.until(until)


@asynccontextmanager
async def unread_stream(api: httpx.AsyncClient) -> AsyncIterator[Callable[[], Awaitable[list[bytes]]]]:
    """Open a stream and read nothing of it, until its reader is called: up to `events_missed`, and that."""
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    own.settimeout(0)
    await asyncio.get_running_loop().sock_connect(own, (api.base_url.host, api.base_url.port))
    reader, writer = await asyncio.open_connection(sock=own, limit=1024)
    writer.write(f"GET /v1/events HTTP/1.1\r\nHost: {api.base_url.host}\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")

    async def read() -> list[bytes]:
        received = bytearray()
        async with asyncio.timeout(patience(10)):
            while (
                len(parts := bytes(received).split(b"event: events_missed\n")) < 2 or b"\n\n" not in parts[1]
            ):
                received += await reader.read(65536)
        return parts

    yield read
    writer.close()
    await writer.wait_closed()


async def test_past_events_can_be_read_without_waiting_for_new_ones(
    service: RegistryService, api: httpx.AsyncClient
) -> None:
    async with node(service) as new:
        await new.become_ready()
    answer = await api.get("/v1/events", params={"after": "0", "follow": "false"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "node_registered" in [event.name for event in Parser().feed(answer.content)]
    assert (await api.get("/v1/events", params={"follow": "perhaps"})).status_code == 422


async def test_a_reader_receives_a_registration_and_a_status_change(
    service: RegistryService, api: httpx.AsyncClient
) -> None:
    async with following(api) as stream, node(service) as new:
        assert stream.response.headers["content-type"].startswith("text/event-stream")
        await new.become_ready()
        events = await stream.until("node_registered")
        while events[-1].document["fields"].get("to") != "ready":
            events.append(await stream.next())
        ids = [int(event.id or 0) for event in events]
        assert ids == sorted(ids)
        assert all(event.document["id"] == int(event.id or 0) for event in events)
        (registered,) = [event.document for event in events if event.name == "node_registered"]
        assert registered["node_id"] == new.node_id
        shown = (await api.get(f"/v1/nodes/{new.node_id}/events")).json()["events"]
        assert registered in shown


async def test_a_reader_can_follow_one_node(
    service: RegistryService, api: httpx.AsyncClient, ready: Node
) -> None:
    async with following(api, node_id=ready.node_id) as stream, node(service) as other:
        await other.register()
        await api.post(f"/v1/nodes/{ready.node_id}/cordon", json={})
        assert (await stream.next()).name == "node_cordoned"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("event=node_cordoned", {"node_cordoned"}),
        ("event=node_cordoned&event=node_uncordoned", {"node_cordoned", "node_uncordoned"}),
        ("level=warning", {"node_removed"}),
        ("level=warning&event=node_cordoned", set()),
        ("since=99999999999", set()),
    ],
)
async def test_a_reader_can_follow_events_of_a_kind(
    service: RegistryService, api: httpx.AsyncClient, ready: Node, query: str, expected: set[str]
) -> None:
    await service.cordon(ready.node_id, reason="a fan")
    await service.uncordon(ready.node_id)
    await service.remove(ready.node_id)
    answer = await api.get(f"/v1/events?after=0&follow=false&{query}")
    assert {one.name for one in Parser().feed(answer.content) if one.name} == expected


async def test_the_latest_events_are_read_backwards_by_pages(service: RegistryService, ready: Node) -> None:
    for _ in range(5):
        await service.cordon(ready.node_id, reason="a fan")
    log, wanted = service.event_log, EventFilter(events=frozenset({"node_cordoned"}))
    newest = [one.id or 0 for one in log.search(wanted)]
    assert len(newest) == 5
    assert newest == sorted(newest, reverse=True)
    assert [one.id for one in log.search(wanted, before=newest[1])] == newest[2:]


async def test_a_reader_can_begin_after_any_event(api: httpx.AsyncClient, ready: Node) -> None:
    events = (await api.get(f"/v1/nodes/{ready.node_id}/events")).json()["events"]
    async with following(api, after=events[-2]["id"]) as stream:
        assert (await stream.next()).document == events[-1]


async def test_fifty_readers_receive_every_event_once_and_in_order_over_reconnects_and_a_restart(
    tmp_path: Path,
) -> None:
    parsers = [Parser() for _ in range(READERS)]
    received: list[list[Heard]] = [[] for _ in range(READERS)]

    async def round_of_readers(api: httpx.AsyncClient, service: RegistryService, *, until: str) -> None:
        async with AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(following(api, parser)) for parser in parsers]
            async with node(service) as new:
                await new.become_ready()
                path = f"/v1/nodes/{new.node_id}"
                await api.post(f"{path}/cordon", json={"reason": "r"})
                await api.delete(path)
            for stream, mine in zip(streams, received, strict=True):
                mine.extend(await stream.until(until))

    for _ in range(2):  # a restart: the same file, a new port
        async with running(store=SqliteStore(tmp_path / "registry.db")) as service, serving(service) as api:
            await round_of_readers(api, service, until=LAST)
            async with node(service) as missed:  # between two connections of every reader
                await missed.become_ready()
                await api.delete(f"/v1/nodes/{missed.node_id}")
            await round_of_readers(api, service, until=LAST)
            for parser, mine in zip(parsers, received, strict=True):
                mine.extend(await heard(api, parser, until=LAST))

    # A reader that connected before the others may have seen the registry itself start.
    seen = [
        list(dropwhile(lambda one: one[1] == "registry_restored", ((one.id, one.name) for one in mine)))
        for mine in received
    ]
    first = seen[0]
    assert all(mine == first for mine in seen)
    ids = [int(number or 0) for number, _ in first]
    assert ids == sorted(set(ids))
    assert [name for _, name in first].count(LAST) == 6
    assert MISSED not in {name for _, name in first}


async def test_a_reader_that_was_away_too_long_receives_events_missed(
    api: httpx.AsyncClient, ready: Node
) -> None:
    assert ready.node_id
    async with following(api, after=10**9) as stream:  # an id that this registry never used
        assert (await stream.next()).name == MISSED


async def test_a_reader_that_reads_nothing_costs_no_memory_and_delays_no_other(
    service: RegistryService, api: httpx.AsyncClient, ready: Node
) -> None:
    async with unread_stream(api) as read:
        async with following(api, node_id=ready.node_id) as stream:
            for count in range(1300):
                await service.cordon(ready.node_id, reason=f"{count:040000d}")
                await stream.next()
        rest = await read()
    missed = json.loads(rest[1].split(b"data: ", 1)[1].split(b"\n", 1)[0])
    assert missed["fields"]["count"] > 0


async def test_one_reader_too_many_is_refused_with_503(
    service: RegistryService, api: httpx.AsyncClient
) -> None:
    """With the full number of readers, so that the server must bear its own limit."""
    async with AsyncExitStack() as stack:
        limits = httpx.Limits(max_connections=None)
        client = httpx.AsyncClient(base_url=api.base_url, trust_env=False, limits=limits)
        await stack.enter_async_context(client)
        for _ in range(256):
            await stack.enter_async_context(following(client))
        refused = await client.get("/v1/events")
        assert (refused.status_code, problem(refused)["code"]) == (503, "TOO_MANY_STREAMS")
    await until(lambda: service.health.event_log.subscribers == 0, what="the end of all streams")
    async with following(api):
        pass


async def test_a_stop_ends_every_stream_at_once(service: RegistryService) -> None:
    listener = LOOPBACK.bind()
    server = ApiServer(service, listener, address=LOOPBACK)
    running = asyncio.ensure_future(server.serve())
    async with AsyncExitStack() as stack:
        api = httpx.AsyncClient(base_url=f"http://{bound_address(listener)}", trust_env=False)
        await stack.enter_async_context(api)
        streams = [await stack.enter_async_context(following(api)) for _ in range(5)]
        began = time.monotonic()
        server.stop()
        for stream in streams:
            await stream.end()
        await running
        assert time.monotonic() - began < patience(1)


@pytest.mark.parametrize("wrong", [{"after": -1}, {"after": "x"}, {"since": "x"}, {"sinc": 1}])
async def test_an_invalid_event_to_begin_after_is_refused(
    api: httpx.AsyncClient, wrong: dict[str, str | int]
) -> None:
    assert problem(await api.get("/v1/events", params=wrong))["status"] == 422


async def test_a_header_that_is_no_number_is_refused(api: httpx.AsyncClient) -> None:
    refused = problem(await api.get("/v1/events", headers={"Last-Event-ID": "x"}))
    assert refused["errors"][0]["path"] == "$.last-event-id"
