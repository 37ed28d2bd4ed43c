import asyncio
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from gpu_agent.node import gpu_readings
from gpu_agent.node.gpu_readings import (
    REPEAT_EVENT_SECONDS,
    Collectors,
    HealthLog,
    ReadingLog,
    open_collectors,
    open_gpus,
)
from gpu_agent.node.settings import load
from gpu_agent.probe.collectors.amd import AmdGpus
from gpu_agent.probe.collectors.protocol import InstalledCollector, Surroundings
from gpu_agent.probe.collectors.runner import CollectorRunner
from gpu_agent.probe.health.reasons import health_from, reason
from gpu_agent.probe.health.tracker import MissedReading
from gpu_agent.runtime.tasks import Tasks
from gpu_agent.wire.inventory import Gpu, GpuReport, Health, Outcome
from tests.nvml_fake.control import FakeNvml
from tests.probe.collectors.amd_tree import MI300X, Sysfs
from tests.waiting import patience


async def test_simulated_gpus_are_the_same_for_the_same_seed() -> None:
    seen = []
    for seed in ("one", "one", "two"):
        async with open_gpus(simulate="2xL4-24GB", seed=seed, deadline_seconds=1) as gpus:
            report = await gpus.read()
            assert isinstance(report, GpuReport)
            seen.append([gpu.uuid for gpu in report.gpus])
    assert seen[0] == seen[1] != seen[2]


async def test_the_machine_s_own_are_read_through_nvml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeNvml(tmp_path, gpus=3)
    for name, value in fake.environment().items():
        monkeypatch.setenv(name, value)
    async with open_gpus(simulate=None, seed="", deadline_seconds=20) as gpus:
        report = await gpus.read()
    assert isinstance(report, GpuReport)
    assert len(report.gpus) == 3


async def test_a_simulated_hang_is_a_missed_reading_like_a_true_one() -> None:
    async with open_gpus(simulate="L4:hang", seed="", deadline_seconds=5) as gpus:
        missed = await gpus.read()
    assert isinstance(missed, MissedReading)
    assert missed.reason == "nvml_hung"
    assert missed.since <= time.monotonic()
    assert "did not answer within 5 s" in missed.detail


async def test_the_driver_is_closed_after_each_reading_where_it_is_not_kept_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeNvml(tmp_path)
    for name, value in fake.environment().items():
        monkeypatch.setenv(name, value)
    async with open_gpus(simulate=None, seed="", deadline_seconds=20, keep_open=False) as gpus:
        for _ in range(2):
            assert isinstance(await gpus.read(), GpuReport)
            assert not [pid for pid in fake.callers() if psutil.pid_exists(pid)]
    assert len(fake.callers()) == 2


async def test_no_second_child_starts_beside_one_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("hang", "nvmlDeviceGetTemperature", "*")
    for name, value in fake.environment().items():
        monkeypatch.setenv(name, value)
    async with open_gpus(simulate=None, seed="", deadline_seconds=1, keep_open=False) as gpus:
        while not fake.callers():
            assert isinstance(await gpus.read(), MissedReading)
        assert isinstance(await gpus.read(), MissedReading)
        assert len(fake.callers()) == 1
        fake.unset("hang")
        while not isinstance(await gpus.read(), GpuReport):
            pass


GOOD = GpuReport(outcome=Outcome.OK, gpus=(Gpu(uuid="X-1", name="X", memory_mb=1024),))


class _Collector:
    """Hangs while it is held, raises while it should, and counts how often it is asked."""

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
        self.free.wait(patience(60))
        if self.error is not None:
            raise self.error
        return self.report


def behind(collector: _Collector, name: str = "odd") -> CollectorRunner:
    return CollectorRunner(InstalledCollector(name, lambda: lambda _: collector), Surroundings())


async def one_round(collectors: Collectors, tasks: Tasks, name: str = "odd") -> GpuReport:
    collectors.begin(tasks)
    return (await collectors.reports())[name]


