"""An idle machine whose GPUs are well is read before heartbeats, and at once when something changes."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from gpu_agent.node.gpu_readings import Collectors, GpuSource
from gpu_agent.node.jobs import WorkerProcess
from gpu_agent.node.prober import RESTING_ROUNDS, Pace, Prober
from gpu_agent.probe.collectors.protocol import InstalledCollector, Surroundings
from gpu_agent.probe.collectors.runner import CollectorRunner
from gpu_agent.probe.health.reasons import health_from, reason
from gpu_agent.probe.models.scanner import ModelScanner
from gpu_agent.probe.nvml.client import Watch
from gpu_agent.probe.snapshot import Sources
from gpu_agent.wire.inventory import Gpu, GpuProcess, GpuReport, Outcome
from tests.bare_registry import ACK, listening_registry
from tests.node.prober_harness import GOOD, probing
from tests.node.running_agent import QUICK, RunningAgent, running_agent, settings_for
from tests.waiting import patience

ROUND_SECONDS = 0.05
RESTED_SECONDS = (RESTING_ROUNDS + 0.9) * ROUND_SECONDS
"""No two readings are closer where all rounds between them rest; a timer may be a little early."""
WELL = replace(GOOD.gpus[0], recovery_action="none")


class Machine:
    """GPUs that are always as stated, and when they were read and watched."""

    def __init__(self, report: GpuReport = GOOD) -> None:
        self.report = report
        self._read_at: asyncio.Queue[float] = asyncio.Queue()
        self.watch: Watch | None = None
        self.source = GpuSource(self._read, self._watch)

    async def _read(self) -> GpuReport:
        self._read_at.put_nowait(time.monotonic())
        return self.report

    def _watch(self, watch: Watch | None) -> None:
        self.watch = watch

    def is_watched(self) -> bool:
        return self.watch is not None

    async def readings(self, count: int) -> list[float]:
        """Wait for a reading, and for so many after it; the seconds between each and the one before."""
        while not self._read_at.empty():
            self._read_at.get_nowait()
        async with asyncio.timeout(patience(20)):
            moments = [await self._read_at.get() for _ in range(count + 1)]
        return [after - before for before, after in pairwise(moments)]


@asynccontextmanager
async def rounds_of(
    machine: Machine,
    needed_at: Callable[[], float | None] = lambda: math.inf,
    *,
    collectors: Collectors | None = None,
    interval_seconds: float = ROUND_SECONDS,
) -> AsyncIterator[Prober]:
    """The prober of an idle machine, after the readings that a start takes."""
    pace = Pace(
        interval_seconds=interval_seconds, deadline_seconds=20, stale_after_seconds=60, needed_at=needed_at
    )
    sources = Sources(scanner=ModelScanner(()))
    async with probing(machine.source, sources, pace=pace, collectors=collectors) as (prober, next_one):
        for _ in range(3):
            await next_one()
        yield prober


def degraded() -> Gpu:
    reasons = (reason("recovery_reset"),)
    return replace(WELL, health=health_from(reasons), reasons=reasons, recovery_action="recovery_reset")


async def test_while_all_is_well_so_many_rounds_rest_and_the_gpus_are_watched() -> None:
    machine = Machine()
    async with rounds_of(machine):
        waits = await machine.readings(2)
        assert min(waits) >= RESTED_SECONDS
        assert machine.watch is not None
        assert machine.watch.every_seconds == ROUND_SECONDS


async def test_the_last_round_before_figures_are_needed_reads() -> None:
    machine = Machine()
    async with rounds_of(machine, lambda: time.monotonic() + 1.5 * ROUND_SECONDS):
        assert min(await machine.readings(2)) >= RESTED_SECONDS
    async with rounds_of(machine, lambda: time.monotonic() + 0.5 * ROUND_SECONDS):
        assert min(await machine.readings(4)) < RESTED_SECONDS


async def test_what_changes_is_read_at_once() -> None:
    machine = Machine()
    async with rounds_of(machine, interval_seconds=0.5) as prober:
        await machine.readings(1)
        assert machine.watch is not None
        for begin in (machine.watch.changed, prober.probe_now):
            begin()
            async with asyncio.timeout(0.4):
                await machine.readings(0)


@pytest.mark.parametrize(
    "gpu",
    [
        degraded(),
        replace(GOOD.gpus[0], processes=(GpuProcess(pid=1),)),
        replace(GOOD.gpus[0], throttle_reasons=("hw_thermal_slowdown",)),
    ],
    ids=["degraded", "used", "slowed down"],
)
async def test_a_gpu_that_is_not_well_or_is_used_is_read_in_each_round_and_not_watched(gpu: Gpu) -> None:
    machine = Machine(replace(GOOD, gpus=(GOOD.gpus[0], replace(gpu, uuid="GPU-2", index=1))))
    async with rounds_of(machine):
        assert min(await machine.readings(4)) < RESTED_SECONDS
        assert not machine.is_watched()


async def test_a_fault_ends_the_rest_and_its_end_after_probation_begins_it_again() -> None:
    machine = Machine()
    async with rounds_of(machine):
        machine.report = replace(GOOD, gpus=(degraded(),))
        await machine.readings(2)
        assert min(await machine.readings(4)) < RESTED_SECONDS
        machine.report = replace(GOOD, gpus=(WELL,))
        await machine.readings(5)
        assert min(await machine.readings(2)) >= RESTED_SECONDS


async def test_gpus_that_nothing_watches_are_read_in_each_round() -> None:
    machine = Machine()
    machine.source = GpuSource(machine.source.read)
    async with rounds_of(machine):
        assert min(await machine.readings(4)) < RESTED_SECONDS


async def test_gpus_of_a_collector_are_read_in_each_round() -> None:
    class Amd:
        interface = 1

        def read(self, deadline_seconds: float) -> GpuReport:
            assert deadline_seconds > 0
            gpu = Gpu(uuid="GPU-amd", name="MI210", vendor="amd", memory_mb=65_536)
            return GpuReport(outcome=Outcome.OK, gpus=(gpu,))

    installed = InstalledCollector(name="amd", load=lambda: lambda _: Amd())
    collectors = Collectors((CollectorRunner(installed, Surroundings()),), deadline_seconds=20)
    machine = Machine()
    async with rounds_of(machine, collectors=collectors):
        assert min(await machine.readings(4)) < RESTED_SECONDS


# The agent


@asynccontextmanager
async def idle_agent(folder: Path, machine: Machine, **settings: object) -> AsyncIterator[RunningAgent]:
    ack = {**ACK, "heartbeat_interval_seconds": 30, "warmup_heartbeat_interval_seconds": 30}
    async with listening_registry(ack) as registry:
        chosen = settings_for(registry.url, folder, probe_interval_seconds=ROUND_SECONDS * 2, **settings)
        async with running_agent(chosen, session=QUICK, read=machine.source) as running:
            await registry.next("node_heartbeat")
            await machine.readings(3)
            yield running
            await running.stopped()


async def test_an_idle_agent_rests_until_a_worker_announces_a_job(tmp_path: Path) -> None:
    machine = Machine()
    async with idle_agent(tmp_path, machine) as running:
        await machine.readings(1)
        assert machine.is_watched()
        assert running.agent.jobs.start("job-1", WorkerProcess("w"), uid=0, now=1.0) is None
        await machine.readings(2)
        assert not machine.is_watched()
        assert running.agent.jobs.finish("job-1")
        await machine.readings(2)
        assert machine.is_watched()


@pytest.mark.parametrize(
    "settings",
    [
        {"metrics_file": "/nowhere/gpus.prom"},
        {"accept_public_jobs": True, "public_jobs": {"max_temperature_c": 80}},
        {"accept_public_jobs": True, "public_jobs": {"schedule": "mon-sun 00:00-24:00"}},
    ],
    ids=["metrics", "temperature", "schedule"],
)
async def test_an_agent_whose_owner_needs_the_figures_never_rests(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    machine = Machine()
    async with idle_agent(tmp_path, machine, **settings):
        await machine.readings(3)
        assert not machine.is_watched()
