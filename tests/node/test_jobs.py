import json

import pytest

from gpu_agent.node.jobs import LONGEST_ID, Jobs, Worker, of_process
from gpu_agent.wire.declaration import JOB_IDS_ROOM_BYTES

ONE, OTHER = Worker("one"), Worker("other", pid=7, started=70)


def test_until_a_worker_announces_nobody_tells_and_from_then_on_none_is_none() -> None:
    jobs = Jobs()
    told = [jobs.ids]
    assert jobs.announced("a", ONE) is None
    told.append(jobs.ids)
    assert jobs.finished("a")
    told.append(jobs.ids)
    assert told == [None, ("a",), ()]


def test_jobs_are_named_oldest_first_and_each_once() -> None:
    jobs = Jobs()
    for job_id in ("b", "a", "b", "c"):
        jobs.announced(job_id, ONE)
    assert jobs.ids == ("b", "a", "c")


def test_a_job_that_is_not_in_flight_cannot_be_finished() -> None:
    jobs = Jobs()
    assert not jobs.finished("a")
    assert jobs.ids is None
    jobs.announced("a", ONE)
    assert [jobs.finished("a"), jobs.finished("a")] == [True, False]


def test_a_workers_jobs_end_with_it_and_nobody_elses() -> None:
    jobs = Jobs()
    for job_id, worker in (("a", ONE), ("b", OTHER), ("c", ONE)):
        jobs.announced(job_id, worker)
    assert jobs.gone(ONE) == ("a", "c")
    assert (jobs.ids, jobs.workers) == (("b",), (OTHER,))
    assert jobs.gone(ONE) == ()


def test_a_job_that_another_worker_took_over_outlives_the_first() -> None:
    jobs = Jobs()
    jobs.announced("a", ONE)
    jobs.announced("a", OTHER)
    assert jobs.gone(ONE) == ()
    assert jobs.ids == ("a",)
    assert jobs.gone(OTHER) == ("a",)


def test_a_process_stays_one_worker_however_many_connections_it_had() -> None:
    jobs = Jobs()
    for number in range(3):
        worker = Worker(f"connection-{number}", pid=7, started=70)
        jobs.announced(f"job-{number}", worker)
        assert jobs.left(worker) == (f"job-{number}",)
    assert (jobs.ids, jobs.workers) == ((), (of_process(7, 70),))
    assert jobs.left(ONE) == ()
    jobs.announced("a", ONE)
    assert (jobs.left(ONE), jobs.workers) == (("a",), (of_process(7, 70),))


def test_a_worker_without_a_job_is_still_a_worker() -> None:
    jobs = Jobs()
    jobs.announced("a", OTHER)
    jobs.finished("a")
    assert jobs.workers == (OTHER,)


@pytest.mark.parametrize("job_id", ["", "x" * (LONGEST_ID + 1), "a\x1b[2J", "a\nb", "\ud800"])
def test_an_id_that_no_registry_would_read_is_refused_and_counts_nothing(job_id: str) -> None:
    jobs = Jobs()
    assert "characters that can be printed" in (jobs.announced(job_id, ONE) or "")
    assert jobs.ids is None


def test_no_more_is_counted_than_a_beat_can_name() -> None:
    jobs = Jobs()
    refusal, number = None, 0
    while refusal is None:
        number += 1
        refusal = jobs.announced(f'"{number}\u00e9' + "x" * 1000, ONE)
    assert f"{number - 1} jobs are in flight, and no beat can name more" in refusal
    assert jobs.ids is not None
    assert len(json.dumps(jobs.ids, ensure_ascii=False).encode()) <= JOB_IDS_ROOM_BYTES
    jobs.finished(jobs.ids[0])
    assert jobs.announced("a", ONE) is None