async def test_a_collector_that_hangs_costs_its_deadline_and_one_thread() -> None:
    stuck, well = _Collector(), _Collector()
    stuck.free.clear()
    collectors = Collectors((behind(stuck, "stuck"), behind(well, "well")), deadline_seconds=0.1)
    async with Tasks() as tasks:
        for _ in range(3):
            began = time.monotonic()
            collectors.begin(tasks)
            reports = await collectors.reports()
            assert time.monotonic() - began < patience(5)
            assert reports["well"].gpus == GOOD.gpus
            assert reports["stuck"].outcome is Outcome.DRIVER_BROKEN
            assert "'stuck' did not answer within 0.1 s" in (reports["stuck"].detail or "")
        assert (stuck.asked, well.asked) == (1, 3)
        stuck.free.set()
        tasks.end()


async def test_a_silent_ones_gpus_are_vouched_for_a_while_then_unknown_until_it_answers() -> None:
    collector = _Collector()
    collectors = Collectors((behind(collector),), deadline_seconds=0.05, stale_after_seconds=0.3)
    async with Tasks() as tasks:
        assert (await one_round(collectors, tasks)).gpus[0].health is Health.OK
        collector.free.clear()
        assert (await one_round(collectors, tasks)).gpus[0].health is Health.OK
        async with asyncio.timeout(patience(20)):
            while (report := await one_round(collectors, tasks)).gpus[0].health is Health.OK:
                pass
        assert [one.code for one in report.gpus[0].reasons] == ["collector_hung"]
        assert report.gpus[0].reasons[0].since is not None
        collector.free.set()
        async with asyncio.timeout(patience(20)):
            while (await one_round(collectors, tasks)).gpus[0].health is not Health.OK:
                pass
        tasks.end()


async def test_a_collector_that_fails_is_logged_once_and_so_is_its_recovery(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "gpu_agent")
    collector = _Collector()
    collectors = Collectors((behind(collector),), deadline_seconds=20, stale_after_seconds=1e-6)
    async with Tasks() as tasks:
        await one_round(collectors, tasks)
        collector.error = ValueError("the library is too old")
        await one_round(collectors, tasks)
        report = await one_round(collectors, tasks)
        assert report.gpus[0].health is Health.UNKNOWN
        assert report.gpus[0].reasons[0].code == "collector_failed"
        assert "the library is too old" in report.gpus[0].reasons[0].detail
        collector.error = None
        await one_round(collectors, tasks)
        tasks.end()
    assert caplog.messages.count("collector_missed") == 1
    assert caplog.messages.count("collector_recovered") == 1
    assert caplog.messages.count("gpu_health_changed") == 2
    assert caplog.messages.count("collector_probed") == 1


async def test_the_age_is_that_of_the_newest_reading_that_gave_gpus() -> None:
    empty, full = _Collector(), _Collector()
    empty.report = GpuReport(outcome=Outcome.OK)
    collectors = Collectors((behind(empty, "empty"),), deadline_seconds=20)
    async with Tasks() as tasks:
        await one_round(collectors, tasks, "empty")
        assert collectors.age_seconds() is None
        both = Collectors((behind(empty, "empty"), behind(full, "full")), deadline_seconds=20)
        await one_round(both, tasks, "full")
        age = both.age_seconds()
        assert age is not None
        assert 0 <= age < 10
        tasks.end()


async def test_a_collector_that_found_nothing_is_asked_again_on_request_and_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collector = _Collector()
    collector.report = GpuReport(outcome=Outcome.OK)
    collectors = Collectors((behind(collector),), deadline_seconds=20)
    async with Tasks() as tasks:
        for _ in range(3):
            assert not (await one_round(collectors, tasks)).gpus
        assert collector.asked == 1
        monkeypatch.setattr(gpu_readings, "RETRY_DRIVER_SECONDS", 0.0)
        collectors.begin(tasks, requested=True)
        await collectors.reports()
        assert collector.asked == 2
        collector.report = GOOD
        assert (await one_round(collectors, tasks)).gpus
        assert (await one_round(collectors, tasks)).gpus
        assert collector.asked == 4
        tasks.end()


