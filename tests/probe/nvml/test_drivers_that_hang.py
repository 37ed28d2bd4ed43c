import asyncio
import signal
import time
from pathlib import Path

from gpu_agent.probe.health.tracker import MissedReading
from gpu_agent.probe.nvml.client import ChildPolicy
from gpu_agent.wire.inventory import Outcome
from tests.nvml_fake.control import FakeNvml
from tests.probe.nvml.fake_driver import child_of, miss_from, probing, report_from
from tests.waiting import patience


async def test_a_delay_below_the_deadline_is_waited_for(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("delay", "nvmlDeviceGetUtilizationRates", "*", 150)
    async with probing(fake) as probe:
        report = await report_from(probe)
    assert report.took_ms >= 150


async def test_a_hung_driver_is_missed_within_the_deadline_with_its_first_moment(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    async with probing(fake, 0.4) as probe:
        await report_from(probe)
        fake.set("hang", "nvmlDeviceGetUtilizationRates", "*")
        before = time.monotonic()
        first = await miss_from(probe)
        took_seconds = time.monotonic() - before
        second = await miss_from(probe)
    assert 0.4 <= took_seconds < patience(1.5)
    assert first.reason == second.reason == "nvml_hung"
    assert before <= first.since <= before + 0.4
    assert second.since == first.since
    assert "dmesg" in first.detail


async def test_while_a_child_is_stuck_no_other_is_started_and_its_late_answer_is_the_recovery(
    tmp_path: Path,
) -> None:
    fake = FakeNvml(tmp_path)
    async with probing(fake, 0.4) as probe:
        await report_from(probe)
        fake.set("hang", "nvmlDeviceGetUtilizationRates", "*")
        for _ in range(3):
            await miss_from(probe)
        fake.unset("hang")
        recovered = await report_from(probe)
        assert recovered.outcome is Outcome.OK
        assert not isinstance(await report_from(probe), MissedReading)
    assert len(fake.callers()) == 1


async def test_a_late_answer_has_its_age(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    async with probing(fake, 0.4) as probe:
        await report_from(probe)
        fake.set("hang", "nvmlDeviceGetUtilizationRates", "*")
        await miss_from(probe)
        owed = child_of(probe).answer
        assert owed is not None
        fake.unset("hang")
        await asyncio.wait({owed}, timeout=patience(10))
        await asyncio.sleep(0.05)
        late = await report_from(probe)
    assert late.age_seconds >= 0.05


async def test_an_answer_that_took_longer_than_the_deadline_is_as_old_as_its_question(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    async with probing(fake, 0.4) as probe:
        await report_from(probe)
        fake.set("delay", "nvmlDeviceGetUtilizationRates", 1, 600)
        before = time.monotonic()
        await miss_from(probe)
        slow = await report_from(probe)
        waited_seconds = time.monotonic() - before
    assert 0.6 <= slow.age_seconds <= waited_seconds


async def test_a_stuck_child_gets_sigterm_never_sigkill_and_no_second_child_beside_it(
    tmp_path: Path,
) -> None:
    fake = FakeNvml(tmp_path)
    async with probing(fake, 0.4, policy=ChildPolicy(end_hung_after_seconds=0.0)) as probe:
        await report_from(probe)
        stuck, callers = child_of(probe), fake.callers()
        fake.set("hang", "nvmlDeviceGetUtilizationRates", "*")
        for _ in range(3):
            assert (await miss_from(probe)).reason == "nvml_hung"
        assert stuck.ending
        assert child_of(probe) is stuck
        assert stuck.process.poll() is None
        assert fake.callers() == callers
        fake.unset("hang")
        assert (await report_from(probe)).outcome is Outcome.OK
        assert stuck.process.returncode == -signal.SIGTERM
        assert child_of(probe) is not stuck


async def test_a_child_whose_gpus_start_slowly_is_not_asked_to_end(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("delay", "nvmlInitWithFlags", "*", 500)
    async with probing(fake, 0.1, policy=ChildPolicy(end_hung_after_seconds=0.0)) as probe:
        await miss_from(probe)
        assert (await report_from(probe)).outcome is Outcome.OK
    assert len(fake.callers()) == 1


async def test_close_leaves_a_stuck_child_behind_within_two_seconds(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    async with probing(fake, 0.4) as probe:
        await report_from(probe)
        stuck = child_of(probe)
        fake.set("hang", "nvmlDeviceGetUtilizationRates", "*")
        await miss_from(probe)
        before = time.monotonic()
        await probe.close()
        assert time.monotonic() - before < 2
        assert stuck.process.poll() is None
        fake.unset("hang")
        assert await stuck.wait_ended(10)
