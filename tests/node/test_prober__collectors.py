from dataclasses import replace

from gpu_agent.node.collecting import Collecting
from gpu_agent.node.prober import Pace
from gpu_agent.probe.attempt import Attempt
from gpu_agent.probe.collectors import Installed, Surroundings
from gpu_agent.wire.inventory import Gpu, GpuReport, Outcome
from tests.node.a_prober import GOOD, PACE, always, probing


class _Radeon:
    """A collector with one GPU."""

    interface = 1

    def __init__(self, surroundings: Surroundings) -> None:
        assert surroundings == Surroundings()

    def read(self, deadline_seconds: float) -> GpuReport:
        assert deadline_seconds > 0
        gpu = Gpu(uuid="AMD-1", name="Radeon", memory_mb=24576, vendor="amd")
        return GpuReport(outcome=Outcome.OK, gpus=(gpu,))


def _collecting_a_radeon() -> Collecting:
    return Collecting((Attempt(Installed("amd", lambda: _Radeon), Surroundings()),), deadline_seconds=20)


async def test_gpus_of_collectors_stand_beside_nvmls_and_are_as_fresh() -> None:
    collecting = _collecting_a_radeon()
    async with probing(always(GOOD), collecting=collecting) as (prober, next_one):
        inventory = await next_one()
        assert [gpu.uuid for gpu in inventory.gpu.gpus] == ["GPU-1", "AMD-1"]
        assert (prober.probe_age_seconds or 0) < 5


async def test_without_an_nvidia_driver_collectors_are_asked_at_their_pace_and_nvml_at_its_own() -> None:
    looks: list[int] = []

    async def read() -> GpuReport:
        looks.append(1)
        return GpuReport(outcome=Outcome.NO_DRIVER, detail="no driver")

    collecting = _collecting_a_radeon()
    pace = Pace(interval_seconds=0.01, deadline_seconds=20, stale_after_seconds=60, without_driver_seconds=60)
    async with probing(read, pace=pace, collecting=collecting) as (prober, next_one):
        for _ in range(5):
            assert [gpu.uuid for gpu in (await next_one()).gpu.gpus] == ["AMD-1"]
        assert len(looks) == 1
        age = prober.probe_age_seconds
        assert age is not None
        assert age < 20
        prober.probe_now()
        while len(looks) == 1:
            await next_one()


async def test_where_gpus_are_not_polled_collectors_leave_theirs_alone_too() -> None:
    looks: list[int] = []

    class Counting(_Radeon):
        def read(self, deadline_seconds: float) -> GpuReport:
            looks.append(1)
            return super().read(deadline_seconds)

    attempt = Attempt(Installed("amd", lambda: Counting), Surroundings())
    pace = replace(PACE, deadline_seconds=20, poll_gpus=False)
    collecting = Collecting((attempt,), deadline_seconds=20)
    absent = GpuReport(outcome=Outcome.NO_DRIVER, detail="no driver")
    async with probing(always(absent), pace=pace, collecting=collecting) as (prober, next_one):
        for _ in range(4):
            assert [gpu.uuid for gpu in (await next_one()).gpu.gpus] == ["AMD-1"]
        assert len(looks) == 1
        prober.probe_now()
        while len(looks) == 1:
            await next_one()
