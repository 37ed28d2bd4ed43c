import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from gpu_agent.node.gpu_readings import Collectors
from gpu_agent.node.prober import Pace
from gpu_agent.probe.collectors.protocol import InstalledCollector, Surroundings
from gpu_agent.probe.collectors.runner import CollectorRunner
from gpu_agent.probe.health.tracker import MissedReading
from gpu_agent.probe.models.declared import ModelDeclaration
from gpu_agent.probe.models.scanner import ModelScanner
from gpu_agent.probe.snapshot import Sources
from gpu_agent.wire.inventory import Gpu, GpuReport, Health, Outcome
from tests.node.prober_harness import GOOD, HUNG, PACE, always, probing


async def test_each_probe_reports_gpus_host_and_models() -> None:
    catalogue = ModelScanner((), (ModelDeclaration(model_id="whisper", version="1"),))
    patient = replace(PACE, deadline_seconds=20)
    async with probing(always(GOOD), Sources(scanner=catalogue), pace=patient) as (prober, next_one):
        inventory = await next_one()
        assert [gpu.uuid for gpu in inventory.gpu.gpus] == ["GPU-1"]
        assert [model.model_id for model in inventory.models] == ["whisper"]
        assert (inventory.host.memory_total_mb or 0) > 0
        assert inventory.simulated
        age = prober.probe_age_seconds
        assert age is not None
        assert 0 <= age < 5
        await next_one()


async def test_before_any_good_reading_there_is_no_age() -> None:
    async with probing(always(HUNG)) as (prober, next_one):
        inventory = await next_one()
        assert prober.probe_age_seconds is None
        assert inventory.gpu.outcome is Outcome.DRIVER_BROKEN


async def test_after_a_missed_reading_the_last_health_stays_and_its_age_grows() -> None:
    results: list[GpuReport | MissedReading] = [GOOD]

    async def read() -> GpuReport | MissedReading:
        return results.pop() if results else HUNG

    async with probing(read) as (prober, next_one):
        await next_one()
        first = prober.probe_age_seconds
        inventory = await next_one()
        assert inventory.gpu.gpus[0].health is Health.OK
        later = prober.probe_age_seconds
        assert first is not None
        assert later is not None
        assert later > first


async def test_past_its_limit_a_missed_reading_makes_the_gpus_unknown_until_the_driver_answers() -> None:
    answers = asyncio.Event()
    answers.set()

    async def read() -> GpuReport | MissedReading:
        return GOOD if answers.is_set() else HUNG

    pace = Pace(interval_seconds=0.01, deadline_seconds=1, stale_after_seconds=0.05)
    async with probing(read, pace=pace) as (_, next_one):
        await next_one()
        answers.clear()
        while (inventory := await next_one()).gpu.gpus[0].health is Health.OK:
            pass
        assert inventory.gpu.gpus[0].health is Health.UNKNOWN
        assert inventory.gpu.gpus[0].reasons[0].code == "nvml_hung"
        answers.set()
        while (await next_one()).gpu.gpus[0].health is not Health.OK:
            pass


async def test_a_probe_can_be_requested_before_the_interval_ends() -> None:
    pace = Pace(interval_seconds=3600, deadline_seconds=1, stale_after_seconds=60)
    async with probing(always(GOOD), pace=pace) as (prober, next_one):
        await next_one()
        prober.probe_now()
        await next_one()


@pytest.mark.parametrize(("outcome", "seconds"), [(Outcome.NO_DRIVER, 30.0), (Outcome.DRIVER_BROKEN, 30.0)])
async def test_a_missing_driver_is_tried_less_often(outcome: Outcome, seconds: float) -> None:
    pace = Pace(interval_seconds=5, deadline_seconds=1, stale_after_seconds=60)
    async with probing(always(GpuReport(outcome=outcome)), pace=pace) as (prober, next_one):
        await next_one()
        assert prober._interval() == seconds


async def test_a_driver_that_arrives_later_is_found(tmp_path: Path) -> None:
    arrived = tmp_path / "libnvidia-ml.so"

    async def read() -> GpuReport:
        return GOOD if arrived.exists() else GpuReport(outcome=Outcome.NO_DRIVER)

    async with probing(read) as (_, next_one):
        assert (await next_one()).gpu.outcome is Outcome.NO_DRIVER
        arrived.touch()
        while (await next_one()).gpu.outcome is not Outcome.OK:
            pass


