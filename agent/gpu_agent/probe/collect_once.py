"""One reading of every collector for a command: all at once, each in a thread, none waited for too long.

What does not answer in time is left behind with its thread, which never keeps the program from
ending. Asks nobody twice; the daemon, which does, has a shell of its own.
"""

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

from gpu_agent.probe.attempt import Attempt, Failed, silent_sentence
from gpu_agent.probe.collectors import Surroundings, installed
from gpu_agent.wire.inventory import GpuReport, Outcome


@dataclass(frozen=True, slots=True)
class StartedCollectors:
    """Collectors that were asked, and when."""

    asked: tuple[tuple[str, threading.Thread], ...]
    answers: dict[str, GpuReport | Failed]
    """Filled by the threads."""
    asked_at: float
    """Monotonic seconds."""
    deadline_seconds: float


def start_collectors(
    wanted: Iterable[str] | None, surroundings: Surroundings, *, deadline_seconds: float
) -> StartedCollectors:
    """Ask those that are wanted (`None`: all that are installed); returns at once."""
    asked_at = time.monotonic()
    answers: dict[str, GpuReport | Failed] = {}

    def ask(attempt: Attempt) -> None:
        answers[attempt.name] = attempt.read(deadline_seconds)

    attempts = [Attempt(one, surroundings) for one in installed(wanted)]
    threads = [
        (one.name, threading.Thread(target=ask, args=(one,), name=f"collector-{one.name}", daemon=True))
        for one in attempts
    ]
    for _, thread in threads:
        thread.start()
    return StartedCollectors(tuple(threads), answers, asked_at, deadline_seconds)


def collect(started: StartedCollectors) -> dict[str, GpuReport]:
    """Fetch the answers; whoever is silent at the deadline, counted from the ask, or failed, is broken."""
    return {name: _answer(started, name, thread) for name, thread in started.asked}


def _answer(started: StartedCollectors, name: str, thread: threading.Thread) -> GpuReport:
    thread.join(max(0.0, started.asked_at + started.deadline_seconds - time.monotonic()))
    answer = started.answers.get(name)
    if isinstance(answer, GpuReport):
        return answer
    detail = silent_sentence(name, started.deadline_seconds) if answer is None else answer.detail
    return GpuReport(outcome=Outcome.DRIVER_BROKEN, detail=detail)
