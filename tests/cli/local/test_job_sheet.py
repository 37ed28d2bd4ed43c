import os
import pwd
from typing import Any

import pytest

from gpu_agent.cli.lines import plain
from gpu_agent.cli.local.job_sheet import counted, held_in_words, job_lines

NOW = 1_700_000_000.0


def job(**more: object) -> dict[str, Any]:
    given = {"job_id": "job-1", "uid": os.getuid(), "since": NOW - 120, "pid": 4711, "held_by": "process"}
    return {**given, **more}


def test_a_job_is_told_with_its_user_and_with_what_ends_it() -> None:
    head, row = (plain(one).split() for one in job_lines([job()], None, now=NOW))
    assert head == ["JOB", "SINCE", "FOR", "USER", "ENDS", "WITH"]
    assert row[0] == "job-1"
    assert row[2:] == ["2", "min", pwd.getpwuid(os.getuid()).pw_name, "process", "4711"]


def test_a_user_whom_nobody_knows_stays_a_number() -> None:
    assert " 2345678  " in plain(job_lines([job(uid=2345678)], None, now=NOW)[1])


@pytest.mark.parametrize(
    ("pid", "held_by", "words"),
    [
        (7, "process", "process 7"),
        (7, "connection", "the connection of process 7"),
        (None, "connection", "a connection from elsewhere"),
    ],
)
def test_what_holds_a_job_is_said(pid: int | None, held_by: str, words: str) -> None:
    assert held_in_words(job(pid=pid, held_by=held_by)) == words


def test_no_jobs_are_no_lines() -> None:
    assert job_lines([], 80, now=NOW) == []


def test_jobs_are_counted_in_words() -> None:
    assert [counted([0] * count) for count in (0, 1, 2)] == [
        "no jobs are in flight",
        "1 job is in flight",
        "2 jobs are in flight",
    ]
