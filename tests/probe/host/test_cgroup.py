from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_agent.probe.host.cgroup import Cgroup, CgroupProbe

V2_MOUNT = "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
GIB = 1 << 30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def version_2(root: Path, group: str, files: dict[str, str]) -> Cgroup:
    write(root, {"proc/self/cgroup": f"0::{group}\n", "proc/self/mountinfo": V2_MOUNT})
    write(root, {f"sys/fs/cgroup/{name}": text for name, text in files.items()})
    return CgroupProbe(root).read()


def version_1(root: Path, group: str, files: dict[str, str], *, top: str = "/") -> Cgroup:
    write(
        root,
        {
            "proc/self/cgroup": f"5:memory:{group}\n4:cpu,cpuacct:{group}\n0::/\n",
            "proc/self/mountinfo": f"33 25 0:28 {top} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
            f"34 25 0:29 {top} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
            "35 25 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
        },
    )
    write(root, {f"sys/fs/cgroup/{name}": text for name, text in files.items()})
    return CgroupProbe(root).read()


def test_version_2_limits_and_use_are_read(tmp_path: Path) -> None:
    files = {
        "cpu.max": "150000 100000\n",
        "cpu.stat": "usage_usec 2500000\nuser_usec 1\n",
        "memory.max": f"{4 * GIB}\n",
        "memory.current": f"{3 * GIB}\n",
        "memory.stat": f"anon 1\ninactive_file {GIB}\n",
    }
    assert version_2(tmp_path, "/", files) == Cgroup(
        cpu_cores=1.5, cpu_used_seconds=2.5, memory_limit_bytes=4 * GIB, memory_used_bytes=2 * GIB
    )


def test_version_2_without_limits_says_max_and_has_none(tmp_path: Path) -> None:
    assert version_2(tmp_path, "/", {"cpu.max": "max 100000\n", "memory.max": "max\n"}) == Cgroup()


def test_the_tightest_limit_of_all_parents_binds(tmp_path: Path) -> None:
    files = {
        "system.slice/cpu.max": "100000 100000",
        "system.slice/memory.max": str(GIB),
        "system.slice/agent.service/cpu.max": "max 100000",
        "system.slice/agent.service/memory.max": str(2 * GIB),
        "system.slice/agent.service/memory.current": "12288",
    }
    found = version_2(tmp_path, "/system.slice/agent.service", files)
    assert (found.cpu_cores, found.memory_limit_bytes, found.memory_used_bytes) == (1.0, GIB, 12288)


