import time
from pathlib import Path

import psutil
import pytest

from gpu_agent.node.gpus import opened_gpus
from gpu_agent.probe.health import Missed
from gpu_agent.wire.inventory import GpuReport
from tests.nvml_fake.control import FakeNvml


async def test_simulated_gpus_are_the_same_for_the_same_seed() -> None:
    seen = []
    for seed in ("one", "one", "two"):
        async with opened_gpus(simulate="2xL4-24GB", seed=seed, deadline_seconds=1) as read:
            report = await read()
            assert isinstance(report, GpuReport)
            seen.append([gpu.uuid for gpu in report.gpus])
    assert seen[0] == seen[1] != seen[2]


async def test_the_machine_s_own_are_read_through_nvml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeNvml(tmp_path, gpus=3)
    for name, value in fake.environment().items():
        monkeypatch.setenv(name, value)
    async with opened_gpus(simulate=None, seed="", deadline_seconds=20) as read:
        report = await read()
    assert isinstance(report, GpuReport)
    assert len(report.gpus) == 3


async def test_a_simulated_hang_is_a_missed_reading_like_a_true_one() -> None:
    async with opened_gpus(simulate="L4:hang", seed="", deadline_seconds=5) as read:
        missed = await read()
    assert isinstance(missed, Missed)
    assert missed.reason == "nvml_hung"
    assert missed.since <= time.monotonic()
    assert "did not answer within 5 s" in missed.detail


async def test_a_driver_that_is_not_kept_open_is_let_go_after_each_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeNvml(tmp_path)
    for name, value in fake.environment().items():
        monkeypatch.setenv(name, value)
    async with opened_gpus(simulate=None, seed="", deadline_seconds=20, keep_open=False) as read:
        for _ in range(2):
            assert isinstance(await read(), GpuReport)
            assert not [pid for pid in fake.callers() if psutil.pid_exists(pid)]
    assert len(fake.callers()) == 2


async def test_a_child_that_is_stuck_is_not_doubled_where_none_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("hang", "nvmlDeviceGetTemperature", "*")
    for name, value in fake.environment().items():
        monkeypatch.setenv(name, value)
    async with opened_gpus(simulate=None, seed="", deadline_seconds=1, keep_open=False) as read:
        while not fake.callers():
            assert isinstance(await read(), Missed)
        assert isinstance(await read(), Missed)
        assert len(fake.callers()) == 1
        fake.unset("hang")
        while not isinstance(await read(), GpuReport):
            pass
