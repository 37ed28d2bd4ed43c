"""How a true registry is, and the figures by which it is watched."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gpu_agent.server.limits import Limits
from gpu_agent.server.service import RegistryService
from gpu_agent.server.service_settings import ServiceSettings
from gpu_agent.store.memory import MemoryStore
from tests.server.harness import LOOPBACK, Node, node, registration, running, until


@asynccontextmanager
async def loitering(service: RegistryService) -> AsyncIterator[None]:
    """Hold a connection open and say nothing."""
    _, writer = await asyncio.open_connection(service.node_address.host, service.node_address.port)
    await until(lambda: service.size.connections == 1, what="the connection")
    yield
    writer.close()
    await writer.wait_closed()


def failing(service: RegistryService) -> dict[str, str]:
    return {check.name: check.detail for check in service.vitals.readiness() if not check.ok}


async def test_a_registry_that_runs_is_ready(service: RegistryService) -> None:
    assert failing(service) == {}


async def test_a_registry_that_has_not_started_or_has_stopped_is_not_ready() -> None:
    service = RegistryService(ServiceSettings(node_listen=LOOPBACK), MemoryStore())
    assert set(failing(service)) == {"fleet", "nodes"}
    await service.start()
    assert failing(service) == {}
    await service.stop()
    assert set(failing(service)) == {"fleet", "nodes"}


async def test_a_registry_without_room_for_another_node_is_not_ready() -> None:
    async with running(limits=Limits(max_connections=0)) as service:
        assert failing(service) == {}
        async with loitering(service):
            assert "is full" in failing(service)["nodes"]


async def test_figures_tell_of_nodes_beats_claims_and_refusals(service: RegistryService, ready: Node) -> None:
    async with node(service) as poor:
        await poor.say(registration(hardware={"cpu_cores": 1, "memory_gb": 1}))
        assert (await poor.hear())["code"] == "GPU_REQUIRED"
    figures = await service.vitals.figures()
    assert figures.ready
    assert figures.headcount.statuses["ready"] == 1
    assert figures.headcount.gpus == {("NVIDIA L4", "ok"): 1}
    assert (figures.beats, figures.connections >= 1, figures.listeners) == (3, True, 0)
    assert (figures.tally.registrations, figures.tally.refusals) == (1, {"GPU_REQUIRED": 1})
    assert ("registering", "ready", "health_checks_passed") in figures.tally.status_changes
    assert ready.node_id