UNIT_FILES = {
    "system.slice/memory.max": "max",
    "system.slice/memory.current": str(6 * GIB),
    "system.slice/cpu.stat": "usage_usec 9000000",
    "system.slice/cpuset.cpus.effective": "0-7",
    "system.slice/agent.service/cpu.max": "50000 100000",
    "system.slice/agent.service/cpu.stat": "usage_usec 1000000",
    "system.slice/agent.service/cpuset.cpus.effective": "0-1",
    "system.slice/agent.service/memory.max": str(GIB // 2),
    "system.slice/agent.service/memory.current": str(GIB // 8),
}
"""What the group of a unit with limits of its own holds, and that of the slice above it."""


def test_what_systemd_grants_the_agents_own_unit_is_not_what_the_machine_has(tmp_path: Path) -> None:
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    found = version_2(tmp_path, "/system.slice/agent.service", UNIT_FILES)
    assert found == Cgroup(cpus=8, cpu_used_seconds=9.0, memory_used_bytes=6 * GIB)


def test_limits_above_the_agents_own_unit_bind_as_ever(tmp_path: Path) -> None:
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    files = {**UNIT_FILES, "system.slice/memory.max": str(8 * GIB)}
    found = version_2(tmp_path, "/system.slice/agent.service", files)
    assert (found.memory_limit_bytes, found.memory_used_bytes) == (8 * GIB, 6 * GIB)


def test_in_a_container_that_no_systemd_runs_a_units_limits_are_the_containers(tmp_path: Path) -> None:
    found = version_2(tmp_path, "/system.slice/agent.service", UNIT_FILES)
    assert (found.memory_limit_bytes, found.cpu_cores, found.cpus) == (GIB // 2, 0.5, 2)


@pytest.mark.parametrize("group", ["docker-1.scope", "session-1.scope", "user.slice"])
def test_only_a_service_is_the_agents_own(tmp_path: Path, group: str) -> None:
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    found = version_2(tmp_path, f"/{group}", {f"{group}/memory.max": str(GIB)})
    assert found.memory_limit_bytes == GIB


def test_a_mount_that_shows_nothing_but_the_unit_leaves_its_limits(tmp_path: Path) -> None:
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    assert version_2(tmp_path, "/hidden/agent.service", {"memory.max": str(GIB)}).memory_limit_bytes == GIB


def test_a_path_of_the_host_that_the_container_cannot_see_means_the_mount_itself(tmp_path: Path) -> None:
    found = version_2(tmp_path, "/kubepods/pod1/c1", {"memory.max": str(GIB)})
    assert found.memory_limit_bytes == GIB
    assert version_2(tmp_path, "/../other", {"memory.max": str(GIB)}).memory_limit_bytes == GIB


def test_version_1_limits_and_use_are_read_also_in_a_container(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": str(2 * GIB),
        "memory/memory.usage_in_bytes": str(GIB),
        "memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB // 2}\n",
        "cpu,cpuacct/cpu.cfs_quota_us": "50000",
        "cpu,cpuacct/cpu.cfs_period_us": "100000",
        "cpu,cpuacct/cpuacct.usage": "1500000000",
    }
    expected = Cgroup(
        cpu_cores=0.5, cpu_used_seconds=1.5, memory_limit_bytes=2 * GIB, memory_used_bytes=GIB // 2
    )
    assert version_1(tmp_path, "/docker/abc", files, top="/docker/abc") == expected


def test_version_1_without_limits_writes_huge_numbers_and_has_none(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": "9223372036854771712",
        "cpu,cpuacct/cpu.cfs_quota_us": "-1",
        "cpu,cpuacct/cpu.cfs_period_us": "100000",
    }
    assert version_1(tmp_path, "/", files) == Cgroup()


def test_version_1_gives_the_limit_of_parents_that_a_container_cannot_see(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": "9223372036854771712",
        "memory/memory.stat": f"cache 1\nhierarchical_memory_limit {3 * GIB}\n",
    }
    assert version_1(tmp_path, "/kubepods/pod/c", files, top="/kubepods/pod/c").memory_limit_bytes == 3 * GIB


def test_version_1_parents_that_can_be_seen_bind_too(tmp_path: Path) -> None:
    files = {
        "memory/user/memory.limit_in_bytes": str(GIB),
        "memory/user/job/memory.limit_in_bytes": str(4 * GIB),
        "cpu,cpuacct/user/cpu.cfs_quota_us": "200000",
        "cpu,cpuacct/user/cpu.cfs_period_us": "100000",
        "cpu,cpuacct/user/job/cpu.cfs_quota_us": "-1",
        "cpu,cpuacct/user/job/cpu.cfs_period_us": "100000",
    }
    found = version_1(tmp_path, "/user/job", files)
    assert (found.cpu_cores, found.memory_limit_bytes) == (2.0, GIB)


@pytest.mark.parametrize(
    ("listed", "count"), [("0-7", 8), ("0-3,8,10-11\n", 7), ("5", 1), ("", None), ("\n", None)]
)
def test_the_cpus_of_a_set_are_counted(tmp_path: Path, listed: str, count: int | None) -> None:
    assert version_2(tmp_path, "/", {"cpuset.cpus.effective": listed}) == Cgroup(cpus=count)


def test_version_1_has_its_set_in_a_hierarchy_of_its_own(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "3:cpuset:/a\n0::/\n",
            "proc/self/mountinfo": "35 31 0:32 / /cs rw - cgroup cgroup rw,cpuset\n",
            "cs/a/cpuset.effective_cpus": "2-3",
        },
    )
    assert CgroupProbe(tmp_path).read().cpus == 2


@pytest.mark.parametrize("listed", ["x", "3-1", "0-99999999", "1,,2", "-", "0-1;4"])
def test_a_set_that_makes_no_sense_is_unknown_with_its_reason(tmp_path: Path, listed: str) -> None:
    found = version_2(tmp_path, "/", {"cpuset.cpus.effective": listed})
    assert found.cpus is None
    assert "cpuset.cpus.effective" in found.unknowns


def test_backslashes_in_a_groups_name_are_read_as_the_kernel_escapes_them(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/machine.slice/qemu\\x2d1.scope/inner\n",
            "proc/self/mountinfo": "31 23 0:28 /machine.slice/qemu\\134x2d1.scope /c\\040g rw - cgroup2 c\n",
            "c g/inner/memory.max": str(GIB),
        },
    )
    assert CgroupProbe(tmp_path).read().memory_limit_bytes == GIB


def test_outside_linux_there_is_no_group_at_all(tmp_path: Path) -> None:
    assert CgroupProbe(tmp_path).read() == Cgroup()


@pytest.mark.parametrize("text", ["", "\n", "lots", "12 0", "max max", "nan 1"])
def test_a_file_that_makes_no_sense_is_no_limit_and_never_an_exception(tmp_path: Path, text: str) -> None:
    found = version_2(tmp_path, "/", {"cpu.max": text, "memory.max": text, "memory.current": text})
    assert (found.cpu_cores, found.memory_limit_bytes, found.memory_used_bytes) == (None, None, None)


def test_a_file_that_cannot_be_read_is_unknown_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "sys/fs/cgroup/memory.max").mkdir(parents=True)
    assert version_2(tmp_path, "/", {}).unknowns == {"memory.max": "cannot read it: Is a directory"}
    assert version_2(tmp_path, "/", {"cpu.max": "lots"}).unknowns["cpu.max"] == (
        "holds 'lots', which is no number"
    )


@given(groups=st.text(max_size=60), mounts=st.text(max_size=60))
def test_no_text_of_the_kernel_makes_it_raise(
    tmp_path_factory: pytest.TempPathFactory, groups: str, mounts: str
) -> None:
    root = tmp_path_factory.mktemp("root")
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_bytes(groups.encode("utf-8", "surrogatepass"))
    (root / "proc" / "self" / "mountinfo").write_bytes(
        ("1 2 3 / / x - cgroup2 c rw\n" + mounts).encode("utf-8", "surrogatepass")
    )
    CgroupProbe(root).read()


def test_a_process_that_moves_to_another_group_has_that_groups_limits(tmp_path: Path) -> None:
    mountinfo = "1 0 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    for group, limit in (("small", 1), ("large", 2)):
        folder = tmp_path / "sys/fs/cgroup" / group
        folder.mkdir(parents=True)
        (folder / "memory.max").write_text(f"{limit * GIB}\n")
    proc = tmp_path / "proc/self"
    proc.mkdir(parents=True)
    (proc / "mountinfo").write_text(mountinfo)
    (proc / "cgroup").write_text("0::/small\n")
    probe = CgroupProbe(tmp_path)
    assert probe.read().memory_limit_bytes == GIB
    (tmp_path / "sys/fs/cgroup/small/memory.max").write_text(f"{3 * GIB}\n")
    assert probe.read().memory_limit_bytes == 3 * GIB
    (proc / "cgroup").write_text("0::/large\n")
    assert probe.read().memory_limit_bytes == 2 * GIB
