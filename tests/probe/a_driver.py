"""The daemon's way to a driver, with a real child and the fake library, in a test."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gpu_agent.probe.health import Missed
from gpu_agent.probe.nvml.conversation import Conversation
from gpu_agent.probe.nvml.nvml import ChildPolicy, NvmlProbe
from gpu_agent.wire.inventory import GpuReport
from tests.nvml_fake.control import FakeNvml

AT_ONCE = ChildPolicy(restart_seconds=0.0, restart_ceiling_seconds=0.0)


@asynccontextmanager
async def probing(
    fake: FakeNvml, deadline_seconds: float = 20.0, *, policy: ChildPolicy | None = None
) -> AsyncIterator[NvmlProbe]:
    """A probe of the fake machine that leaves no process behind."""
    probe = NvmlProbe(deadline_seconds=deadline_seconds, env=fake.environment(), policy=policy)
    try:
        yield probe
    finally:
        for fault in ("hang", "delay"):
            fake.unset(fault)
        child = probe._child
        await probe.close()
        assert child is None or await child.gone_within(10)


async def report_from(probe: NvmlProbe) -> GpuReport:
    """Read until the driver answers."""
    async with asyncio.timeout(30):
        while isinstance(result := await probe.read(), Missed):
            pass
    return result


async def miss_from(probe: NvmlProbe) -> Missed:
    result = await probe.read()
    assert isinstance(result, Missed), result
    return result


def child_of(probe: NvmlProbe) -> Conversation:
    assert probe._child is not None
    return probe._child
