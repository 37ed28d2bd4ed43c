"""From the driver's mouth to a GPU's health: the daemon's probe and the keeper, with the fake library."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gpu_agent.probe.health import HealthKeeper
from gpu_agent.probe.nvml import ChildPolicy, NvmlProbe
from gpu_agent.wire.inventory import Gpu, Health
from tests.nvml_fake.control import FakeNvml

LOOK_ANEW_AT_ONCE = ChildPolicy(reopen_lost_after_seconds=0.0)


class Watched:
    """A fake machine under the eyes of the daemon's probe and keeper."""

    def __init__(self, fake: FakeNvml) -> None:
        self.fake = fake
        self.probe = NvmlProbe(deadline_seconds=20, env=fake.environment(), policy=LOOK_ANEW_AT_ONCE)
        self._keeper = HealthKeeper()

    async def look(self) -> tuple[Gpu, ...]:
        result = await self.probe.read()
        return self._keeper.observe(result, now_wall=time.time(), now_mono=time.monotonic()).gpus

    async def healths(self) -> list[Health]:
        return [gpu.health for gpu in await self.look()]


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    machine = Watched(FakeNvml(tmp_path, gpus=3))
    yield machine
    await machine.probe.close()


OK, DEGRADED, LOST = Health.OK, Health.DEGRADED, Health.LOST


async def test_a_gpu_that_falls_off_the_bus_says_why_and_is_well_three_readings_after_its_return(
    watched: Watched,
) -> None:
    assert await watched.healths() == [OK, OK, OK]
    watched.fake.happen(("xid", 1, 79))
    for call in ("nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetMemoryInfo_v2"):
        watched.fake.set("error", call, 1, "GPU_IS_LOST")
    lost = (await watched.look())[1]
    assert [each.code for each in lost.reasons] == ["gpu_lost", "xid_79"]
    assert (lost.uuid, lost.health) == (watched.fake.fact("uuid", 1), LOST)
    assert await watched.healths() == [OK, LOST, OK]
    watched.fake.unset("error")
    healths = [await watched.healths() for _ in range(5)]
    assert [gpu for gpu, _, _ in healths] == [OK] * 5
    probation = [health for _, health, _ in healths]
    assert OK in probation
    assert probation.index(OK) >= 2
    assert probation[probation.index(OK) :] == [OK] * (5 - probation.index(OK))


async def test_while_a_gpu_is_silent_the_library_is_not_opened_anew_as_that_would_ask_it(
    watched: Watched,
) -> None:
    await watched.look()
    watched.fake.happen(("xid", 1, 119))
    watched.fake.set("error", "nvmlDeviceGetTemperature", 2, "GPU_IS_LOST")
    for _ in range(3):
        assert await watched.healths() == [OK, LOST, LOST]
    assert watched.fake.calls().count("nvmlInitWithFlags") == 1


async def test_a_program_that_fails_changes_no_health(watched: Watched) -> None:
    await watched.look()
    watched.fake.happen(*[("xid", 0, number) for number in (13, 31, 43, 45, 68, 109, 9999)])
    assert await watched.healths() == [OK, OK, OK]


async def test_what_the_driver_asks_for_counts_until_it_asks_no_more(watched: Watched) -> None:
    watched.fake.set("recovery_action", 2, 4)
    assert await watched.healths() == [OK, OK, DEGRADED]
    watched.fake.set("recovery_action", 2, 0)
    assert [(await watched.healths())[2] for _ in range(4)] == [DEGRADED, DEGRADED, OK, OK]


async def test_errors_that_grow_count_until_the_programs_they_hit_are_gone(watched: Watched) -> None:
    watched.fake.set("process", 0, 4711, 1 << 30)
    watched.fake.set("ecc_uncorrected", 0, 5)
    assert await watched.healths() == [OK, OK, OK]
    watched.fake.set("ecc_uncorrected", 0, 7)
    grown = (await watched.look())[0]
    assert (grown.health, [each.code for each in grown.reasons]) == (DEGRADED, ["ecc_uncorrected"])
    assert await watched.healths() == [DEGRADED, OK, OK]
    watched.fake.unset("process", 0)
    assert [(await watched.healths())[0] for _ in range(4)] == [DEGRADED, DEGRADED, OK, OK]
