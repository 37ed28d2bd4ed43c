import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_agent.node.jobs import Jobs, Worker
from gpu_agent.node.ownership import look, owned
from gpu_agent.probe.processes import process
from gpu_agent.wire.inventory import Gpu, GpuProcess, GpuReport, Outcome

STAT = "{pid} (x) S {parent} 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 {started} 1 1\n"
TREE = {1: (0, 1), 10: (1, 100), 11: (10, 110), 12: (11, 120), 20: (1, 200)}
"""pid → parent and start: 10 is a worker with a child and a grandchild, 20 a stranger."""


def machine(root: Path) -> Path:
    for pid, (parent, started) in TREE.items():
        folder = root / "proc" / str(pid)
        folder.mkdir(parents=True)
        (folder / "stat").write_text(STAT.format(pid=pid, parent=parent, started=started))
    return root


def report(*pids: int) -> GpuReport:
    processes = tuple(GpuProcess(pid=pid, memory_mb=1) for pid in pids)
    return GpuReport(outcome=Outcome.OK, gpus=(Gpu(uuid="GPU-1", name="X", processes=processes),))


def owners(seen: GpuReport) -> list[bool | None]:
    return [one.ours for one in seen.gpus[0].processes or ()]


def test_a_worker_and_all_that_it_started_are_ours_and_others_are_foreign(tmp_path: Path) -> None:
    seen = look(report(10, 11, 12, 20), [Worker("w", 10, 100)], machine(tmp_path))
    assert owners(seen.report) == [True, True, True, False]
    assert seen.ended == ()


def test_a_process_that_cannot_be_seen_from_here_is_neither(tmp_path: Path) -> None:
    assert owners(look(report(10, 99), [Worker("w", 10, 100)], machine(tmp_path)).report) == [True, None]


def test_where_no_workers_process_is_known_nobody_knows_whose_they_are(tmp_path: Path) -> None:
    root = machine(tmp_path)
    for workers in ([], [Worker("w")]):
        seen = look(report(10, 20), workers, root)
        assert (owners(seen.report), seen.ended) == ([None, None], ())


def test_a_worker_whose_process_ended_or_whose_pid_was_given_out_again_has_ended(tmp_path: Path) -> None:
    dead, reused, well = Worker("d", 77, 1), Worker("r", 20, 150), Worker("w", 10, 100)
    seen = look(report(20), [dead, reused, well], machine(tmp_path))
    assert seen.ended == (dead, reused)
    assert owners(seen.report) == [False]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
async def test_the_jobs_of_a_real_process_end_with_it(caplog: pytest.LogCaptureFixture) -> None:
    jobs = Jobs()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)  # noqa: ASYNC220 - a worker
    here = process(child.pid)
    assert here is not None
    assert jobs.announced("a", Worker("w", child.pid, here.started)) is None
    held = report(child.pid, os.getpid())
    assert owners(await owned(held, jobs)) == [True, False]
    told = [jobs.ids]
    child.communicate(b"\n")
    assert owners(await owned(held, jobs)) == [None, None]
    told.append(jobs.ids)
    assert told == [("a",), ()]
    assert "worker_ended" in caplog.messages


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
async def test_a_worker_is_no_stranger_between_its_jobs_and_may_end_without_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    jobs = Jobs()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)  # noqa: ASYNC220 - a worker
    here = process(child.pid)
    assert here is not None
    worker = Worker("connection-1", child.pid, here.started)
    assert jobs.announced("a", worker) is None
    jobs.left(worker)
    assert owners(await owned(report(child.pid), jobs)) == [True]
    child.communicate(b"\n")
    await owned(report(), jobs)
    assert jobs.workers == ()
    assert "worker_ended" not in caplog.messages


async def test_without_workers_nothing_is_looked_at() -> None:
    held = report(1)
    assert await owned(held, Jobs()) is held
