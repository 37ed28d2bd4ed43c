import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_agent.node.jobs import (
    MAX_JOB_ID_LENGTH,
    Jobs,
    WorkerProcess,
    mark_own_programs,
    mark_owned,
    match_programs,
    match_workers,
    of_process,
)
from gpu_agent.probe.host.processes import process
from gpu_agent.wire.declaration import JOB_IDS_ROOM_BYTES
from gpu_agent.wire.inventory import Gpu, GpuProcess, GpuReport, Outcome

ONE, OTHER = WorkerProcess("one"), WorkerProcess("other", pid=7, started=70)


def test_ids_are_none_until_a_worker_announces_and_empty_afterwards() -> None:
    jobs = Jobs()
    ids = [jobs.ids]
    assert jobs.start("a", ONE, uid=0, now=1.0) is None
    ids.append(jobs.ids)
    assert jobs.finish("a")
    ids.append(jobs.ids)
    assert ids == [None, ("a",), ()]


def test_jobs_are_named_oldest_first_and_each_once() -> None:
    jobs = Jobs()
    for job_id in ("b", "a", "b", "c"):
        jobs.start(job_id, ONE, uid=0, now=1.0)
    assert jobs.ids == ("b", "a", "c")


def test_a_job_that_is_not_in_flight_cannot_be_finished() -> None:
    jobs = Jobs()
    assert not jobs.finish("a")
    assert jobs.ids is None
    jobs.start("a", ONE, uid=0, now=1.0)
    assert [jobs.finish("a"), jobs.finish("a")] == [True, False]


def test_a_workers_jobs_end_with_it_and_no_others() -> None:
    jobs = Jobs()
    for job_id, worker in (("a", ONE), ("b", OTHER), ("c", ONE)):
        jobs.start(job_id, worker, uid=0, now=1.0)
    assert jobs.remove_worker(ONE) == ("a", "c")
    assert (jobs.ids, jobs.workers) == (("b",), (OTHER,))
    assert jobs.remove_worker(ONE) == ()


def test_a_job_that_another_worker_took_over_outlives_the_first() -> None:
    jobs = Jobs()
    jobs.start("a", ONE, uid=0, now=1.0)
    jobs.start("a", OTHER, uid=0, now=1.0)
    assert jobs.remove_worker(ONE) == ()
    assert jobs.ids == ("a",)
    assert jobs.remove_worker(OTHER) == ("a",)


def test_a_process_stays_one_worker_however_many_connections_it_had() -> None:
    jobs = Jobs()
    for number in range(3):
        worker = WorkerProcess(f"connection-{number}", pid=7, started=70)
        jobs.start(f"job-{number}", worker, uid=0, now=1.0)
        assert jobs.close_connection(worker) == (f"job-{number}",)
    assert (jobs.ids, jobs.workers) == ((), (of_process(7, 70),))
    assert jobs.close_connection(ONE) == ()
    jobs.start("a", ONE, uid=0, now=1.0)
    assert (jobs.close_connection(ONE), jobs.workers) == (("a",), (of_process(7, 70),))


def test_a_job_that_is_announced_again_has_its_first_time_and_its_new_worker() -> None:
    jobs = Jobs()
    jobs.start("a", ONE, uid=5, now=100.0)
    jobs.start("a", of_process(7, 70), uid=5, now=200.0)
    (job,) = jobs.in_flight
    assert (job.since, job.worker.kind, job.worker.pid) == (100.0, "process", 7)
    assert [jobs.has_job(ONE), jobs.has_job(of_process(7, 70))] == [False, True]
    jobs.close_connection(ONE)
    assert jobs.in_flight == (job,)


def test_a_worker_without_a_job_is_still_a_worker() -> None:
    jobs = Jobs()
    jobs.start("a", OTHER, uid=0, now=1.0)
    jobs.finish("a")
    assert jobs.workers == (OTHER,)


@pytest.mark.parametrize("job_id", ["", "x" * (MAX_JOB_ID_LENGTH + 1), "a\x1b[2J", "a\nb", "\ud800"])
def test_an_id_that_no_registry_would_read_is_refused_and_counts_nothing(job_id: str) -> None:
    jobs = Jobs()
    assert "characters that can be printed" in (jobs.start(job_id, ONE, uid=0, now=1.0) or "")
    assert jobs.ids is None


def test_no_more_jobs_are_counted_than_a_heartbeat_can_name() -> None:
    jobs = Jobs()
    refusal, number = None, 0
    while refusal is None:
        number += 1
        refusal = jobs.start(f'"{number}\u00e9' + "x" * 1000, ONE, uid=0, now=1.0)
    assert f"{number - 1} jobs are in flight, and no heartbeat can name more" in refusal
    assert jobs.ids is not None
    assert len(json.dumps(jobs.ids, ensure_ascii=False).encode()) <= JOB_IDS_ROOM_BYTES
    jobs.finish(jobs.ids[0])
    assert jobs.start("a", ONE, uid=0, now=1.0) is None


