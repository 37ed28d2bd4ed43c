"""Connections that send or read nothing, over real sockets: they keep no other client out."""

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
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
from gpu_agent.server.tls import Encryption, TlsConnection, TlsFiles, TlsPort
from gpu_agent.server.web import live
from tests.authority import Authority
from tests.server.api_harness import serving
from tests.server.harness import running, until
from tests.server.instances import FORWARDED
from tests.waiting import patience

Said = list[tuple[str, dict[str, Any]]]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

ASKED = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
HALF_A_BODY = b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n01234"
LONG_ASKED = ASKED.replace(b"GET", b"POST")
LARGE_ASKED = ASKED.replace(b"GET /", b"GET /large")
LARGE_BODY = bytes(8_000_000)


async def closed(streams: Streams) -> bool:
    """Wait for the end, whatever is read before it."""
    async with asyncio.timeout(patience(3)):
        with suppress(ConnectionError):
            while await streams[0].read(65536):
                pass
    return True


class LimitedServer:
    """A server of an application that answers at once: PUT before it has read, and POST at great length.

    It answers `/large` with one large piece.
    """

    def __init__(self, log_limit: LogLimit, *, most: int, tls: Encryption | None) -> None:
        self.going_on = asyncio.Event()
        self.state = ServerState()
        self.made = 0
        self.port = 0
        self.dialled: list[asyncio.StreamWriter] = []
        self.limit = ConnectionLimit(log_limit, most=most)
        self._tls = None if tls is None else TlsPort(tls)
        self._config = uvicorn.Config(
            self._app,
            http="httptools",
            interface="asgi3",
            lifespan="off",
            ws="none",
            log_config=None,
            timeout_keep_alive=60,  # on a slow machine uvicorn's own limit, of 5 s, would come before ours
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

    async def dial_slowly(self, context: ssl.SSLContext | None = None) -> Streams:
        """Connect a client whose kernel reads little ahead of it."""
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 128 * 1024)
        client.setblocking(False)  # noqa: FBT003 - positional only
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", self.port))
        name = None if context is None else "localhost"
        streams = await asyncio.open_connection(sock=client, ssl=context, server_hostname=name)
        self.dialled.append(streams[1])
        await until(lambda: self.state.connections, what="a connection")
        return streams

    def _connection(self) -> ApiConnection | TlsConnection:
        self.made += 1
        connection = ApiConnection(self._config, self.state, {}, limit=self.limit)
        return connection if self._tls is None else self._tls.wrap(connection, connection.speaks_no_tls)

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        while scope["method"] != "PUT" and (await receive()).get("more_body", False):
            pass
        if scope["method"] != "POST":
            body = LARGE_BODY if scope["path"] == "/large" else b"ok"
            headers = [(b"content-length", b"%d" % len(body))]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1000):
            await send({"type": "http.response.body", "body": b"x" * 60_000, "more_body": True})
            await self.going_on.wait()


@asynccontextmanager
async def limited_server(
    said: Said | None = None, *, most: int = 3, tls: Encryption | None = None
) -> AsyncIterator[LimitedServer]:
    def emit(event: str, /, **fields: object) -> None:
        if said is not None:
            said.append((event, fields))

    log_limit = LogLimit(emit)
    one = LimitedServer(log_limit, most=most, tls=tls)
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


@pytest.mark.parametrize("encrypted", [False, True])
async def test_a_large_answer_reaches_a_client_that_reads_slowly(
    *, encrypted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: Said = []
    authority = Authority(tmp_path / "authority") if encrypted else None
    tls = None if authority is None else Encryption(TlsFiles(own=authority.issue()))
    async with limited_server(said, tls=tls) as one:
        reader, writer = await one.dial_slowly(None if authority is None else authority.trusting())
        unread = min(6.0, patience(1.5))
        monkeypatch.setattr(operator_connection, "REQUEST_SECONDS", 0.2)
        monkeypatch.setattr(operator_connection, "UNREAD_SECONDS", unread)
        writer.write(LARGE_ASKED)
        await reader.readuntil(b"\r\n\r\n")
        for _ in range(80):
            await asyncio.sleep(unread / 50)  # so slow is the client: longer in all than it may read nothing
            await reader.readexactly(len(LARGE_BODY) // 80)
        assert await closed((reader, writer))
    assert [fields["reason"] for _, fields in said] == ["no request in time"]


@pytest.mark.parametrize("asked", [LONG_ASKED, LARGE_ASKED, LARGE_ASKED.replace(b"1.1", b"1.0")])
async def test_a_client_that_stops_reading_its_answer_is_disconnected(
    asked: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: Said = []
    async with limited_server(said) as one:
        reader, writer = await one.dial_slowly()
        monkeypatch.setattr(operator_connection, "REQUEST_SECONDS", 0.1)
        monkeypatch.setattr(operator_connection, "UNREAD_SECONDS", 0.6)
        one.going_on.set()
        writer.write(asked)
        await reader.readexactly(100_000)
        await until(lambda: said, what="a disconnection")
    assert [fields["reason"] for _, fields in said] == ["an answer is not read"]


async def test_a_connection_whose_answer_is_being_read_is_not_closed_for_a_new_one() -> None:
    async with limited_server(most=1) as one:
        reader, writer = await one.dial_slowly()
        writer.write(LARGE_ASKED)
        await reader.readuntil(b"\r\n\r\n")
        assert await closed(await one.dial())
        await reader.readexactly(len(LARGE_BODY))
        writer.write(ASKED)
        assert await reader.readuntil(b"ok")


async def test_a_connection_whose_answer_is_not_read_is_closed_for_a_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(operator_connection, "_UNREAD_CHECKS", 600)
    said: Said = []
    async with limited_server(said, most=1) as one:
        reader, writer = await one.dial_slowly()
        writer.write(LARGE_ASKED)
        await reader.readuntil(b"\r\n\r\n")
        await until(lambda: one.limit.idle, what="a client that reads nothing")
        await reader.readexactly(1_000_000)
        await until(lambda: not one.limit.idle, what="a client that reads again")
        await until(lambda: one.limit.idle, what="a client that reads nothing again")
        newer = await one.dial(ASKED)
        assert await newer[0].readuntil(b"ok")
        assert await closed((reader, writer))
    assert [fields["reason"] for _, fields in said] == ["too many connections"]


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
        most = operator_connection.MAX_CONNECTIONS * (2 if FORWARDED else 1)  # of an instance twice as many
        silent = [socket.socket() for _ in range(most + 100)]
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
    assert operator_connection.MAX_CONNECTIONS >= MOST_STREAMS + live.MOST_STREAMS + 64
    taken = operator_connection.MAX_CONNECTIONS + CONNECTIONS_TO_REFUSE + 2 * ACCEPTED_AT_ONCE
    assert taken + 64 <= RESERVED_FILES  # and some for the store and the log
