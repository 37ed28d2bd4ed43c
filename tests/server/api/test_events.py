"""Events over HTTP, on the true registry, with many readers on real sockets."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest

from gpu_agent.server.address import bound_address
from gpu_agent.server.api.app import ApiServer
from gpu_agent.server.event_log import MISSED
from gpu_agent.server.service import RegistryService
from gpu_agent.store.sqlite import SqliteStore
from tests.server.api_harness import problem, serving
from tests.server.harness import LOOPBACK, Node, node, running, until
from tests.server.sse import Heard, Parser, following

READERS = 50
LAST = "node_removed"


async def heard(api: httpx.AsyncClient, parser: Parser, *, until: str) -> list[Heard]:
    async with following(api, parser) as stream:
        return await stream.until(until)


@asynccontextmanager
async def deaf(api: httpx.AsyncClient) -> AsyncIterator[Callable[[], Awaitable[list[bytes]]]]:
    """Ask for the events and read none of them, until told to: then up to what was missed, and that."""
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    own.settimeout(0)
    await asyncio.get_running_loop().sock_connect(own, (api.base_url.host, api.base_url.port))
    reader, writer = await asyncio.open_connection(sock=own, limit=1024)
    writer.write(f"GET /v1/events HTTP/1.1\r\nHost: {api.base_url.host}\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")

    async def read() -> list[bytes]:
        told = bytearray()
        async with asyncio.timeout(10):
            while len(parts := bytes(told).split(b"event: events_missed\n")) < 2 or b"\n\n" not in parts[1]:
                told += await reader.read(65536)
        return parts

    yield read
    writer.close()
    await writer.wait_closed()


async def test_what_was_can_be_read_without_waiting_for_what_comes(
    service: RegistryService, api: httpx.AsyncClient
) -> None:
    async with node(service) as new:
        await new.become_ready()
    answer = await api.get("/v1/events", params={"after": "0", "follow": "false"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "node_registered" in [event.name for event in Parser().feed(answer.content)]
    assert (await api.get("/v1/events", params={"follow": "perhaps"})).status_code == 422


async def test_a_reader_hears_a_node_come_and_change(
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


async def test_only_one_nodes_events_are_followed_if_one_is_named(
    service: RegistryService, api: httpx.AsyncClient, ready: Node
) -> None:
    async with following(api, node_id=ready.node_id) as stream, node(service) as other:
        await other.register()
        await api.post(f"/v1/nodes/{ready.node_id}/cordon", json={})
        assert (await stream.next()).name == "node_cordoned"


async def test_a_reader_may_begin_behind_an_event_of_its_choice(api: httpx.AsyncClient, ready: Node) -> None:
    events = (await api.get(f"/v1/nodes/{ready.node_id}/events")).json()["events"]
    async with following(api, after=events[-2]["id"]) as stream:
        assert (await stream.next()).document == events[-1]


async def test_fifty_readers_hear_everything_once_and_in_order_over_reconnects_and_a_restart(
    tmp_path: Path,
) -> None:
    parsers = [Parser() for _ in range(READERS)]
    told: list[list[Heard]] = [[] for _ in range(READERS)]

    async def round_of_readers(api: httpx.AsyncClient, service: RegistryService, *, until: str) -> None:
        async with AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(following(api, parser)) for parser in parsers]
            async with node(service) as new:
                await new.become_ready()
                path = f"/v1/nodes/{new.node_id}"
                await api.post(f"{path}/cordon", json={"reason": "r"})
                await api.delete(path)
            for stream, mine in zip(streams, told, strict=True):
                mine.extend(await stream.until(until))

    for _ in range(2):  # each time another process of the registry would have: the same file, a new port
        async with running(store=SqliteStore(tmp_path / "registry.db")) as service, serving(service) as api:
            await round_of_readers(api, service, until=LAST)
            async with node(service) as unheard:  # between two connections of every reader
                await unheard.become_ready()
                await api.delete(f"/v1/nodes/{unheard.node_id}")
            await round_of_readers(api, service, until=LAST)
            for parser, mine in zip(parsers, told, strict=True):
                mine.extend(await heard(api, parser, until=LAST))

    first = [(event.id, event.name) for event in told[0]]
    assert all([(event.id, event.name) for event in mine] == first for mine in told)
    ids = [int(number or 0) for number, _ in first]
    assert ids == sorted(set(ids))
    assert [name for _, name in first].count(LAST) == 6
    assert MISSED not in {name for _, name in first}


async def test_who_was_away_too_long_is_told_that_something_was_missed(
    api: httpx.AsyncClient, ready: Node
) -> None:
    assert ready.node_id
    async with following(api, after=10**9) as stream:  # an id that this registry never gave
        assert (await stream.next()).name == MISSED


async def test_a_reader_that_does_not_read_costs_neither_memory_nor_others(
    service: RegistryService, api: httpx.AsyncClient, ready: Node
) -> None:
    async with deaf(api) as stopped:
        async with following(api, node_id=ready.node_id) as stream:
            for count in range(1300):
                await service.cordon(ready.node_id, reason=f"{count:040000d}")
                await stream.next()
        rest = await stopped()
    missed = json.loads(rest[1].split(b"data: ", 1)[1].split(b"\n", 1)[0])
    assert missed["fields"]["count"] > 0


async def test_one_reader_too_many_is_asked_to_come_later(
    service: RegistryService, api: httpx.AsyncClient
) -> None:
    """Tested with as many as may be, so that the bound is one that the server holds."""
    async with AsyncExitStack() as stack:
        limits = httpx.Limits(max_connections=None)
        client = httpx.AsyncClient(base_url=api.base_url, trust_env=False, limits=limits)
        await stack.enter_async_context(client)
        for _ in range(256):
            await stack.enter_async_context(following(client))
        refused = await client.get("/v1/events")
        assert (refused.status_code, problem(refused)["code"]) == (503, "TOO_MANY_STREAMS")
    await until(lambda: service.health.chronicle.listeners == 0, what="the end of all streams")
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
        assert time.monotonic() - began < 1


@pytest.mark.parametrize("wrong", [{"after": -1}, {"after": "x"}, {"since": 1}])
async def test_a_place_to_begin_that_nobody_can_mean_is_refused(
    api: httpx.AsyncClient, wrong: dict[str, str | int]
) -> None:
    assert problem(await api.get("/v1/events", params=wrong))["status"] == 422


async def test_a_header_that_is_no_number_is_refused(api: httpx.AsyncClient) -> None:
    refused = problem(await api.get("/v1/events", headers={"Last-Event-ID": "x"}))
    assert refused["errors"][0]["path"] == "$.last-event-id"
