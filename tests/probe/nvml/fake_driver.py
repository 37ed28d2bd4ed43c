"""The daemon's way to a driver, with a real child and the fake library, in a test."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gpu_agent.probe.health.tracker import MissedReading
from gpu_agent.probe.nvml.client import ChildConnection, ChildPolicy, NvmlClient
from gpu_agent.wire.inventory import GpuReport
from tests.nvml_fake.control import FakeNvml
from tests.waiting import patience

AT_ONCE = ChildPolicy(restart_seconds=0.0, restart_ceiling_seconds=0.0)


@asynccontextmanager
async def probing(
    fake: FakeNvml, deadline_seconds: float = 20.0, *, policy: ChildPolicy | None = None
) -> AsyncIterator[NvmlClient]:
    """A probe of the fake machine that leaves no process behind."""
    probe = NvmlClient(deadline_seconds=deadline_seconds, env=fake.environment(), policy=policy)
    try:
        yield probe
    finally:
        for fault in ("hang", "delay"):
            fake.unset(fault)
        child = probe._child
        await probe.close()
        assert child is None or await child.wait_ended(10)


async def report_from(probe: NvmlClient) -> GpuReport:
    """Read until the driver answers."""
    async with asyncio.timeout(patience(30)):
        while isinstance(result := await probe.read(), MissedReading):
            pass
    return result


async def miss_from(probe: NvmlClient) -> MissedReading:
    result = await probe.read()
    assert isinstance(result, MissedReading), result
    return result


def child_of(probe: NvmlClient) -> ChildConnection:
    assert probe._child is not None
    return probe._child
