"""Connections that send or read nothing, over real sockets: they keep no other client out."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from gpu_agent.server.api import connection as operator_connection
from gpu_agent.server.api.app import ACCEPTED_AT_ONCE
from gpu_agent.server.api.connection import ApiConnection, ConnectionLimit
from gpu_agent.server.event_log import MOST_STREAMS
from gpu_agent.server.log_limit import LogLimit
from gpu_agent.server.node_connection import CONNECTIONS_TO_REFUSE
from gpu_agent.server.serve import RESERVED_FILES
from tests.server.api_harness import serving
from tests.server.harness import running, until
from tests.waiting import patience

Said = list[tuple[str, dict[str, Any]]]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

ASKED = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
HALF_A_BODY = b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n01234"
LONG_ASKED = ASKED.replace(b"GET", b"POST")


async def closed(streams: Streams) -> bool:
    """Wait for the end, whatever is read before it."""
    async with asyncio.timeout(patience(3)):
        with suppress(ConnectionError):
            while await streams[0].read(65536):
                pass
    return True


class LimitedServer:
    """A server of an application that answers at once: PUT before it has read, and POST at great length."""

    def __init__(self, log_limit: LogLimit, *, most: int) -> None:
        self.going_on = asyncio.Event()
        self.state = ServerState()
        self.made = 0
        self.port = 0
        self.dialled: list[asyncio.StreamWriter] = []
        self._limit = ConnectionLimit(log_limit, most=most)
        self._config = uvicorn.Config(
            self._app, http="httptools", interface="asgi3", lifespan="off", ws="none", log_config=None
        )

    async def open(self) -> asyncio.Server:
        server = await asyncio.get_running_loop().create_server(self._connection, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def dial(self, said: bytes = b"") -> Streams:
        before = self.made
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.dialled.append(writer)
        writer.write(said)
        await until(lambda: self.made > before, what="a connection")
        return reader, writer

    def _connection(self) -> ApiConnection:
        self.made += 1
        return ApiConnection(self._config, self.state, {}, limit=self._limit)

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        while scope["method"] != "PUT" and (await receive()).get("more_body", False):
            pass
        if scope["method"] != "POST":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
            await send({"type": "http.response.body", "body": b"ok"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1000):
            await send({"type": "http.response.body", "body": b"x" * 60_000, "more_body": True})
            await self.going_on.wait()


@asynccontextmanager
async def limited_server(said: Said | None = None, *, most: int = 3) -> AsyncIterator[LimitedServer]:
    def emit(event: str, /, **fields: object) -> None:
        if said is not None:
            said.append((event, fields))

    log_limit = LogLimit(emit)
    one = LimitedServer(log_limit, most=most)
    server = await one.open()
    try:
        yield one
    finally:
        server.close()
        for writer in one.dialled:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
        for connection in tuple(one.state.connections):
            connection.transport.abort()
        await until(lambda: not one.state.tasks, what="no request left")
        log_limit.stop()


async def test_the_connection_that_is_idle_longest_is_closed_for_a_new_one() -> None:
    said: Said = []
    async with limited_server(said, most=3) as one:
        first, second, _ = [await one.dial() for _ in range(3)]
        first[1].write(ASKED)
        assert await first[0].readuntil(b"ok")
        fourth = await one.dial(ASKED)
        assert await closed(second)  # the first has asked something since
        assert await fourth[0].readuntil(b"ok")
        first[1].write(ASKED)
        assert await first[0].readuntil(b"ok")
    dropped = ("operator_connection_dropped", {"address": "127.0.0.1", "reason": "too many connections"})
    assert said == [dropped]


async def test_a_connection_that_is_being_answered_is_not_closed_for_a_new_one() -> None:
    async with limited_server(most=2) as one:
        streams = [await one.dial(LONG_ASKED) for _ in range(2)]
        for reader, _ in streams:
            await reader.readexactly(60_000)
        assert await closed(await one.dial())
        one.going_on.set()
        for reader, _ in streams:
            assert await reader.readexactly(60_000)


@pytest.mark.parametrize("begun", [b"", b"GET / HTT", ASKED[:-2], ASKED + b"GET /", HALF_A_BODY])
async def test_a_request_that_is_not_complete_in_time_is_dropped(
    begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operator_connection, "REQUEST_SECONDS", 0.1)
    said: Said = []
    async with limited_server(said) as one:
        assert await closed(await one.dial(begun))
    assert [fields["reason"] for _, fields in said] == ["no request in time"]


async def test_the_rest_of_an_unread_body_must_arrive_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator_connection, "REQUEST_SECONDS", 0.3)
    async with limited_server() as one:
        reader, writer = await one.dial(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")

        async def trickle() -> None:
            while not writer.is_closing():
                writer.write(b"x")
                await asyncio.sleep(0.02)

        trickling = asyncio.ensure_future(trickle())
        assert await closed((reader, writer))
        await trickling


async def test_a_client_that_reads_nothing_of_its_answer_is_disconnected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(operator_connection, "UNREAD_SECONDS", 0.2)
    said: Said = []
    async with limited_server(said) as one:
        one.going_on.set()
        with socket.create_connection(("127.0.0.1", one.port)) as client:
            client.sendall(LONG_ASKED)
            await until(lambda: said, what="a disconnection")
    assert [fields["reason"] for _, fields in said] == ["an answer is not read"]


async def test_what_comes_behind_a_request_that_waits_is_not_read_before_its_answer() -> None:
    async with limited_server() as one:
        reader, _ = await one.dial(LONG_ASKED + 5000 * ASKED)
        await reader.readexactly(60_000)
        (connection,) = one.state.connections
        assert isinstance(connection, ApiConnection)
        assert connection._received
        assert len(connection.pipeline) < 50
        one.going_on.set()


async def test_hundreds_of_silent_connections_keep_no_operator_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with running() as service, serving(service) as api:
        silent = [socket.socket() for _ in range(operator_connection.MAX_CONNECTIONS + 100)]
        try:
            for one in silent:
                one.settimeout(0)
                await asyncio.get_running_loop().sock_connect(one, (api.base_url.host, api.base_url.port))
            assert (await api.get("/v1/nodes")).status_code == 200
        finally:
            for one in silent:
                one.close()
    dropped = [one for one in caplog.records if one.getMessage() == "operator_connection_dropped"]
    assert len(dropped) == 1  # the others are counted


def test_the_connection_limit_leaves_room_for_all_event_streams_and_for_nodes() -> None:
    assert operator_connection.MAX_CONNECTIONS >= MOST_STREAMS + 64
    taken = operator_connection.MAX_CONNECTIONS + CONNECTIONS_TO_REFUSE + 2 * ACCEPTED_AT_ONCE
    assert taken + 64 <= RESERVED_FILES  # and some for the store and the log