async def test_a_late_answer_counts_as_old_as_it_is() -> None:
    collector = _Collector()
    collector.free.clear()
    collectors = Collectors((behind(collector),), deadline_seconds=0.05)
    async with Tasks() as tasks:
        await one_round(collectors, tasks)
        await asyncio.sleep(0.2)  # the age that is to be reported
        collector.free.set()
        async with asyncio.timeout(patience(20)):
            while not (await one_round(collectors, tasks)).gpus:
                pass
        age = collectors.age_seconds()
        assert age is not None
        assert age > 0.2
        tasks.end()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted through /proc")
async def test_many_rounds_leave_no_thread_and_no_open_file_behind(tmp_path: Path) -> None:
    Sysfs(tmp_path).card(0, "0000:03:00.0", MI300X)
    surroundings = Surroundings(sys_dir=tmp_path)
    failing = _Collector()
    failing.error = OSError("no such device")
    collectors = Collectors(
        (CollectorRunner(InstalledCollector("amd", lambda: AmdGpus), surroundings), behind(failing)),
        deadline_seconds=20,
    )
    others = set(threading.enumerate())  # a test beside this one may have left a collector that hangs
    async with Tasks() as tasks:
        await one_round(collectors, tasks)
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - what is open, not what is where
        for _ in range(200):
            assert len((await one_round(collectors, tasks, "amd")).gpus) == 1
        assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208
        new = set(threading.enumerate()) - others
        left = [thread for thread in new if thread.name.startswith("collector-")]
        assert len(left) < 20  # of 400: those of the last rounds, which end by themselves
        for thread in left:
            thread.join(patience(20))
            assert not thread.is_alive()
        tasks.end()


async def test_without_collectors_there_is_nothing_to_wait_for() -> None:
    async with Tasks() as tasks:
        collectors = Collectors(())
        collectors.begin(tasks)
        assert await collectors.reports() == {}


@pytest.mark.parametrize(
    ("fields", "opened"),
    [({"collectors": "amd"}, ["amd"]), ({"collectors": ()}, []), ({"simulate": "1xL4"}, [])],
)
async def test_the_owners_choice_is_what_is_opened_and_nothing_for_a_machine_that_does_not_exist(
    fields: dict[str, object], opened: list[str]
) -> None:
    collectors = open_collectors(load({"registry_url": "ws://localhost/", **fields}))
    async with Tasks() as tasks:
        collectors.begin(tasks)
        assert list(await collectors.reports()) == opened
        tasks.end()


READING_LOG_GOOD = GpuReport(outcome=Outcome.OK)
NO_DRIVER = GpuReport(outcome=Outcome.NO_DRIVER)
HUNG = MissedReading(reason="nvml_hung", since=0.0, detail="no answer")


def test_each_change_of_a_reading_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="gpu_agent")
    log = ReadingLog()
    for result in (
        NO_DRIVER,
        NO_DRIVER,
        READING_LOG_GOOD,
        READING_LOG_GOOD,
        HUNG,
        HUNG,
        READING_LOG_GOOD,
        READING_LOG_GOOD,
    ):
        log.note(result)
    assert caplog.messages == ["gpus_probed", "gpus_probed", "gpu_reading_missed", "gpu_reading_recovered"]


def test_a_driver_that_hangs_is_a_warning_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    ReadingLog().note(HUNG)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.__dict__["fields"] == {"reason": "nvml_hung", "detail": "no answer"}


NO_EVENTS: Mapping[str, int] = {}


def gpu(
    *codes: str, index: int = 0, events: Mapping[str, int] = NO_EVENTS, without_events: str | None = None
) -> Gpu:
    reasons = tuple(reason(code) for code in codes)
    return Gpu(
        uuid=f"GPU-{index}",
        name="H100",
        index=index,
        health=health_from(reasons),
        reasons=reasons,
        events=events,
        unknowns={} if without_events is None else {"events": without_events},
    )


