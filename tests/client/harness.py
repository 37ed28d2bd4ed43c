"""A registry in this process, behind an operators' port that can be taken away and given back."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Self

from gpu_agent.client import JobRequest
from gpu_agent.registry.settings import Thresholds
from gpu_agent.runtime.address import Address, bound_address
from gpu_agent.server.api.app import ApiServer
from gpu_agent.server.service import RegistryService
from tests.server.harness import LOOPBACK, QUICK, Node, node, running
from tests.waiting import patience

GPUS = tuple(
    {"name": "NVIDIA H100", "memory_gb": 80, "uuid": f"GPU-{number}", "index": number} for number in range(2)
)
ONE_GPU = JobRequest(job_id="train", gpu_count=1)
ALL_GPUS = JobRequest(job_id="other", gpu_count=2)


def thresholds(*, claim_ttl_seconds: float = 60.0) -> Thresholds:
    """Of a registry that expects no heartbeat while a test lasts."""
    return replace(
        QUICK,
        claim_ttl_seconds=claim_ttl_seconds,
        heartbeat_interval_seconds=200.0,
        heartbeat_timeout_seconds=600.0,
    )


class Front:
    """The operators' port of a registry."""

    def __init__(self, service: RegistryService) -> None:
        self.service = service
        self._address = LOOPBACK
        self._server: ApiServer | None = None
        self._serving: asyncio.Future[None] | None = None
        self._reserved: socket.socket | None = None

    @property
    def url(self) -> str:
        return f"http://{self._address}"

    async def open(self) -> Self:
        listener = self._bind()
        self._address = bound_address(listener)
        self._server = ApiServer(self.service, listener, address=self._address)
        self._serving = asyncio.ensure_future(self._server.serve())
        return self

    async def close(self) -> None:
        """Refuse connections from now on, and keep the port; the registry lives on."""
        if self._server is not None and self._serving is not None:
            self._server.stop()
            await asyncio.wait_for(self._serving, patience(5))
        self._server = None

    def listen_in_silence(self) -> None:
        """Accept connections, once it is closed, and answer none, as a frozen program does."""
        if self._reserved is not None:
            self._reserved.listen()

    def leave(self) -> None:
        """Give the port back."""
        if self._reserved is not None:
            self._reserved.close()

    def _bind(self) -> socket.socket:
        if self._reserved is None:  # bound and not listening: no other program gets this port meanwhile
            self._reserved = socket.socket()
            self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._reserved.bind((self._address.host, self._address.port))
            self._address = Address(self._address.host, self._reserved.getsockname()[1])
        return Address(self._address.host, self._address.port).bind()


@asynccontextmanager
async def fronted(chosen: Thresholds | None = None, *, auth_on: bool = False) -> AsyncIterator[Front]:
    async with running(chosen or thresholds(), auth_on=auth_on, allow_simulated=True) as service:
        front = Front(service)
        await front.open()
        try:
            yield front
        finally:
            await front.close()
            front.leave()


@asynccontextmanager
async def two_gpus(service: RegistryService, *, token: str | None = None) -> AsyncIterator[Node]:
    """A node with two GPUs, ready for jobs."""
    async with node(service, token=token) as connected:
        hardware = {"cpu_cores": 8, "memory_gb": 32, "gpus": list(GPUS)}
        await connected.become_ready(hardware=hardware, capability_schema_version="1.1")
        yield connected
