import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from gpu_agent.probe.host import host as host_module
from gpu_agent.probe.host.host import (
    DiskSpace,
    HostProbe,
    disk_space_at,
    distinct_disks,
    read_by_system_calls,
)

MIB, GIB = 1 << 20, 1 << 30
LINUX_ONLY = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's own files")


def contained(root: Path, files: dict[str, str]) -> HostProbe:
    """A host seen from a control group of version 2 with these files."""
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/self/cgroup").write_text("0::/\n")
    (root / "proc/self/mountinfo").write_text("31 23 0:28 / /cg rw - cgroup2 cgroup2 rw\n")
    (root / "cg").mkdir(exist_ok=True)
    for name, text in files.items():
        (root / "cg" / name).write_text(text)
    return HostProbe(root=root)


def test_this_machine_has_cores_memory_and_names() -> None:
    host = HostProbe().read()
    assert 1 <= host.cpu_logical_cores <= (host.machine_logical_cores or 0)
    assert host.memory_total_mb is not None
    assert 1 <= host.memory_total_mb <= (host.machine_memory_total_mb or 0)
    assert host.memory_used_mb is not None
    assert host.memory_available_mb is not None
    assert 0 < host.memory_used_mb + host.memory_available_mb <= host.memory_total_mb
    assert host.platform in ("linux", "windows", "macos")
    assert host.hostname
    assert host.kernel
    assert host.os


@LINUX_ONLY
def test_the_boot_id_is_the_kernels() -> None:
    assert HostProbe().read().boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_the_first_cpu_percent_is_unknown_and_the_next_is_measured_between() -> None:
    probe = HostProbe()
    first = probe.read()
    assert first.cpu_percent is None
    assert "cpu_percent" in first.unknowns
    before = psutil.cpu_times().user
    while psutil.cpu_times().user < before + 0.05:
        sum(range(10_000))
    second = probe.read()
    assert second.cpu_percent is not None
    assert 0 < second.cpu_percent <= 100
    assert "cpu_percent" not in second.unknowns


@LINUX_ONLY
def test_a_control_groups_limits_cut_the_machine_down(tmp_path: Path) -> None:
    files = {"cpu.max": "50000 100000", "memory.max": str(64 * MIB), "memory.current": str(16 * MIB)}
    host = contained(tmp_path, files).read()
    assert (host.cpu_logical_cores, host.memory_total_mb) == (1, 64)
    assert (host.memory_used_mb, host.memory_available_mb) == (16, 48)
    assert host.machine_memory_total_mb == psutil.virtual_memory().total // MIB
    assert host.machine_logical_cores == psutil.cpu_count()


@LINUX_ONLY
def test_a_set_of_cpus_cuts_the_cores_down_and_a_quota_further(tmp_path: Path) -> None:
    assert contained(tmp_path, {"cpuset.cpus.effective": "0"}).read().cpu_logical_cores == 1
    many = {"cpuset.cpus.effective": "0-1023", "cpu.max": "80000 100000"}
    assert contained(tmp_path, many).read().cpu_logical_cores == 1


@LINUX_ONLY
def test_limits_above_the_machine_change_nothing(tmp_path: Path) -> None:
    plain = HostProbe().read()
    files = {"cpu.max": "900000000 100000", "memory.max": str(1 << 50), "memory.current": "1"}
    host = contained(tmp_path, files).read()
    assert host.cpu_logical_cores == plain.cpu_logical_cores
    assert host.memory_total_mb == plain.machine_memory_total_mb


@LINUX_ONLY
def test_a_limit_whose_use_cannot_be_read_leaves_the_use_unknown(tmp_path: Path) -> None:
    host = contained(tmp_path, {"memory.max": str(64 * MIB), "memory.current": "lots"}).read()
    assert (host.memory_total_mb, host.memory_used_mb) == (64, None)
    assert host.unknowns["memory.current"] == "holds 'lots', which is no number"


@LINUX_ONLY
def test_a_group_that_uses_up_its_quota_is_at_full_load(tmp_path: Path) -> None:
    moments: Iterator[float] = iter((0.0, 10.0))
    files = {"cpu.max": "20000 100000", "cpu.stat": "usage_usec 0"}
    contained(tmp_path, files)
    probe = HostProbe(root=tmp_path, monotonic=lambda: next(moments))
    probe.read()
    before = psutil.cpu_times().user
    while psutil.cpu_times().user < before + 0.05:
        sum(range(10_000))
    (tmp_path / "cg/cpu.stat").write_text("usage_usec 2000000")
    assert probe.read().cpu_percent == 100


@LINUX_ONLY
def test_what_this_kernel_lacks_is_unknown_with_its_reason(tmp_path: Path) -> None:
    host = HostProbe(root=tmp_path).read()
    assert (host.boot_id, host.virtualization) == (None, None)
    assert host.unknowns["boot_id"].startswith("FileNotFoundError")
    assert host.unknowns["virtualization"] == "neither the firmware nor the processor says"


@LINUX_ONLY
def test_without_proc_cores_and_memory_are_read_by_system_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    host = HostProbe(root=tmp_path).read()
    assert host.cpu_logical_cores == len(os.sched_getaffinity(0))
    assert host.memory_total_mb == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MIB
    assert (host.memory_used_mb, host.memory_available_mb, host.cpu_percent) == (None, None, None)
    assert {"machine_memory_total_mb", "cpu_percent"} <= set(host.unknowns)


def test_memory_that_nothing_reports_is_unknown_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise OSError("no answer")

    monkeypatch.setattr(psutil, "virtual_memory", refuse)
    monkeypatch.setattr(host_module, "_memory_by_system_call", refuse)
    for host in (HostProbe(root=tmp_path).read(), read_by_system_calls("the machine did not answer")):
        assert host.memory_total_mb is None
        assert host.unknowns["memory_total_mb"] == "OSError: no answer"


def test_the_host_is_read_by_system_calls_where_files_hang() -> None:
    host = read_by_system_calls("the machine did not answer")
    assert host.memory_total_mb == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MIB
    assert host.hostname
    assert (host.memory_used_mb, host.boot_id) == (None, None)
    assert host.unknowns["cpu_percent"] == "the machine did not answer"


def test_it_loads_where_the_system_is_not_linux() -> None:
    program = (
        "import sys, psutil; sys.platform = 'win32'; import gpu_agent.probe.host.host as h;"
        "p = h.HostProbe().read(); assert p.platform == 'windows' and p.boot_id is None, p"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_cache_that_is_not_there_yet_counts_where_it_would_be_made(tmp_path: Path) -> None:
    cache = tmp_path / "none" / "hub"
    rooms = [room for room in (disk_space_at(cache), disk_space_at(tmp_path)) if isinstance(room, DiskSpace)]
    assert len(rooms) == 2
    (disk,) = distinct_disks(rooms)
    assert disk.path == str(cache)
    assert 0 < disk.free_bytes <= disk.total_bytes


def test_a_cache_that_cannot_be_measured_is_unknown_with_its_reason(tmp_path: Path) -> None:
    assert "too long" in str(disk_space_at(tmp_path / ("x" * 5000)))
    assert "null" in str(disk_space_at(Path("\0")))