class Logging:
    """A log of health, and what it wrote."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO", "gpu_agent")
        self._caplog = caplog
        self._log = HealthLog()

    def note(self, now: float, *gpus: Gpu, fresh: bool = True) -> list[dict[str, object]]:
        self._caplog.clear()
        self._log.note(GpuReport(outcome=Outcome.OK, gpus=gpus), fresh=fresh, now=now)
        return [
            {
                "event": record.message,
                "level": record.levelname,
                **{str(name): value for name, value in vars(record)["fields"].items()},
            }
            for record in self._caplog.records
        ]


@pytest.fixture
def logging(caplog: pytest.LogCaptureFixture) -> Logging:
    return Logging(caplog)


def test_gpus_that_are_well_are_nothing_to_tell(logging: Logging) -> None:
    assert logging.note(0, gpu(), gpu(index=1)) == []


def test_a_change_of_health_is_logged_once_with_from_to_and_reason(logging: Logging) -> None:
    logging.note(0, gpu(), gpu(index=1))
    (line,) = logging.note(5, gpu(), gpu("xid_79", "gpu_lost", index=1))
    assert (line["event"], line["level"]) == ("gpu_health_changed", "WARNING")
    assert (line["uuid"], line["from"], line["to"]) == ("GPU-1", "ok", "lost")
    assert line["reasons"] == ["xid_79", "gpu_lost"]
    assert "fallen off the bus" in str(line["detail"])
    assert "reboot" in str(line["action"])
    assert logging.note(10, gpu(), gpu("xid_79", index=1)) == []


def test_a_recovery_is_logged_at_info(logging: Logging) -> None:
    logging.note(0, gpu("xid_79"))
    (line,) = logging.note(5, gpu())
    assert (line["level"], line["from"], line["to"], line["reasons"]) == ("INFO", "lost", "ok", [])


def test_a_gpu_that_starts_degraded_is_logged(logging: Logging) -> None:
    (line,) = logging.note(0, gpu("row_remap_failed"))
    assert (line["from"], line["to"]) == (None, "degraded")


def test_an_event_is_logged_with_its_meaning_and_whether_it_counts(logging: Logging) -> None:
    lines = logging.note(0, gpu(events={"xid_31": 3, "xid_9999": 1}), gpu(index=1))
    assert [(line["event"], line["code"], line["count"], line["counts"]) for line in lines] == [
        ("gpu_event", "xid_31", 3, False),
        ("gpu_event", "xid_9999", 1, False),
    ]
    assert "catalogue" in str(lines[1]["meaning"])


def test_a_storm_of_events_is_a_line_a_minute_that_says_how_many(logging: Logging) -> None:
    lines = [
        line
        for second in range(0, 121, 5)
        for line in logging.note(second, gpu(events={"xid_31": 10}), gpu(index=1, events={"xid_31": 1}))
    ]
    assert [line["count"] for line in lines if line["uuid"] == "GPU-0"] == [10, 120, 120]
    assert [line["count"] for line in lines if line["uuid"] == "GPU-1"] == [1, 12, 12]
    assert REPEAT_EVENT_SECONDS == 60


def test_a_repeated_reading_logs_its_events_no_second_time(logging: Logging) -> None:
    assert len(logging.note(0, gpu(events={"xid_31": 1}))) == 1
    assert logging.note(100, gpu(events={"xid_31": 1}), fresh=False) == []


def test_the_last_events_of_a_burst_are_logged_later(logging: Logging) -> None:
    assert [line["count"] for line in logging.note(0, gpu(events={"xid_31": 1}))] == [1]
    assert logging.note(5, gpu(events={"xid_31": 7})) == []
    assert [line["count"] for line in logging.note(60, gpu())] == [7]
    assert logging.note(120, gpu()) == []
    assert [line["count"] for line in logging.note(125, gpu(events={"xid_31": 1}))] == [1]


def test_a_driver_without_events_is_logged_once_for_each_gpu(logging: Logging) -> None:
    lines = logging.note(
        0, gpu(without_events="too old"), gpu(index=1, without_events="too old"), gpu(index=2)
    )
    assert [(line["event"], line["index"], line["reason"]) for line in lines] == [
        ("gpu_events_unavailable", 0, "too old"),
        ("gpu_events_unavailable", 1, "too old"),
    ]
    assert (
        logging.note(5, gpu(without_events="too old"), gpu(index=1, without_events="too old"), gpu(index=2))
        == []
    )
