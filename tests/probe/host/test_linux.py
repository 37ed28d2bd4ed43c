"""What is read of a Linux machine equals psutil's, and what its kernel lacks has a way around or an error."""

import os
import platform
import shutil
import socket
import sys
from pathlib import Path

import psutil
import pytest

from gpu_agent.probe.host import linux, other_systems

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's own files")

MEMINFO = "".join(
    f"{name}: {kib:12} kB\n"
    for name, kib in (("MemTotal", 1000), ("MemFree", 300), ("Buffers", 50), ("Cached", 150))
)


def test_cores_and_names_are_those_that_psutil_and_the_standard_library_find() -> None:
    assert linux.logical_cores() == psutil.cpu_count()
    assert linux.physical_cores() == psutil.cpu_count(logical=False)
    assert linux.hostname() == socket.gethostname()
    assert linux.kernel() == platform.release()
    assert linux.os_name() == platform.freedesktop_os_release()["PRETTY_NAME"]


def test_memory_disk_and_time_are_psutils() -> None:
    total, available = linux.memory()
    assert total == psutil.virtual_memory().total
    assert available == pytest.approx(psutil.virtual_memory().available, rel=0.2)
    free, size = linux.disk_bytes("/")
    assert size == shutil.disk_usage("/").total
    assert free == pytest.approx(psutil.disk_usage("/").free, rel=0.1)
    before, after = linux.processor_seconds(), psutil.cpu_times()
    assert before[1] == pytest.approx(sum(after[:8]), rel=0.01, abs=2)
    assert before[1] - before[0] == pytest.approx(after.idle + after.iowait, rel=0.01, abs=2)


def test_other_systems_are_read_by_the_same_functions() -> None:
    names = {name for name in vars(linux) if not name.startswith("_") and callable(vars(linux)[name])}
    assert names <= set(vars(other_systems))
    assert other_systems.memory()[0] == linux.memory()[0]
    assert other_systems.disk_bytes("/")[1] == linux.disk_bytes("/")[1]
    assert other_systems.kernel() == linux.kernel()


@pytest.mark.parametrize(
    ("meminfo", "available_kib"),
    [
        (MEMINFO + "MemAvailable:     420 kB\n", 420),
        (MEMINFO, 500),
        (MEMINFO + "MemAvailable:    5000 kB\n", 300),
    ],
    ids=["as the kernel says", "before Linux 3.14", "more than there is"],
)
def test_available_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meminfo: str, available_kib: int
) -> None:
    (tmp_path / "meminfo").write_text(meminfo)
    monkeypatch.setattr(linux, "PROC", str(tmp_path))
    assert linux.memory() == (1000 << 10, available_kib << 10)


def test_the_time_of_guests_is_counted_once_and_waiting_for_a_disk_is_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stat").write_text("cpu  400 100 50 900 30 10 5 5 300 20\ncpu0 1 1 1 1\n")
    monkeypatch.setattr(linux, "PROC", str(tmp_path))
    monkeypatch.setattr(os, "sysconf", lambda _: 100)
    assert linux.processor_seconds() == (5.7, 15.0)


def test_cores_are_counted_by_the_older_file_too_and_unknown_without_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linux, "CPUS", str(tmp_path))
    (tmp_path / "cpufreq").mkdir()
    assert linux.physical_cores() is None
    for number in range(4):
        topology = tmp_path / f"cpu{number}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{number % 2},{number % 2 + 2}\n")
    assert linux.physical_cores() == 2


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ('PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"', "Debian GNU/Linux 12 (bookworm)"),
        ("PRETTY_NAME='A \"quoted\" one'", 'A "quoted" one'),
        ("PRETTY_NAME=Plain", "Plain"),
        (r'PRETTY_NAME="Costs \$5 \\ \"x\""', r'Costs $5 \ "x"'),
    ],
)
def test_the_systems_name_is_written_as_the_shell_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, name: str
) -> None:
    (tmp_path / "os-release").write_text(f"NAME=x\n{line}\n")
    monkeypatch.setattr(linux, "_OS_RELEASES", (str(tmp_path / "none"), str(tmp_path / "os-release")))
    assert linux.os_name() == name
    monkeypatch.setattr(linux, "_OS_RELEASES", (str(tmp_path / "none"),))
    with pytest.raises(FileNotFoundError):
        linux.os_name()
