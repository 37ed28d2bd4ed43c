import asyncio
import os
import threading
import time
from pathlib import Path

import pytest

from gpu_agent.node.collecting import Collecting, collectors_of
from gpu_agent.node.settings import load
from gpu_agent.probe.amd import AmdGpus
from gpu_agent.probe.attempt import Attempt
from gpu_agent.probe.collectors import Installed, Surroundings
from gpu_agent.runtime.tasks import Tasks
from gpu_agent.wire.inventory import Gpu, GpuReport, Health, Outcome
from tests.probe.amd_tree import MI300X, Sysfs

GOOD = GpuReport(outcome=Outcome.OK, gpus=(Gpu(uuid="X-1", name="X", memory_mb=1024),))


class _Collector:
    """Hangs while it is held, raises while it is told to, and counts how often it is asked."""

    interface = 1

    def __init__(self) -> None:
        self.asked = 0
        self.free = threading.Event()
        self.free.set()
        self.error: Exception | None = None
        self.report = GOOD

    def read(self, deadline_seconds: float) -> GpuReport:
        assert deadline_seconds > 0
        self.asked += 1
        self.free.wait(60)
        if self.error is not None:
            raise self.error
        return self.report


def behind(collector: _Collector, name: str = "odd") -> Attempt:
    return Attempt(Installed(name, lambda: lambda _: collector), Surroundings())


async def one_round(collecting: Collecting, tasks: Tasks, name: str = "odd") -> GpuReport:
    collecting.begin(tasks)
    return (await collecting.reports())[name]


async def test_one_that_hangs_keeps_nobody_waiting_past_the_deadline_and_has_one_thread() -> None:
    stuck, well = _Collector(), _Collector()
    stuck.free.clear()
    collecting = Collecting((behind(stuck, "stuck"), behind(well, "well")), deadline_seconds=0.1)
    async with Tasks() as tasks:
        for _ in range(3):
            began = time.monotonic()
            collecting.begin(tasks)
            reports = await collecting.reports()
            assert time.monotonic() - began < 5
            assert reports["well"].gpus == GOOD.gpus
            assert reports["stuck"].outcome is Outcome.DRIVER_BROKEN
            assert "'stuck' did not answer within 0.1 s" in (reports["stuck"].detail or "")
        assert (stuck.asked, well.asked) == (1, 3)
        stuck.free.set()
        tasks.end()


async def test_a_silent_ones_gpus_are_vouched_for_a_while_then_unknown_until_it_answers() -> None:
    collector = _Collector()
    collecting = Collecting((behind(collector),), deadline_seconds=0.05, stale_after_seconds=0.3)
    async with Tasks() as tasks:
        assert (await one_round(collecting, tasks)).gpus[0].health is Health.OK
        collector.free.clear()
        assert (await one_round(collecting, tasks)).gpus[0].health is Health.OK
        async with asyncio.timeout(20):
            while (report := await one_round(collecting, tasks)).gpus[0].health is Health.OK:
                pass
        assert [one.code for one in report.gpus[0].reasons] == ["collector_hung"]
        assert report.gpus[0].reasons[0].since is not None
        collector.free.set()
        async with asyncio.timeout(20):
            while (await one_round(collecting, tasks)).gpus[0].health is not Health.OK:
                pass
        tasks.end()


async def test_one_that_raises_is_a_reason_told_once_and_its_recovery_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "gpu_agent")
    collector = _Collector()
    collecting = Collecting((behind(collector),), deadline_seconds=20, stale_after_seconds=1e-6)
    async with Tasks() as tasks:
        await one_round(collecting, tasks)
        collector.error = ValueError("the library is too old")
        await one_round(collecting, tasks)
        report = await one_round(collecting, tasks)
        assert report.gpus[0].health is Health.UNKNOWN
        assert report.gpus[0].reasons[0].code == "collector_failed"
        assert "the library is too old" in report.gpus[0].reasons[0].detail
        collector.error = None
        await one_round(collecting, tasks)
        tasks.end()
    assert caplog.messages.count("collector_missed") == 1
    assert caplog.messages.count("collector_recovered") == 1
    assert caplog.messages.count("gpu_health_changed") == 2
    assert caplog.messages.count("collector_probed") == 1


async def test_the_age_is_that_of_the_newest_reading_that_gave_gpus() -> None:
    empty, full = _Collector(), _Collector()
    empty.report = GpuReport(outcome=Outcome.OK)
    collecting = Collecting((behind(empty, "empty"),), deadline_seconds=20)
    async with Tasks() as tasks:
        await one_round(collecting, tasks, "empty")
        assert collecting.age_seconds() is None
        both = Collecting((behind(empty, "empty"), behind(full, "full")), deadline_seconds=20)
        await one_round(both, tasks, "full")
        age = both.age_seconds()
        assert age is not None
        assert 0 <= age < 10
        tasks.end()


async def test_a_late_answer_counts_as_old_as_it_is() -> None:
    collector = _Collector()
    collector.free.clear()
    collecting = Collecting((behind(collector),), deadline_seconds=0.05)
    async with Tasks() as tasks:
        await one_round(collecting, tasks)
        await asyncio.sleep(0.2)  # the age that is to be told
        collector.free.set()
        async with asyncio.timeout(20):
            while not (await one_round(collecting, tasks)).gpus:
                pass
        age = collecting.age_seconds()
        assert age is not None
        assert age > 0.2
        tasks.end()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted through /proc")
async def test_many_rounds_leave_no_thread_and_no_open_file_behind(tmp_path: Path) -> None:
    Sysfs(tmp_path).card(0, "0000:03:00.0", MI300X)
    surroundings = Surroundings(sys_dir=tmp_path)
    failing = _Collector()
    failing.error = OSError("no such device")
    collecting = Collecting(
        (Attempt(Installed("amd", lambda: AmdGpus), surroundings), behind(failing)), deadline_seconds=20
    )
    async with Tasks() as tasks:
        await one_round(collecting, tasks)
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - what is open, not what is where
        for _ in range(200):
            assert len((await one_round(collecting, tasks, "amd")).gpus) == 1
        assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208
        left = [thread for thread in threading.enumerate() if thread.name.startswith("collector-")]
        assert len(left) < 20  # of 400: those of the last rounds, which end by themselves
        for thread in left:
            thread.join(20)
            assert not thread.is_alive()
        tasks.end()


async def test_without_collectors_there_is_nothing_to_wait_for() -> None:
    async with Tasks() as tasks:
        collecting = Collecting(())
        collecting.begin(tasks)
        assert await collecting.reports() == {}


@pytest.mark.parametrize(
    ("told", "opened"),
    [({"collectors": "amd"}, ["amd"]), ({"collectors": ()}, []), ({"simulate": "1xL4"}, [])],
)
async def test_the_owners_choice_is_what_is_opened_and_nothing_for_a_machine_that_does_not_exist(
    told: dict[str, object], opened: list[str]
) -> None:
    collecting = collectors_of(load({"registry_url": "ws://localhost/", **told}))
    async with Tasks() as tasks:
        collecting.begin(tasks)
        assert list(await collecting.reports()) == opened
        tasks.end()
