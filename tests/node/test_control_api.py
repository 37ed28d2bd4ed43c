"""What the control API sees of a running agent, and asks of it."""

import asyncio
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from gpu_agent.session.types import DrainRequested, ResumeRequested, State
from gpu_agent.wire.inventory import Gpu, GpuReport, Outcome
from tests.bare_registry import BareRegistry, listening_registry
from tests.node.running_agent import RunningAgent, running_agent, settings_for
from tests.waiting import patience


def agent_at(registry: BareRegistry, folder: Path) -> AbstractAsyncContextManager[RunningAgent]:
    return running_agent(settings_for(registry.url, folder))


async def test_the_snapshot_shows_the_machine_and_the_session_with_its_times(tmp_path: Path) -> None:
    async with listening_registry() as registry, agent_at(registry, tmp_path) as running:
        await registry.next("node_heartbeat")
        snapshot = running.agent.snapshot()
        now = asyncio.get_running_loop().time()
        assert (snapshot.session.state, snapshot.session.node_id) == (State.REGISTERED, "node-A")
        assert (snapshot.session.address, snapshot.registry_urls) == (registry.url, (registry.url,))
        assert snapshot.inventory is not None
        assert len(snapshot.inventory.gpu.gpus) == 2
        for instant in (
            snapshot.state_since,
            snapshot.link_since,
            snapshot.status_received_at,
            snapshot.last_heartbeat_at,
        ):
            assert instant is not None
            assert now - 10 < instant <= now
        await running.stopped()


async def test_submit_returns_once_the_session_has_handled_the_request(tmp_path: Path) -> None:
    async with listening_registry() as registry, agent_at(registry, tmp_path) as running:
        await registry.next("node_heartbeat")
        async with asyncio.timeout(patience(5)):
            await running.agent.submit(DrainRequested("new fans", 60))
        assert running.agent.snapshot().session.drain_reason == "new fans"
        goodbye = await registry.next("node_unregister")
        assert (goodbye["drain"], goodbye["reason"]) == (True, "new fans")
        await registry.say(type="node_status", node_id="node-A", status="offline", reason="drained")
        await running.until(lambda: running.agent.session.state is State.DRAINED)
        await running.agent.submit(ResumeRequested())
        assert (await registry.next("node_register"))["node_id"] == "node-A"
        await running.stopped()


async def test_a_refresh_returns_after_a_probe_and_a_full_heartbeat_follows(tmp_path: Path) -> None:
    async with listening_registry() as registry, agent_at(registry, tmp_path) as running:
        await registry.next("node_heartbeat")
        before = running.agent.snapshot().inventory
        async with asyncio.timeout(patience(5)):
            await running.agent.refresh()
        assert running.agent.snapshot().inventory is not before
        while "hardware" not in await registry.next("node_heartbeat"):
            pass
        await running.stopped()


async def test_a_refresh_waits_for_a_probe_that_began_after_it(tmp_path: Path) -> None:
    begun, may_end = asyncio.Semaphore(0), asyncio.Semaphore(0)

    async def read() -> GpuReport:
        begun.release()
        await may_end.acquire()
        return GpuReport(outcome=Outcome.OK, gpus=(Gpu(uuid="G", name="X", memory_mb=24576),))

    async with (
        listening_registry() as registry,
        running_agent(settings_for(registry.url, tmp_path), read=read) as running,
        asyncio.timeout(patience(20)),
    ):
        await begun.acquire()
        may_end.release()
        await registry.next("node_heartbeat")
        await begun.acquire()
        before = running.agent.snapshot().inventory
        refreshing = asyncio.ensure_future(running.agent.refresh())
        await asyncio.sleep(0)
        may_end.release()
        await running.until(lambda: running.agent.snapshot().inventory is not before)
        await begun.acquire()
        assert not refreshing.done()
        may_end.release()
        await refreshing
        await running.stopped()
