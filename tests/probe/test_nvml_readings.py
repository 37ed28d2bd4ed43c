"""What one GPU says or will not say, through the true binding in the child."""

from pathlib import Path
from typing import Any

import pytest

from tests.nvml_fake.child import child_of
from tests.nvml_fake.control import FakeNvml


def gpu_of(fake: FakeNvml) -> dict[str, Any]:
    with child_of(fake.environment()) as child:
        gpu: dict[str, Any] = child.read()["gpus"][0]
        return gpu


@pytest.mark.parametrize("code", ["NOT_SUPPORTED", "FUNCTION_NOT_FOUND", "NO_PERMISSION", "TIMEOUT"])
@pytest.mark.parametrize(
    ("call", "fields"),
    [
        ("nvmlDeviceGetName", ["name"]),
        ("nvmlDeviceGetUUID", ["uuid"]),
        ("nvmlDeviceGetCudaComputeCapability", ["compute_capability"]),
        ("nvmlDeviceGetPciInfo_v3", ["pci_bus_id"]),
        ("nvmlDeviceGetUtilizationRates", ["utilization_percent", "memory_utilization_percent"]),
        ("nvmlDeviceGetPowerUsage", ["power_w"]),
        ("nvmlDeviceGetEnforcedPowerLimit", ["power_limit_w"]),
        ("nvmlDeviceGetClockInfo", ["clock_sm_mhz", "clock_memory_mhz"]),
        ("nvmlDeviceGetTotalEccErrors", ["ecc_uncorrected"]),
        ("nvmlDeviceGetRemappedRows", ["row_remap_pending", "row_remap_failed"]),
        ("nvmlDeviceGetRetiredPagesPendingStatus", ["retired_pages_pending"]),
        ("nvmlDeviceGetMigMode", ["mig_enabled"]),
        ("nvmlDeviceGetComputeRunningProcesses_v3", ["processes"]),
    ],
)
def test_one_getter_that_fails_leaves_its_fields_unknown_and_the_rest_counts(
    tmp_path: Path, *, call: str, fields: list[str], code: str
) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("error", call, 0, code)
    gpu = gpu_of(fake)
    assert sorted(gpu["unknowns"]) == sorted(fields)
    assert all(gpu["unknowns"].values())
    assert not set(fields) & set(gpu)
    assert (gpu["temperature_c"], gpu["reasons"]) == (40, [])


def test_every_getter_unsupported_still_lists_the_gpu(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("error", "*", 0, "NOT_SUPPORTED")
    fake.set("error", "nvmlDeviceGetHandleByIndex_v2", 0, "0")
    gpu = gpu_of(fake)
    assert (gpu["index"], gpu["reasons"]) == (0, [])
    assert len(gpu["unknowns"]) > 15


@pytest.mark.parametrize("code", ["FUNCTION_NOT_FOUND", "ARGUMENT_VERSION_MISMATCH"])
def test_memory_falls_back_to_the_older_call_whose_used_holds_the_reserve(tmp_path: Path, code: str) -> None:
    fake = FakeNvml(tmp_path)
    newer = gpu_of(fake)
    fake.set("error", "nvmlDeviceGetMemoryInfo_v2", 0, code)
    older = gpu_of(fake)
    assert older["memory_mb"] == newer["memory_mb"]
    assert older["memory_used_mb"] == newer["memory_used_mb"] + 512
    assert older["memory_free_mb"] == newer["memory_free_mb"]


def test_memory_not_supported_is_unknown_and_does_not_fall_back(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("error", "nvmlDeviceGetMemoryInfo_v2", 0, "NOT_SUPPORTED")
    gpu = gpu_of(fake)
    assert "not supported" in gpu["unknowns"]["memory_mb"]
    assert "memory_kind" not in gpu
    assert "nvmlDeviceGetMemoryInfo 0" not in fake.calls()


@pytest.mark.parametrize("total", [0, 2**64 - 1, (4 << 40) + 1])
def test_an_absurd_total_of_memory_is_unknown(tmp_path: Path, total: int) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("memory_total", 0, total)
    gpu = gpu_of(fake)
    assert str(total) in gpu["unknowns"]["memory_mb"]
    assert "memory_mb" not in gpu


def test_absurd_use_of_a_known_memory_is_left_out_with_its_reason(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("memory_used", 0, 2**64 - 1)
    gpu = gpu_of(fake)
    assert gpu["memory_mb"] > 0
    assert "memory_used_mb" not in gpu
    assert "memory_used_mb" in gpu["unknowns"]


@pytest.mark.parametrize(
    ("key", "value", "field"),
    [
        ("utilization", 4294967295, "utilization_percent"),
        ("temperature", 4294967295, "temperature_c"),
        ("power_mw", 4294967295, "power_w"),
        ("clock_sm_mhz", 4294967295, "clock_sm_mhz"),
    ],
)
def test_a_figure_that_no_gpu_has_is_unknown(tmp_path: Path, *, key: str, value: int, field: str) -> None:
    fake = FakeNvml(tmp_path)
    fake.set(key, 0, value)
    gpu = gpu_of(fake)
    assert str(value) in gpu["unknowns"][field]
    assert field not in gpu


def test_temperature_falls_back_to_the_call_of_newer_drivers(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("error", "nvmlDeviceGetTemperature", 0, "FUNCTION_NOT_FOUND")
    assert gpu_of(fake)["temperature_c"] == 40


def test_throttle_reasons_are_named_also_by_older_drivers_and_idleness_is_none(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("clocks_event_reasons", 0, 0x1 | 0x4 | 0x40)
    assert gpu_of(fake)["throttle_reasons"] == ["sw_power_cap", "hw_thermal_slowdown"]
    fake.set("error", "nvmlDeviceGetCurrentClocksEventReasons", 0, "FUNCTION_NOT_FOUND")
    assert gpu_of(fake)["throttle_reasons"] == ["sw_power_cap", "hw_thermal_slowdown"]


def test_a_name_that_is_no_utf8_is_kept_as_far_as_it_can_be_read(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("name", 0, "RTX \udcff\udcfe 4090")
    assert gpu_of(fake)["name"] == "RTX \ufffd\ufffd 4090"


def test_processes_are_listed_and_memory_that_windows_hides_is_none(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("process", 0, 4242, 123 << 20)
    fake.set("process", 0, 4243, 2**64 - 1)
    assert gpu_of(fake)["processes"] == [{"pid": 4242, "memory_mb": 123}, {"pid": 4243, "memory_mb": None}]
