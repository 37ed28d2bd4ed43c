"""From the driver's mouth to a GPU's health: the daemon's probe and the tracker, with the fake library."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gpu_agent.probe.health.tracker import HealthTracker, MissedReading
from gpu_agent.probe.nvml.client import ChildPolicy, NvmlClient
from gpu_agent.wire.inventory import Gpu, Health
from tests.nvml_fake.control import FakeNvml
from tests.waiting import patience

LOOK_AGAIN_AT_ONCE = ChildPolicy(
    reopen_lost_after_seconds=0.0, restart_seconds=0.0, restart_ceiling_seconds=0.0
)


class Watched:
    """A fake machine under the eyes of the daemon's probe and tracker."""

    def __init__(self, fake: FakeNvml, policy: ChildPolicy, *, deadline_seconds: float = 20) -> None:
        self.fake = fake
        self.probe = NvmlClient(deadline_seconds=deadline_seconds, env=fake.environment(), policy=policy)
        self._tracker = HealthTracker()

    async def look(self) -> tuple[Gpu, ...]:
        result = await self.probe.read()
        return self._tracker.observe(result, now_wall=time.time(), now_mono=time.monotonic()).gpus

    async def look_until_read(self) -> tuple[Gpu, ...]:
        """Look until the driver answers again."""
        async with asyncio.timeout(patience(30)):
            while isinstance(result := await self.probe.read(), MissedReading):
                pass
        return self._tracker.observe(result, now_wall=time.time(), now_mono=time.monotonic()).gpus

    async def healths(self) -> list[Health]:
        return [gpu.health for gpu in await self.look()]


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    machine = Watched(FakeNvml(tmp_path, gpus=3), LOOK_AGAIN_AT_ONCE)
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


async def test_while_a_gpu_is_quarantined_the_library_is_not_opened_again(
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
    watched.fake.happen(*[("xid", 0, number) for number in (13, 31, 43, 45, 63, 68, 154, 9999)])
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


async def test_an_event_sent_before_a_child_died_is_reported_once_by_the_next_child(watched: Watched) -> None:
    await watched.look()
    watched.fake.happen(("xid", 0, 95))
    watched.fake.set("exit", "nvmlDeviceGetTemperature", 1, 1)
    assert isinstance(await watched.probe.read(), MissedReading)
    watched.fake.unset("exit")
    first = (await watched.look_until_read())[0]
    assert (first.events, first.health) == ({"xid_95": 1}, LOST)
    later = (await watched.look())[0]
    assert (later.events, later.health) == ({}, LOST)


async def test_an_event_sent_before_a_hang_is_reported_once_by_the_next_child(
    tmp_path: Path,
) -> None:
    policy = ChildPolicy(end_hung_after_seconds=0.0)
    watched = Watched(FakeNvml(tmp_path, gpus=2), policy, deadline_seconds=1.0)
    await watched.look_until_read()
    watched.fake.happen(("xid", 0, 95))
    watched.fake.set("hang", "nvmlDeviceGetTemperature", 1)
    assert isinstance(await watched.probe.read(), MissedReading)
    watched.fake.unset("hang")
    assert [gpu.events for gpu in await watched.look_until_read()] == [{"xid_95": 1}, {}]
    assert [gpu.events for gpu in await watched.look_until_read()] == [{}, {}]
    assert len(watched.fake.callers()) == 2
    await watched.probe.close()


async def test_a_quarantined_gpu_is_queried_by_no_later_child(watched: Watched) -> None:
    await watched.look()
    watched.fake.happen(("xid", 1, 119))
    watched.fake.set("hang", "nvmlDeviceGetHandleByIndex_v2", 1)
    watched.fake.set("exit", "nvmlDeviceGetTemperature", 2, 1)
    assert isinstance(await watched.probe.read(), MissedReading)
    watched.fake.unset("exit")
    quarantined = (await watched.look_until_read())[1]
    assert (quarantined.uuid, quarantined.health) == (watched.fake.fact("uuid", 1), LOST)
    assert (quarantined.name, quarantined.events) == (watched.fake.fact("name", 1), {"xid_119": 1})
    assert [each.code for each in quarantined.reasons] == ["gpu_silent", "xid_119"]
    assert await watched.healths() == [OK, LOST, OK]
    assert len(watched.fake.callers()) == 2
