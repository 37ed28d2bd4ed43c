"""A GPU's memory, by the newer call, the older call, or the kernel's own account."""

from pathlib import Path

import pytest

from gpu_agent.probe.nvml.memory import is_integrated
from tests.nvml_fake.child import gpu_of
from tests.nvml_fake.control import FakeNvml, built_library

MEMINFO = "MemTotal:       125829120 kB\nMemFree:         1048576 kB\nMemAvailable:   104857600 kB\n"


def spark(tmp_path: Path) -> FakeNvml:
    """A machine whose GPU has no memory of its own, as NVML reports it there."""
    fake = FakeNvml(tmp_path)
    fake.set("name", 0, "NVIDIA GB10")
    fake.set("compute_capability", 0, "12.1")
    fake.set("error", "nvmlDeviceGetMemoryInfo_v2", "*", "NOT_SUPPORTED")
    return fake


def tree(tmp_path: Path, meminfo: str | None) -> Path:
    root = tmp_path / "root"
    (root / "proc").mkdir(parents=True)
    if meminfo is not None:
        (root / "proc" / "meminfo").write_text(meminfo)
    return root


@pytest.mark.parametrize("code", ["FUNCTION_NOT_FOUND", "ARGUMENT_VERSION_MISMATCH"])
def test_memory_falls_back_to_the_older_call_whose_used_holds_the_reserve(tmp_path: Path, code: str) -> None:
    fake = FakeNvml(tmp_path)
    newer = gpu_of(fake)
    fake.set("error", "nvmlDeviceGetMemoryInfo_v2", 0, code)
    older = gpu_of(fake)
    assert older["memory_mb"] == newer["memory_mb"]
    assert older["memory_used_mb"] == newer["memory_used_mb"] + 512
    assert older["memory_free_mb"] == newer["memory_free_mb"]
    assert newer["memory_reserved_mb"] == 512
    assert "memory_reserved_mb" not in older
    assert "may count what it reserves as used" in older["unknowns"]["memory_reserved_mb"]


def test_a_driver_without_the_newer_memory_call_is_read_by_the_older_one(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path, library=built_library("nvmlDeviceGetMemoryInfo_v2"))
    gpu = gpu_of(fake)
    assert gpu["memory_used_mb"] == 1024 + 512
    assert "nvmlDeviceGetMemoryInfo_v2 0" not in fake.calls()


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


def test_absurd_reserve_leaves_the_rest_of_memory_known(tmp_path: Path) -> None:
    fake = FakeNvml(tmp_path)
    fake.set("memory_reserved", 0, 1 << 40)
    fake.set("memory_used", 0, 0)
    gpu = gpu_of(fake)
    assert "memory_reserved_mb" in gpu["unknowns"]


def test_an_integrated_gpu_has_the_machines_memory_as_unified(tmp_path: Path) -> None:
    gpu = gpu_of(spark(tmp_path), root=tree(tmp_path, MEMINFO))
    assert gpu["memory_kind"] == "unified"
    assert (gpu["memory_mb"], gpu["memory_used_mb"], gpu["memory_free_mb"]) == (122_880, 20_480, 102_400)
    assert list(gpu["unknowns"]) == ["memory_reserved_mb"]


@pytest.mark.parametrize("meminfo", [None, "", "MemTotal: many kB\n", "MemTotal: 0 kB\n", "MemTotal\n: 1\n"])
def test_an_integrated_gpu_without_meminfo_is_unified_and_of_unknown_size(
    tmp_path: Path, meminfo: str | None
) -> None:
    gpu = gpu_of(spark(tmp_path), root=tree(tmp_path, meminfo))
    assert gpu["memory_kind"] == "unified"
    assert "the machine's memory" in gpu["unknowns"]["memory_mb"]
    assert "memory_mb" not in gpu


def test_without_memavailable_the_use_is_unknown(tmp_path: Path) -> None:
    gpu = gpu_of(spark(tmp_path), root=tree(tmp_path, "MemTotal: 1048576 kB\n"))
    assert gpu["memory_mb"] == 1024
    assert "available" in gpu["unknowns"]["memory_used_mb"]


def test_an_integrated_gpu_that_reports_its_memory_is_believed(tmp_path: Path) -> None:
    fake = spark(tmp_path)
    fake.unset("error")
    assert gpu_of(fake)["memory_kind"] == "dedicated"


@pytest.mark.parametrize(
    ("name", "capability", "integrated"),
    [
        ("NVIDIA GB10", "12.1", True),
        ("Orin (nvgpu)", "8.7", True),
        ("NVIDIA Thor", None, True),
        ("NVIDIA Tegra X1", "5.3", True),
        ("NVIDIA GH200 480GB", "9.0", True),
        (None, "8.7", True),
        ("NVIDIA GeForce GTX 1080", "6.1", False),
        ("Quadro GB102", "10.0", False),
        ("NVIDIA H100 80GB HBM3", "9.0", False),
        (None, None, False),
    ],
)
def test_integrated_parts_are_known_by_name_or_architecture(
    name: str | None, *, capability: str | None, integrated: bool
) -> None:
    assert is_integrated({"name": name, "compute_capability": capability}) is integrated
