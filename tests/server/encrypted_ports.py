"""Encrypted ports of a registry in this process, and peers that connect to them."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.client import connect

from gpu_agent.runtime.address import bound_address
from gpu_agent.server.api.app import ApiServer
from gpu_agent.server.limits import Limits
from gpu_agent.server.service import RegistryService
from gpu_agent.server.tls import Encryption, TlsFiles
from tests.authority import Authority
from tests.server.harness import LOOPBACK, Node, running
from tests.waiting import patience


@asynccontextmanager
async def encrypted(authority: Authority, limits: Limits | None = None) -> AsyncIterator[RegistryService]:
    async with running(tls=Encryption(TlsFiles(own=authority.issue())), limits=limits) as service:
        yield service


@asynccontextmanager
async def node(service: RegistryService, context: ssl.SSLContext) -> AsyncIterator[Node]:
    address = f"wss://localhost:{service.node_address.port}/ws/node"
    async with connect(address, ssl=context, proxy=None, compression=None, close_timeout=1) as socket:
        yield Node(socket)


@asynccontextmanager
async def stranger(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connected peer that has sent nothing yet."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What a peer receives until it is disconnected."""
    async with asyncio.timeout(patience(5)):
        heard = b""
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(65536):
                heard += piece
    return heard


def refusals(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(one)["fields"] for one in caplog.records if one.getMessage() == "tls_handshake_failed"]


def hello(authority: Authority) -> bytes:
    """The first record of a handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = authority.trusting().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


@asynccontextmanager
async def operators(service: RegistryService, encryption: Encryption) -> AsyncIterator[int]:
    listener = LOOPBACK.bind()
    server = ApiServer(service, listener, address=LOOPBACK, tls=encryption)
    serving = asyncio.ensure_future(server.serve())
    try:
        yield bound_address(listener).port
    finally:
        server.stop()
        await asyncio.wait_for(serving, patience(5))
