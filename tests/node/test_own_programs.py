import asyncio
import sys
from pathlib import Path

import pytest

from gpu_agent.node.own_programs import look, named_own
from gpu_agent.wire.inventory import Gpu, GpuProcess, GpuReport, Outcome

STAT = "{pid} ({name}) S {parent} 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 {pid} 1 1\n"
TREE = {10: (1, "a-program-with-a"), 11: (10, "child"), 20: (1, "stranger")}


def machine(root: Path) -> Path:
    for pid, (parent, name) in TREE.items():
        folder = root / "proc" / str(pid)
        folder.mkdir(parents=True)
        (folder / "stat").write_text(STAT.format(pid=pid, name=name[:15], parent=parent))
        (folder / "comm").write_text(name[:15] + "\n")
    return root


def report(*pids: int) -> GpuReport:
    processes = tuple(GpuProcess(pid=pid, ours=False if pid == 11 else None) for pid in pids)
    return GpuReport(outcome=Outcome.OK, gpus=(Gpu(uuid="GPU-1", name="X", processes=processes),))


def owners(seen: GpuReport) -> list[bool | None]:
    return [one.ours for one in seen.gpus[0].processes or ()]


def test_a_program_of_that_name_and_what_it_started_are_the_owners_own(tmp_path: Path) -> None:
    seen = look(report(10, 11, 20, 99), ["a-program-with-a-long-name"], machine(tmp_path))
    assert owners(seen) == [True, True, None, None]


def test_a_name_is_as_long_as_its_bytes(tmp_path: Path) -> None:
    root, name = machine(tmp_path), "größenwähnerisch"
    (root / "proc" / "20" / "comm").write_bytes(name.encode()[:15] + b"\n")
    assert owners(look(report(20), [name], root)) == [True]


def test_gpus_that_tell_no_processes_stay_as_they_are(tmp_path: Path) -> None:
    untold = GpuReport(outcome=Outcome.OK, gpus=(Gpu(uuid="GPU-1", name="X"),))
    assert look(untold, ["x"], tmp_path) == untold


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
async def test_a_real_process_is_known_by_its_name() -> None:
    sleeping = await asyncio.create_subprocess_exec("sleep", "60")
    try:
        assert owners(await named_own(report(sleeping.pid), ("sleep",))) == [True]
        assert owners(await named_own(report(sleeping.pid), ())) == [None]
    finally:
        sleeping.kill()
        await sleeping.wait()
