"""Process lists, by three generations of one call."""

from pathlib import Path

import pytest

from gpu_agent.probe.nvml.processes import lists_are_broken
from tests.nvml_fake.child import gpu_of
from tests.nvml_fake.control import FakeNvml, built_library

V3 = "nvmlDeviceGetComputeRunningProcesses_v3"
V2 = "nvmlDeviceGetComputeRunningProcesses_v2"
V1 = "nvmlDeviceGetComputeRunningProcesses"


def test_processes_are_listed_and_memory_that_windows_hides_is_none(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("process", 0, 4242, 123 << 20)
    fake.set("process", 0, 4243, 2**64 - 1)
    assert gpu_of(fake)["processes"] == [{"pid": 4242, "memory_mb": 123}, {"pid": 4243, "memory_mb": None}]


@pytest.mark.parametrize("code", ["NOT_SUPPORTED", "NO_PERMISSION", "TIMEOUT"])
def test_processes_that_the_driver_will_not_list_are_unknown_and_no_older_call_is_tried(
    tmp_path: Path, code: str
) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("error", V3, 0, code)
    gpu = gpu_of(fake)
    assert list(gpu["unknowns"]) == ["processes"]
    assert "processes" not in gpu
    assert f"{V2} 0" not in fake.calls()


@pytest.mark.parametrize(("without", "called"), [((V3,), V2), ((V3, V2), V1)])
def test_an_older_driver_is_read_by_the_newest_call_that_it_has(
    tmp_path: Path, *, without: tuple[str, ...], called: str
) -> None:
    fake = FakeNvml(tmp_path, library=built_library(*without))
    for pid in (11, 12, 13):
        fake.set("process", 0, pid, 256 << 20)
    assert gpu_of(fake)["processes"] == [{"pid": pid, "memory_mb": 256} for pid in (11, 12, 13)]
    assert f"{called} 0" in fake.calls()


def test_a_driver_without_any_process_call_is_too_old(tmp_path: Path) -> None:
    gpu = gpu_of(FakeNvml(tmp_path, library=built_library(V3, V2, V1)))
    assert "too old" in gpu["unknowns"]["processes"]


def test_an_older_driver_without_processes_lists_none(tmp_path: Path) -> None:
    assert gpu_of(FakeNvml(tmp_path, library=built_library(V3, V2)))["processes"] == []


def test_an_older_drivers_error_is_the_reason(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, library=built_library(V3, V2))
    fake.set("error", V1, 0, "NO_PERMISSION")
    assert gpu_of(fake)["unknowns"]["processes"] == "the agent's user may not read it"


def test_a_driver_with_wrong_process_lists_is_not_queried_and_must_be_updated(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("driver_version", "535.54.03")
    fake.set("process", 0, 4242, 1 << 30)
    gpu = gpu_of(fake)
    assert "processes" not in gpu
    assert "535.54.03 answers with wrong process lists: update it" in gpu["unknowns"]["processes"]
    assert not [call for call in fake.calls() if "Processes" in call]


@pytest.mark.parametrize(
    ("version", "broken"),
    [
        ("535.42.01", False),
        ("535.43", True),
        ("535.43.02", True),
        ("535.85.12", True),
        ("535.86.05", False),
        ("535.129.03", False),
        ("525.60.13", False),
        ("570.124.06", False),
        ("", False),
        (None, False),
        ("unknown", False),
    ],
)
def test_the_series_begins_and_ends_where_it_is_known_to(version: str | None, *, broken: bool) -> None:
    assert lists_are_broken(version) is broken
