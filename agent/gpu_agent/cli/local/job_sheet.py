"""Jobs in flight on this machine, as a table for people."""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from gpu_agent.cli.durations import in_words
from gpu_agent.cli.lines import Line, line
from gpu_agent.cli.nodes.event_words import clock
from gpu_agent.cli.sheet import Column, Row, Sheet, laid_out

if sys.platform != "win32":
    import pwd

NO_JOBS = "No job is in flight."
_COLUMNS = (
    Column(head="JOB", folds=True),
    Column(head="SINCE", worth=2),
    Column(head="FOR", right=True),
    Column(head="USER", worth=1),
    Column(head="ENDS WITH"),
)


def job_lines(jobs: Iterable[Mapping[str, Any]], columns: int | None, *, now: float) -> list[Line]:
    """Draw them, the longest first; `now` is wall time. No jobs, no lines."""
    return laid_out(Sheet(_COLUMNS, [_row(job, now) for job in jobs]), columns)


def held_in_words(job: Mapping[str, Any]) -> str:
    """Say what ends a job that nobody finishes."""
    if job["pid"] is None:
        return "a connection from elsewhere"
    process = f"process {job['pid']}"
    return process if job["held_by"] == "process" else f"the connection of {process}"


def counted(jobs: Iterable[object]) -> str:
    """Say how many there are."""
    count = sum(1 for _ in jobs)
    return "1 job is in flight" if count == 1 else f"{count or 'no'} jobs are in flight"


def _row(job: Mapping[str, Any], now: float) -> Row:
    return Row(
        (
            line(job["job_id"]),
            line(clock(job["since"], now)),
            line(in_words(now - job["since"])),
            line(_user(job["uid"])),
            line(held_in_words(job)),
        )
    )


def _user(uid: int) -> str:
    """The user's name where this machine knows one."""
    if sys.platform == "win32":
        return str(uid)
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)