async def test_with_polling_off_the_gpus_are_read_once_and_then_only_when_asked() -> None:
    reads = 0

    async def read() -> GpuReport | MissedReading:
        nonlocal reads
        reads += 1
        return replace(GOOD, gpus=(replace(GOOD.gpus[0], temperature_c=40 + reads),))

    async with probing(read, pace=replace(PACE, deadline_seconds=20, poll_gpus=False)) as (prober, next_one):
        first = await next_one()
        resting = [await next_one() for _ in range(3)]
        assert reads == 1
        assert prober.probe_age_seconds is None
        prober.probe_now()
        while (asked := (await next_one()).gpu.gpus[0].temperature_c) is None:
            pass
    assert first.gpu.gpus[0].temperature_c == 41
    assert {each.gpu.gpus[0].temperature_c for each in resting} == {None}
    assert {each.gpu.gpus[0].health for each in resting} == {Health.OK}
    assert asked == 42
    assert reads == 2


@pytest.mark.parametrize(
    "unread", [HUNG, GpuReport(outcome=Outcome.NO_DRIVER), GpuReport(outcome=Outcome.OK)]
)
async def test_with_polling_off_gpus_are_read_until_a_reading_is_good(
    unread: GpuReport | MissedReading,
) -> None:
    answers = iter((unread, unread, GOOD))

    async def read() -> GpuReport | MissedReading:
        return next(answers)

    async with probing(read, pace=replace(PACE, poll_gpus=False)) as (_, next_one):
        while not (await next_one()).gpu.usable:
            pass
    assert next(answers, None) is None


async def test_a_new_interval_begins_at_once() -> None:
    async with probing(always(GOOD), pace=replace(PACE, interval_seconds=30)) as (prober, next_one):
        await next_one()
        prober.set_interval(0.01)
        await next_one()
        await next_one()


class _Radeon:
    """A collector with one GPU."""

    interface = 1

    def __init__(self, surroundings: Surroundings) -> None:
        assert surroundings == Surroundings()

    def read(self, deadline_seconds: float) -> GpuReport:
        assert deadline_seconds > 0
        gpu = Gpu(uuid="AMD-1", name="Radeon", memory_mb=24576, vendor="amd")
        return GpuReport(outcome=Outcome.OK, gpus=(gpu,))


def _one_radeon() -> Collectors:
    return Collectors(
        (CollectorRunner(InstalledCollector("amd", lambda: _Radeon), Surroundings()),), deadline_seconds=20
    )


async def test_gpus_of_collectors_are_merged_with_nvmls() -> None:
    collectors = _one_radeon()
    async with probing(always(GOOD), collectors=collectors) as (prober, next_one):
        inventory = await next_one()
        assert [gpu.uuid for gpu in inventory.gpu.gpus] == ["GPU-1", "AMD-1"]
        assert (prober.probe_age_seconds or 0) < 5


async def test_without_an_nvidia_driver_collectors_are_read_at_each_probe_and_nvml_rarely() -> None:
    reads_of_nvml: list[int] = []

    async def read() -> GpuReport:
        reads_of_nvml.append(1)
        return GpuReport(outcome=Outcome.NO_DRIVER, detail="no driver")

    collectors = _one_radeon()
    pace = Pace(interval_seconds=0.01, deadline_seconds=20, stale_after_seconds=60, retry_driver_seconds=60)
    async with probing(read, pace=pace, collectors=collectors) as (prober, next_one):
        for _ in range(5):
            assert [gpu.uuid for gpu in (await next_one()).gpu.gpus] == ["AMD-1"]
        assert len(reads_of_nvml) == 1
        age = prober.probe_age_seconds
        assert age is not None
        assert age < 20
        prober.probe_now()
        while len(reads_of_nvml) == 1:
            await next_one()


async def test_with_polling_off_collectors_are_not_read_either() -> None:
    reads_of_nvml: list[int] = []

    class Counting(_Radeon):
        def read(self, deadline_seconds: float) -> GpuReport:
            reads_of_nvml.append(1)
            return super().read(deadline_seconds)

    attempt = CollectorRunner(InstalledCollector("amd", lambda: Counting), Surroundings())
    pace = replace(PACE, deadline_seconds=20, poll_gpus=False)
    collectors = Collectors((attempt,), deadline_seconds=20)
    absent = GpuReport(outcome=Outcome.NO_DRIVER, detail="no driver")
    async with probing(always(absent), pace=pace, collectors=collectors) as (prober, next_one):
        for _ in range(4):
            assert [gpu.uuid for gpu in (await next_one()).gpu.gpus] == ["AMD-1"]
        assert len(reads_of_nvml) == 1
        prober.probe_now()
        while len(reads_of_nvml) == 1:
            await next_one()
