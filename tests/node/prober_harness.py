"""A prober at a quick pace, in a test."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from gpu_agent.node.gpu_readings import Collectors, GpuSource, ReadGpus
from gpu_agent.node.prober import Pace, Prober
from gpu_agent.probe.health.tracker import MissedReading
from gpu_agent.probe.host.host import HostProbe
from gpu_agent.probe.snapshot import Sources
from gpu_agent.runtime.tasks import Tasks
from gpu_agent.wire.inventory import Gpu, GpuReport, Host, Inventory, Outcome
from tests.waiting import patience

GOOD = GpuReport(outcome=Outcome.OK, gpus=(Gpu(uuid="GPU-1", name="A100", memory_mb=81920),))
HUNG = MissedReading(reason="nvml_hung", since=0.0, detail="no answer")
PACE = Pace(interval_seconds=0.01, deadline_seconds=0.05, stale_after_seconds=60, retry_driver_seconds=0.01)


class CountingHost(HostProbe):
    """A host whose load is the number of its reading, and that does not answer while it is held."""

    def __init__(self, root: Path) -> None:
        super().__init__(root=root)
        self.release = threading.Event()
        self.release.set()
        self._reads = 0

    def read(self) -> Host:
        self._reads += 1
        number = self._reads
        self.release.wait(patience(30))
        return replace(super().read(), load_1m=float(number))


def always(result: GpuReport | MissedReading) -> ReadGpus:
    async def read() -> GpuReport | MissedReading:
        return result

    return read


@asynccontextmanager
async def probing(
    read: ReadGpus | GpuSource,
    sources: Sources | None = None,
    *,
    pace: Pace = PACE,
    collectors: Collectors | None = None,
) -> AsyncIterator[tuple[Prober, Callable[[], Awaitable[Inventory]]]]:
    found: asyncio.Queue[Inventory] = asyncio.Queue()
    prober = Prober(
        read if isinstance(read, GpuSource) else GpuSource(read),
        sources or Sources(),
        pace=pace,
        simulated=True,
        listener=found.put,
        collectors=collectors,
    )

    async def next_one() -> Inventory:
        async with asyncio.timeout(patience(10)):
            return await found.get()

    async with Tasks() as tasks:
        tasks.start("prober", prober.run(tasks))
        yield prober, next_one
        tasks.end()
