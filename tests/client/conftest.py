"""A registry with one node of two GPUs, and a client."""

from collections.abc import AsyncIterator

import pytest

from gpu_agent.client import RegistryClient
from tests.client.harness import Front, fronted, two_gpus
from tests.server.harness import Node


@pytest.fixture
async def front() -> AsyncIterator[Front]:
    async with fronted() as front:
        yield front


@pytest.fixture
async def gpu_node(front: Front) -> AsyncIterator[Node]:
    async with two_gpus(front.service) as ready:
        yield ready


@pytest.fixture
async def client(front: Front) -> AsyncIterator[RegistryClient]:
    async with RegistryClient(front.url, retry_seconds=2) as client:
        yield client
