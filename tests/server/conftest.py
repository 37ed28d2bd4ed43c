"""A registry that runs, its operator API, and a node that is ready."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import httpx
import pytest

from gpu_agent.server.event_loop import loop_factory
from gpu_agent.server.service import RegistryService
from tests.server.api_harness import serving
from tests.server.harness import Node, node, running

ON_BOTH_LOOPS = {
    "test_connection_limits.py",
    "test_limits.py",
    "test_node_connection.py",
    "test_node_listener.py",
    "test_tls.py",
}
"""What touches transports: a registry that is embedded runs on its program's loop, mostly asyncio's own."""


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run each test on the loop of `registry serve`, and those of connections on asyncio's own too."""
    served = loop_factory()
    if served is None:
        return {"asyncio": asyncio.new_event_loop}
    both = {"uvloop": served, "asyncio": asyncio.new_event_loop}
    return both if item.path.name in ON_BOTH_LOOPS else {"uvloop": served}


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
