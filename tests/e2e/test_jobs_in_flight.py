"""Jobs in flight from the worker's word to the registry's verdict, and what stands in for them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gpu_agent.node.agent import Agent
from gpu_agent.node.gpu_readings import open_gpus
from gpu_agent.node.identity import IdentityFile
from gpu_agent.node.jobs import WorkerProcess
from gpu_agent.node.settings import load
from gpu_agent.runtime.tasks import Tasks
from gpu_agent.server.service import RegistryService
from gpu_agent.wire.api import NodeDetail
from tests.e2e.test_identity_over_sockets import QUICK
from tests.nvml_fake.control import FakeNvml
from tests.server.harness import running, until
from tests.waiting import patience


@asynccontextmanager
async def agent_at(service: RegistryService, folder: Path, *, simulate: str | None) -> AsyncIterator[Agent]:
    settings = load(
        {
            "registry_url": f"ws://{service.node_address}/ws/node",
            "state_dir": folder,
            "simulate": simulate,
            "probe_interval_seconds": 0.1,
        }
    )
    identity = IdentityFile(folder)
    identity.load()
    gpus = open_gpus(simulate=simulate, seed="m", deadline_seconds=20)
    async with gpus as source, Tasks() as tasks:
        agent = Agent(settings, identity, source, session=QUICK)
        ended = tasks.start("agent", agent.run(tasks))
        yield agent
        await agent.stop("the test is over")
        async with asyncio.timeout(patience(5)):
            await ended
        tasks.end()


def seen(service: RegistryService, node_id: str) -> NodeDetail:
    node = service.node(node_id)
    assert node is not None
    return node


async def ready(service: RegistryService) -> str:
    def look() -> list[str]:
        return [one.node_id for one in service.nodes() if one.status == "ready"]

    return (await until(look, what="a node is ready"))[0]


async def test_a_drain_waits_for_announced_jobs_and_ends_with_the_last(tmp_path: Path) -> None:
    async with (
        running(allow_simulated=True) as service,
        agent_at(service, tmp_path, simulate="1xL4") as agent,
    ):
        node_id = await ready(service)
        worker = WorkerProcess("w")
        agent.jobs.start("job-1", worker, uid=0, now=1.0)
        agent.jobs.start("job-2", worker, uid=0, now=1.0)
        await until(
            lambda: seen(service, node_id).running_jobs == ("job-1", "job-2"), what="the ids are reported"
        )
        await service.drain(node_id)
        agent.jobs.finish("job-1")
        await until(lambda: seen(service, node_id).running_jobs == ("job-2",), what="one is left")
        assert seen(service, node_id).status == "draining"
        agent.jobs.remove_worker(worker)
        await until(lambda: seen(service, node_id).status == "offline", what="the drain is over")
        assert seen(service, node_id).reason_code == "drain_complete"


def processes(node: NodeDetail) -> list[int | None]:
    return [gpu.processes for gpu in node.gpus]


async def test_processes_on_the_gpus_are_shown_and_occupy_no_slot_and_delay_no_drain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    for name, value in fake.environment().items():
        monkeypatch.setenv(name, value)
    fake.set("process", "0", "4242", str(1 << 30))
    fake.set("process", "1", "4242", str(1 << 30))
    fake.set("process", "1", "4343", str(1 << 30))
    async with running() as service, agent_at(service, tmp_path, simulate=None):
        node_id = await ready(service)
        await until(lambda: processes(seen(service, node_id)) == [1, 2], what="the processes are shown")
        assert (seen(service, node_id).running_jobs, seen(service, node_id).in_flight_jobs) == (None, 0)
        await service.drain(node_id)
        await until(lambda: seen(service, node_id).status == "offline", what="the drain is over")
        assert seen(service, node_id).reason_code == "drain_complete"