STAT = "{pid} (x) S {parent} 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 {started} 1 1\n"
TREE = {1: (0, 1), 10: (1, 100), 11: (10, 110), 12: (11, 120), 20: (1, 200)}
"""pid → parent and start: 10 is a worker with a child and a grandchild, 20 a other."""


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
    seen = match_workers(report(10, 11, 12, 20), [WorkerProcess("w", 10, 100)], machine(tmp_path))
    assert owners(seen.report) == [True, True, True, False]
    assert seen.ended == ()


def test_a_process_that_cannot_be_seen_from_here_is_neither(tmp_path: Path) -> None:
    assert owners(match_workers(report(10, 99), [WorkerProcess("w", 10, 100)], machine(tmp_path)).report) == [
        True,
        None,
    ]


def test_without_a_known_worker_process_the_owner_is_unknown(tmp_path: Path) -> None:
    root = machine(tmp_path)
    for workers in ([], [WorkerProcess("w")]):
        seen = match_workers(report(10, 20), workers, root)
        assert (owners(seen.report), seen.ended) == ([None, None], ())


def test_a_worker_whose_process_ended_or_whose_pid_was_given_out_again_has_ended(tmp_path: Path) -> None:
    dead, reused, well = WorkerProcess("d", 77, 1), WorkerProcess("r", 20, 150), WorkerProcess("w", 10, 100)
    seen = match_workers(report(20), [dead, reused, well], machine(tmp_path))
    assert seen.ended == (dead, reused)
    assert owners(seen.report) == [False]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
async def test_the_jobs_of_a_real_process_end_with_it(caplog: pytest.LogCaptureFixture) -> None:
    jobs = Jobs()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)  # noqa: ASYNC220 - a worker
    here = process(child.pid)
    assert here is not None
    assert jobs.start("a", WorkerProcess("w", child.pid, here.started), uid=0, now=1.0) is None
    held = report(child.pid, os.getpid())
    assert owners(await mark_owned(held, jobs)) == [True, False]
    ids = [jobs.ids]
    child.communicate(b"\n")
    assert owners(await mark_owned(held, jobs)) == [None, None]
    ids.append(jobs.ids)
    assert ids == [("a",), ()]
    assert "worker_ended" in caplog.messages


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
async def test_a_worker_between_jobs_is_ours_and_its_end_is_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    jobs = Jobs()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)  # noqa: ASYNC220 - a worker
    here = process(child.pid)
    assert here is not None
    worker = WorkerProcess("connection-1", child.pid, here.started)
    assert jobs.start("a", worker, uid=0, now=1.0) is None
    jobs.close_connection(worker)
    assert owners(await mark_owned(report(child.pid), jobs)) == [True]
    child.communicate(b"\n")
    await mark_owned(report(), jobs)
    assert jobs.workers == ()
    assert "worker_ended" not in caplog.messages


async def test_without_workers_no_process_is_read() -> None:
    held = report(1)
    assert await mark_owned(held, Jobs()) is held


OWN_PROGRAMS_STAT = "{pid} ({name}) S {parent} 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 {pid} 1 1\n"
OWN_PROGRAMS_TREE = {10: (1, "a-program-with-a"), 11: (10, "child"), 20: (1, "other")}


def own_programs_machine(root: Path) -> Path:
    for pid, (parent, name) in OWN_PROGRAMS_TREE.items():
        folder = root / "proc" / str(pid)
        folder.mkdir(parents=True)
        (folder / "stat").write_text(OWN_PROGRAMS_STAT.format(pid=pid, name=name[:15], parent=parent))
        (folder / "comm").write_text(name[:15] + "\n")
    return root


def own_programs_report(*pids: int) -> GpuReport:
    processes = tuple(GpuProcess(pid=pid, ours=False if pid == 11 else None) for pid in pids)
    return GpuReport(outcome=Outcome.OK, gpus=(Gpu(uuid="GPU-1", name="X", processes=processes),))


def test_a_program_of_that_name_and_what_it_started_are_the_owners_own(tmp_path: Path) -> None:
    seen = match_programs(
        own_programs_report(10, 11, 20, 99), ["a-program-with-a-long-name"], own_programs_machine(tmp_path)
    )
    assert owners(seen) == [True, True, None, None]


def test_a_name_is_as_long_as_its_bytes(tmp_path: Path) -> None:
    root, name = own_programs_machine(tmp_path), "größenwähnerisch"
    (root / "proc" / "20" / "comm").write_bytes(name.encode()[:15] + b"\n")
    assert owners(match_programs(own_programs_report(20), [name], root)) == [True]


def test_gpus_that_report_no_processes_stay_unchanged(tmp_path: Path) -> None:
    without_processes = GpuReport(outcome=Outcome.OK, gpus=(Gpu(uuid="GPU-1", name="X"),))
    assert match_programs(without_processes, ["x"], tmp_path) == without_processes


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
async def test_a_real_process_is_known_by_its_name() -> None:
    sleeping = await asyncio.create_subprocess_exec("sleep", "60")
    try:
        assert owners(await mark_own_programs(own_programs_report(sleeping.pid), ("sleep",))) == [True]
        assert owners(await mark_own_programs(own_programs_report(sleeping.pid), ())) == [None]
    finally:
        sleeping.kill()
        await sleeping.wait()
