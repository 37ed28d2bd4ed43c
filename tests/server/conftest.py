"""A registry that runs, its operator API, and a node that is ready."""

from collections.abc import AsyncIterator

import httpx
import pytest

from gpu_agent.server.service import RegistryService
from tests.server.api_harness import serving
from tests.server.harness import Node, node, running


@pytest.fixture
async def service() -> AsyncIterator[RegistryService]:
    async with running() as service:
        yield service


@pytest.fixture
async def api(service: RegistryService) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(service) as client:
        yield client


@pytest.fixture
async def ready(service: RegistryService) -> AsyncIterator[Node]:
    async with node(service) as ready:
        await ready.become_ready(labels={"zone": "a"})
        yield ready


@pytest.fixture
async def other(service: RegistryService) -> AsyncIterator[Node]:
    """A healthy node that must stay served, whatever another peer sends."""
    async with node(service) as other:
        await other.register()
        yield other
