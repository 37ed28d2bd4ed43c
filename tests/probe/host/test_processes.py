import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_agent.probe.host.processes import Process, counts_as_we_do, lineage, members, process, program

STAT = (
    "{pid} ({name}) {state} {parent} {group} 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 {threads} 0 {started} 1 1\n"
)


def put(
    root: Path, pid: int, parent: int, started: int, *, name: str = "python3", state: str = "S 1 1"
) -> None:
    """`state`: its letter, how many threads it has, and its group."""
    folder = root / "proc" / str(pid)
    folder.mkdir(parents=True)
    letter, threads, group = state.split()
    stat = STAT.format(
        pid=pid, name=name, state=letter, parent=parent, group=group, threads=threads, started=started
    )
    (folder / "stat").write_text(stat)


@pytest.mark.parametrize("name", ["python3", "a b", "x) S 99 (y", "((", ""])
def test_a_process_is_read_whatever_it_calls_itself(tmp_path: Path, name: str) -> None:
    put(tmp_path, 42, 7, 1234, name=name)
    assert process(42, tmp_path) == Process(42, 7, 1, 1234)


def test_a_process_that_is_not_there_or_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    assert process(42, tmp_path) is None
    (tmp_path / "proc" / "43").mkdir(parents=True)
    (tmp_path / "proc" / "43" / "stat").write_text("43 (x) S")
    assert process(43, tmp_path) is None


def test_a_zombie_is_no_process_unless_other_threads_run(
    tmp_path: Path,
) -> None:
    put(tmp_path, 42, 7, 1234, state="Z 1 1")
    put(tmp_path, 43, 7, 1234, state="Z 3 1")
    assert process(42, tmp_path) is None
    assert process(43, tmp_path) == Process(43, 7, 1, 1234)


def test_the_members_of_a_group_are_those_that_run(tmp_path: Path) -> None:
    put(tmp_path, 42, 7, 1234, state="S 1 42")
    put(tmp_path, 43, 1, 1235, state="D 1 42")
    put(tmp_path, 44, 42, 1236, state="Z 1 42")
    put(tmp_path, 45, 42, 1237, state="S 1 45")
    (tmp_path / "proc" / "self").mkdir()
    assert sorted(one.pid for one in members(42, tmp_path)) == [42, 43]
    assert members(42, tmp_path / "nowhere") == ()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_a_real_zombie_is_no_process() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert process(child.pid) is None


@pytest.mark.parametrize(
    ("pids", "same"), [("NSpid:\t42\n", True), ("NSpid:\t42\t7\n", False), ("Name:\tx\n", True)]
)
def test_a_process_in_a_container_has_other_pids(tmp_path: Path, pids: str, *, same: bool) -> None:
    assert counts_as_we_do(42, tmp_path)  # nothing shows otherwise
    put(tmp_path, 42, 7, 1234)
    (tmp_path / "proc" / "42" / "status").write_text(f"Name:\tx\n{pids}Threads:\t1\n")
    assert counts_as_we_do(42, tmp_path) is same


def test_a_lineage_goes_up_to_where_it_can_be_seen_and_ends_in_a_loop_of_nonsense(tmp_path: Path) -> None:
    put(tmp_path, 1, 0, 1)
    put(tmp_path, 10, 1, 100)
    put(tmp_path, 20, 10, 200)
    assert [one.pid for one in lineage(20, tmp_path)] == [20, 10, 1]
    put(tmp_path, 30, 31, 5)
    put(tmp_path, 31, 30, 5)
    assert len(lineage(30, tmp_path)) == 256


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_a_real_child_comes_from_us() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        try:
            assert [one.pid for one in lineage(child.pid)][:2] == [child.pid, os.getpid()]
        finally:
            child.communicate(b"\n")
    assert process(child.pid) is None


def test_a_program_is_named_as_the_kernel_keeps_it_and_unknown_where_it_cannot_be_seen(
    tmp_path: Path,
) -> None:
    (tmp_path / "proc" / "7").mkdir(parents=True)
    (tmp_path / "proc" / "7" / "comm").write_bytes(b"a b\xff\n")
    assert program(7, tmp_path) == "a b\ufffd"
    assert program(8, tmp_path) is None
