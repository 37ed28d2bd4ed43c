"""The daemon's client, with real children and the fake library."""

import asyncio
import ctypes.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_agent.probe.nvml.client import ChildConnection, ChildPolicy, NvmlClient, Watch
from gpu_agent.probe.nvml.process import CHILD_COMMAND, spawn
from gpu_agent.wire.inventory import GpuReport, Health, Outcome
from tests.nvml_fake.build import build
from tests.nvml_fake.control import HELD, FakeNvml
from tests.probe.nvml.fake_driver import AT_ONCE, child_of, miss_from, probing, report_from
from tests.programs import eventually
from tests.waiting import patience


async def test_eight_gpus_are_read_and_the_child_is_started_once(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=8)
    async with probing(fake) as probe:
        for _ in range(3):
            report = await report_from(probe)
            assert report.outcome is Outcome.OK
            assert [gpu.uuid for gpu in report.gpus] == [fake.fact("uuid", index) for index in range(8)]
            assert all(gpu.health is Health.OK for gpu in report.gpus)
            assert report.age_seconds == 0.0
    assert len(fake.callers()) == 1


async def test_reads_at_the_same_time_share_one_ask(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    async with probing(fake) as probe:
        async with asyncio.TaskGroup() as group:
            reads = [group.create_task(probe.read(), name=f"read-{n}") for n in range(5)]
        assert all(isinstance(read.result(), GpuReport) for read in reads)
    assert fake.calls().count("nvmlDeviceGetTemperature 0") == 1


async def test_close_ends_an_idle_child_by_closing_its_stdin(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    async with probing(fake) as probe:
        await report_from(probe)
        child = child_of(probe)
        await probe.close()
        assert child.ended.is_set()
        assert child.process.returncode == 0


@pytest.mark.parametrize(
    ("fault", "how"),
    [
        (("crash", "nvmlDeviceGetName", "*"), "was ended by SIGSEGV"),
        (("exit", "nvmlInitWithFlags", "*", 1), "left with exit status 1"),
    ],
)
async def test_a_child_that_dies_is_missed_and_started_again_only_after_its_backoff(
    tmp_path: Path, fault: tuple[object, ...], how: str
) -> None:
    fake = FakeNvml(tmp_path)
    fake.set(*fault)
    policy = ChildPolicy(restart_seconds=3600, restart_ceiling_seconds=3600)
    async with probing(fake, policy=policy) as probe:
        first = await miss_from(probe)
        second = await miss_from(probe)
        assert first.reason == second.reason == "nvml_child_died"
        assert how in first.detail
        assert second.since == first.since
    assert len(fake.callers()) == 1


async def test_a_child_that_died_is_replaced_when_its_wait_is_over(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("crash", "nvmlDeviceGetName", "*")
    async with probing(fake, policy=AT_ONCE) as probe:
        await miss_from(probe)
        fake.unset("crash")
        assert (await report_from(probe)).outcome is Outcome.OK
    assert len(fake.callers()) == 2


async def test_a_child_killed_between_two_reads_is_replaced(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    async with probing(fake, policy=AT_ONCE) as probe:
        await report_from(probe)
        killed = child_of(probe)
        killed.process.terminate()
        assert await killed.wait_ended(10)
        assert isinstance(await probe.read(), GpuReport)


async def test_the_wait_before_a_restart_doubles_up_to_a_ceiling_and_a_reading_resets_it(
    tmp_path: Path,
) -> None:
    probe = NvmlClient(policy=ChildPolicy(restart_seconds=1, restart_ceiling_seconds=5))
    waits = []
    for _ in range(5):
        probe._back_off(100.0)
        waits.append(probe._restart_at - 100.0)
    assert waits == [1, 2, 4, 5, 5]
    fake = FakeNvml(tmp_path)
    async with probing(fake) as working:
        working._restart_wait_seconds = 60.0
        await report_from(working)
        assert working._restart_wait_seconds == 0.0


async def test_a_fixed_driver_is_found_by_a_new_child(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("error", "nvmlInitWithFlags", "*", "LIB_RM_VERSION_MISMATCH")
    async with probing(fake) as probe:
        broken = await report_from(probe)
        fake.unset("error")
        fixed = await report_from(probe)
    assert (broken.outcome, fixed.outcome) == (Outcome.DRIVER_BROKEN, Outcome.OK)
    assert len(fake.callers()) == 2


async def test_the_library_is_opened_again_for_a_lost_gpu_only_from_time_to_time(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    async with probing(fake, policy=ChildPolicy(reopen_lost_after_seconds=3600)) as patient:
        fake.set("error", "nvmlDeviceGetName", 1, "GPU_IS_LOST")
        for _ in range(3):
            assert (await report_from(patient)).gpus[1].health is Health.LOST
        assert fake.calls().count("nvmlInitWithFlags") == 1
    async with probing(fake, policy=ChildPolicy(reopen_lost_after_seconds=0.0)) as eager:
        assert (await report_from(eager)).gpus[1].health is Health.LOST
        fake.unset("error")
        assert (await report_from(eager)).gpus[1].health is Health.OK


async def test_a_gpu_that_is_listed_no_more_is_found_once_it_is_back(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=3)
    fake.set("counted_once", 1)
    async with probing(fake, policy=ChildPolicy(reopen_lost_after_seconds=0.0)) as probe:
        await report_from(probe)
        fake.set("error", "nvmlDeviceGetName", 2, "GPU_IS_LOST")
        fake.set("error", "nvmlDeviceGetTemperature", 2, "GPU_IS_LOST")
        assert (await report_from(probe)).gpus[2].health is Health.LOST
        fake.set("count", 2)  # it was removed from the bus: the library opened again lists it no more
        assert len((await report_from(probe)).gpus) == 2
        fake.unset("error")
        fake.set("count", 3)
        assert [gpu.health for gpu in (await report_from(probe)).gpus] == [Health.OK] * 3
        await report_from(probe)
        opened = fake.calls().count("nvmlInitWithFlags")
        await report_from(probe)
    assert fake.calls().count("nvmlInitWithFlags") == opened


async def test_the_library_is_not_opened_again_while_that_would_wake_a_gpu(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    power = tmp_path / "sys/bus/pci/devices" / fake.fact("pci_bus_id", 0).lower()[4:] / "power"
    power.mkdir(parents=True)
    command = (*CHILD_COMMAND, str(tmp_path))
    policy = ChildPolicy(reopen_lost_after_seconds=0.0)
    probe = NvmlClient(command, 20.0, env=fake.environment(), policy=policy)
    await report_from(probe)
    (power / "runtime_status").write_text("suspended\n")
    fake.set("error", "nvmlDeviceGetName", 1, "GPU_IS_LOST")
    fake.set("error", "nvmlDeviceGetTemperature", 1, "GPU_IS_LOST")
    for _ in range(3):
        asleep, lost = (await report_from(probe)).gpus
        assert (asleep.asleep, lost.health) == (True, Health.LOST)
    assert fake.calls().count("nvmlInitWithFlags") == 1
    (power / "runtime_status").write_text("active\n")
    fake.unset("error")
    await report_from(probe)
    assert [gpu.health for gpu in (await report_from(probe)).gpus] == [Health.OK, Health.OK]
    await probe.close()


async def test_chatter_on_the_childs_stdout_is_no_answer() -> None:
    chatty = (
        "import sys, json\n"
        "for line in sys.stdin:\n"
        "    print('driver says hello'); print('{}'); print('[1]')\n"
        "    print(json.dumps({'id': 99, 'outcome': 'ok', 'gpus': [{}]}))\n"
        "    print(json.dumps({'id': json.loads(line)['id'], 'outcome': 'ok', 'gpus': []}), flush=True)\n"
    )
    probe = NvmlClient((sys.executable, "-c", chatty), 20.0)
    assert await probe.read() == GpuReport(outcome=Outcome.OK)
    assert await probe.read() == GpuReport(outcome=Outcome.OK)
    await probe.close()


async def test_a_command_that_cannot_be_started_is_a_death_with_a_reason(tmp_path: Path) -> None:
    probe = NvmlClient((os.fspath(tmp_path / "missing"),))
    missed = await miss_from(probe)
    assert missed.reason == "nvml_child_died"
    assert "could not be started" in missed.detail
    await probe.close()


@pytest.mark.skipif(
    ctypes.util.find_library("nvidia-ml") is not None, reason="this machine has a real NVIDIA driver"
)
async def test_a_driver_that_arrives_after_the_start_is_found_without_a_restart(tmp_path: Path) -> None:
    (tmp_path / "driver").mkdir()
    fake = FakeNvml(tmp_path, library=tmp_path / "driver")
    async with probing(fake) as probe:
        absent = await report_from(probe)
        build(tmp_path / "driver")
        arrived = await report_from(probe)
    assert (absent.outcome, arrived.outcome) == (Outcome.NO_DRIVER, Outcome.OK)
    assert len(arrived.gpus) == 1


# One child connection: answers that come late, twice or never.


def connect(code: str, other_lines: list[bytes] | None = None) -> tuple[ChildConnection, list[int]]:
    ends: list[int] = []
    process: subprocess.Popen[bytes] = spawn((sys.executable, "-c", code), env=None)
    loop = asyncio.get_running_loop()
    lines: list[bytes] = [] if other_lines is None else other_lines
    return ChildConnection(
        process,
        loop,
        on_end=lambda _, status: ends.append(status),
        on_line=lines.append,
        on_news=lambda: None,
    ), ends


async def test_an_answer_to_an_older_request_does_not_complete_a_newer_one() -> None:
    child, _ = connect(
        "import sys\n"
        "first = sys.stdin.readline(); second = sys.stdin.readline()\n"
        'print(\'{"id": 1, "outcome": "no_driver"}\'); print(\'{"id": 2, "outcome": "ok"}\', flush=True)\n'
        "sys.stdin.readline()\n"
    )
    older = child.request({})
    newer = child.request({})
    report = await asyncio.wait_for(newer, patience(20))
    assert report is not None
    assert report.outcome == "ok"
    assert not older.done()
    child.end()
    assert await child.wait_ended(20)


async def test_an_end_completes_the_request_with_none_and_is_reported_once() -> None:
    child, ends = connect("import sys; sys.stdin.readline(); sys.exit(7)")
    assert await asyncio.wait_for(child.request({}), patience(20)) is None
    assert await child.wait_ended(20)
    assert ends == [7]
    assert await child.request({}) is None


async def test_a_child_that_does_not_end_in_time_is_not_gone() -> None:
    child, _ = connect("import sys; sys.stdin.read()")
    assert not await child.wait_ended(0.01)
    child.end()
    assert await child.wait_ended(20)


async def test_events_before_an_end_are_passed_on_though_the_answer_never_comes() -> None:
    other_lines: list[bytes] = []
    child, _ = connect(
        "import sys; sys.stdin.readline(); print('{\"events\": {}}', flush=True); sys.exit(7)", other_lines
    )
    assert await asyncio.wait_for(child.request({}), patience(20)) is None
    assert other_lines == [b'{"events": {}}\n']


# Between two readings


async def test_what_a_look_finds_is_reported_and_the_next_reading_shows_it(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=2)
    changed = asyncio.Event()
    async with probing(fake) as probe:
        probe.watch(Watch(every_seconds=0.05, changed=changed.set))
        assert {gpu.health for gpu in (await report_from(probe)).gpus} == {Health.OK}
        assert not changed.is_set()
        fake.happen(("xid", 1, 79))
        fake.set("error", "*", 0, "GPU_IS_LOST")
        async with asyncio.timeout(patience(10)):
            await changed.wait()
        first, second = (await report_from(probe)).gpus
    assert first.health is Health.LOST
    assert second.events == {"xid_79": 1}


async def test_a_child_that_ends_between_two_readings_is_reported(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=1)
    changed = asyncio.Event()
    async with probing(fake, policy=AT_ONCE) as probe:
        probe.watch(Watch(every_seconds=0.05, changed=changed.set))
        await report_from(probe)
        fake.set("crash", "nvmlDeviceGetTemperature", 0)
        async with asyncio.timeout(patience(10)):
            await changed.wait()
        fake.unset("crash")
        assert (await report_from(probe)).gpus[0].health is Health.OK


async def test_a_driver_that_hangs_in_a_look_is_a_missed_reading_within_the_deadline(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=1)
    async with probing(fake, deadline_seconds=1) as probe:
        probe.watch(Watch(every_seconds=0.05, changed=lambda: None))
        await report_from(probe)
        fake.set("hang", "nvmlDeviceGetCount_v2", "*")
        name = Path(f"/proc/{child_of(probe).process.pid}/comm")
        await asyncio.to_thread(
            eventually, lambda: name.read_text().strip() == HELD, within_seconds=10, what="a look that hangs"
        )
        missed = await miss_from(probe)
        assert missed.reason == "nvml_hung"
        fake.unset("hang")
        assert (await report_from(probe)).gpus[0].health is Health.OK


async def test_no_look_follows_a_reading_that_asks_for_none(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, gpus=1)
    changed = asyncio.Event()
    async with probing(fake) as probe:
        probe.watch(Watch(every_seconds=0.02, changed=changed.set))
        await report_from(probe)
        probe.watch(None)
        await report_from(probe)
        fake.happen(("xid", 0, 31))
        called = fake.calls()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await changed.wait()
        assert fake.calls() == called
