"""A connection whose packets vanish: the registry still holds it while its node is back on a new one (§4)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.client import connect

from gpu_agent.registry.settings import Thresholds
from gpu_agent.runtime.address import Address
from gpu_agent.runtime.tasks import Tasks
from gpu_agent.server.service import RegistryService
from gpu_agent.wire.api import NewToken
from tests.server.harness import Node, known, node, registration, running, until

SLOW = Thresholds(
    heartbeat_interval_seconds=1.0,
    warmup_heartbeat_interval_seconds=0.05,
    heartbeat_timeout_seconds=60.0,
    scan_interval_seconds=0.05,
)
"""A silent node is disconnected after 2.5 s, and offline long after the test."""


class Line:
    """A TCP line between nodes and the registry; once it is cut, no packet of either side gets through."""

    def __init__(self, registry: Address, tasks: Tasks) -> None:
        self._registry = registry
        self._tasks = tasks
        self._is_cut = False
        self.writers: list[asyncio.StreamWriter] = []

    def cut(self) -> None:
        """Stop forwarding; no socket is closed, so neither side receives an end."""
        self._is_cut = True

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._registry.host, self._registry.port)
        self.writers += [writer, far_writer]
        self._tasks.start("to the registry", self._forward(reader, far_writer))
        self._tasks.start("to the node", self._forward(far_reader, writer))

    async def _forward(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            if not self._is_cut:
                target.write(data)


@asynccontextmanager
async def line_to(service: RegistryService) -> AsyncIterator[tuple[Line, str]]:
    """A line, and the URL at its near end."""
    async with Tasks() as tasks:
        line = Line(service.node_address, tasks)
        server = await asyncio.start_server(line.accept, "127.0.0.1", 0)
        try:
            yield line, f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws/node"
        finally:
            server.close()
            for writer in line.writers:
                writer.transport.abort()
            tasks.end()


@asynccontextmanager
async def half_cut(service: RegistryService, *, token: str | None = None) -> AsyncIterator[dict[str, Any]]:
    """A ready node, by its ack, whose packets vanish from now on."""
    headers = None if token is None else {"Authorization": f"Bearer {token}"}
    async with line_to(service) as (line, url):
        socket = await connect(
            url, proxy=None, compression=None, close_timeout=0.1, additional_headers=headers
        )
        old = Node(socket)
        ack = await old.register(node_id=None if token else "node-A")
        for _ in range(3):
            await old.heartbeat()
        await old.receive_type("node_status", status="ready")
        line.cut()
        try:
            yield ack
        finally:
            await socket.close()


async def test_without_a_token_the_id_is_free_once_the_old_connection_counts_as_disconnected() -> None:
    async with running(SLOW) as service, half_cut(service), node(service) as back:
        await back.send(registration(node_id="node-A"))
        assert (await back.receive())["code"] == "NODE_ID_CONFLICT"
        assert known(service, "node-A").connected
        await until(lambda: not known(service, "node-A").connected, what="the silent node is disconnected")
        assert known(service, "node-A").status == "ready"
        excluded = service.explain_node("node-A")
        assert excluded is not None
        assert [one.reason for one in excluded.exclusions][:1] == ["disconnected"]
        assert (await back.register(node_id="node-A"))["session_epoch"] == 2
        assert known(service, "node-A").connected
        await until(lambda: service.size.connections == 1, what="the old connection is dropped")
        for _ in range(3):
            await back.heartbeat()
        await back.receive_type("node_status", status="ready")


async def test_a_node_with_its_token_is_back_at_once() -> None:
    async with running(SLOW, auth_on=True) as service:
        joined = await service.tokens.create_join()
        assert isinstance(joined, NewToken)
        async with (
            half_cut(service, token=joined.token) as ack,
            node(service, token=ack["node_token"]) as back,
        ):
            assert known(service, ack["node_id"]).connected
            assert (await back.register(node_id=ack["node_id"]))["session_epoch"] == 2
            await until(lambda: service.size.connections == 1, what="the old connection is dropped")
            assert known(service, ack["node_id"]).connected
