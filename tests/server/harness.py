"""A real registry on a real port, and nodes that connect to it over real sockets."""

import asyncio
import atexit
import functools
import json
import os
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Any, TypeVar

from websockets.asyncio.client import ClientConnection, connect

from gpu_agent.registry.job import Job
from gpu_agent.registry.settings import Thresholds
from gpu_agent.runtime.address import Address
from gpu_agent.server.limits import Limits
from gpu_agent.server.node_connection import NodeConnection
from gpu_agent.server.service import RegistryService, ServiceSettings
from gpu_agent.server.tls import Encryption
from gpu_agent.server.websocket import Handshake
from gpu_agent.store.base import Store
from gpu_agent.store.etcd.client import Access
from gpu_agent.store.etcd.store import EtcdStore
from gpu_agent.store.memory import MemoryStore
from gpu_agent.wire.api import ClaimView, NodeDetail
from tests.gateways import GATEWAYS
from tests.store.etcd_cluster import cluster
from tests.waiting import patience

T = TypeVar("T")

ON_ETCD = bool(os.environ.get("TEST_ETCD"))
"""Whether registries under test store in etcd: `make test-instances` runs many tests again so."""

ANSWER_SECONDS = 5.0
QUICK = Thresholds(
    heartbeat_interval_seconds=0.2,
    warmup_heartbeat_interval_seconds=0.05,
    heartbeat_timeout_seconds=5.0,
    scan_interval_seconds=0.05,
)
LOOPBACK = Address("127.0.0.1", 0)


@asynccontextmanager
async def running(
    thresholds: Thresholds = QUICK,
    *,
    limits: Limits | None = None,
    store: Store | None = None,
    allow_simulated: bool = False,
    auth_on: bool = False,
    tls: Encryption | None = None,
) -> AsyncIterator[RegistryService]:
    service = RegistryService(
        ServiceSettings(
            node_listen=LOOPBACK,
            thresholds=thresholds,
            limits=limits or Limits(close_timeout_seconds=0.3),
            allow_simulated=allow_simulated,
            auth_on=auth_on,
            tls=tls,
            gateways=GATEWAYS,
        ),
        store or fresh_store(),
    )
    await service.start()
    try:
        yield service
    finally:
        await service.stop()


def fresh_store() -> Store:
    """A store with nothing in it: in memory, or in etcd where that is tested."""
    return EtcdStore(_etcd(), secrets.token_hex(8)) if ON_ETCD else MemoryStore()


@functools.cache
def _etcd() -> Access:
    """Three members, until this program ends."""
    until_the_end = ExitStack()
    atexit.register(until_the_end.close)
    return until_the_end.enter_context(cluster(3)).access


def known(service: RegistryService, node_id: str) -> NodeDetail:
    found = service.node(node_id)
    assert found is not None
    return found


async def placed(service: RegistryService, job_id: str) -> ClaimView:
    placement = await service.claim(Job(job_id=job_id))
    assert isinstance(placement, ClaimView)
    return placement


def registration(**fields: object) -> dict[str, Any]:
    """The minimal frame of §3.1, and what is added to it."""
    return {
        "type": "node_register",
        "version": "1.0.0",
        "hardware": {"cpu_cores": 8, "memory_gb": 32, "gpus": [{"name": "NVIDIA L4", "memory_gb": 24}]},
        "installed_models": [{"model_id": "m", "version": "1", "enabled": True}],
        "accept_public_jobs": False,
        **fields,
    }


def heartbeat(node_id: str, **fields: object) -> dict[str, Any]:
    return {
        "type": "node_heartbeat",
        "node_id": node_id,
        "timestamp": 1_795_517_679_000,
        "resource_usage": {"cpu_percent": 10.0, "mem_percent": 20.0, "running_jobs": 0},
        **fields,
    }


class Node:
    """A node's end of a WebSocket."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.node_id = ""

    async def send(self, message: dict[str, Any]) -> None:
        await self.socket.send(json.dumps(message))

    async def receive(self) -> dict[str, Any]:
        async with asyncio.timeout(ANSWER_SECONDS):
            message: dict[str, Any] = json.loads(await self.socket.recv())
        return message

    async def receive_type(self, kind: str, **fields: object) -> dict[str, Any]:
        """The next message of a type with these fields; others are skipped."""
        while True:
            message = await self.receive()
            if message["type"] == kind and all(message.get(name) == value for name, value in fields.items()):
                return message

    async def register(self, **fields: object) -> dict[str, Any]:
        await self.send(registration(**fields))
        ack = await self.receive_type("node_register_ack")
        self.node_id = ack["node_id"]
        return ack

    async def heartbeat(self, **fields: object) -> None:
        await self.send(heartbeat(self.node_id, **fields))

    async def become_ready(self, **fields: object) -> dict[str, Any]:
        await self.register(**fields)
        for _ in range(3):
            await self.heartbeat()
        return await self.receive_type("node_status", status="ready")

    async def closed(self) -> tuple[int, str]:
        """Wait for the close frame; its code and reason."""
        async with asyncio.timeout(ANSWER_SECONDS):
            await self.socket.wait_closed()
        return self.socket.close_code or 0, self.socket.close_reason or ""


def url(service: RegistryService, path: str = "/ws/node") -> str:
    return f"ws://{service.node_address}{path}"


@asynccontextmanager
async def node(service: RegistryService, *, token: str | None = None) -> AsyncIterator[Node]:
    """A connected node; with a token, it presents it."""
    headers = None if token is None else {"Authorization": f"Bearer {token}"}
    async with connect(
        url(service), proxy=None, compression=None, close_timeout=1, additional_headers=headers
    ) as socket:
        yield Node(socket)


def admit_all(_connection: NodeConnection, _handshake: Handshake) -> None:
    """Accept every handshake, as with auth off."""


async def until(look: Callable[[], T], *, what: str) -> T:
    """Let the loop run until `look` returns something; a busy machine has more time."""
    within_seconds = patience(ANSWER_SECONDS)
    try:
        async with asyncio.timeout(within_seconds):
            while not (seen := look()):  # noqa: ASYNC110 - what is looked at has no event of its own
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {within_seconds:.0f} s: {what}") from None
    return seen


async def is_served(other: Node) -> None:
    node_id = other.node_id
    assert (await other.register(node_id=node_id))["node_id"] == node_id
