"""One reading of all GPUs for a command that must be quick: no event loop, no second ask.

The child is started and asked first, and its answer is fetched when the command has
done the rest of its start; both happen at once. It restarts nothing and retries nothing.
"""

import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gpu_agent.probe.nvml_process import (
    CHILD_COMMAND,
    DEADLINE_SECONDS,
    ask,
    ask_to_end,
    death_sentence,
    hung_sentence,
    start,
)
from gpu_agent.probe.nvml_report import answer_in
from gpu_agent.wire.inventory import GpuReport, Outcome

_GRACE_SECONDS = 0.2
"""How long a child that missed its deadline may take to heed SIGTERM before it is left behind."""


@dataclass(frozen=True, slots=True)
class StartedChild:
    """A child that was asked, or the reason why there is none."""

    process: subprocess.Popen[bytes] | None
    asked_at: float
    """Monotonic seconds."""
    failure: str | None = None


def start_child(
    command: Sequence[str] = CHILD_COMMAND, *, env: Mapping[str, str] | None = None
) -> StartedChild:
    """Start a child and ask it; returns at once. Give the result to `read_once`."""
    asked_at = time.monotonic()
    try:
        process = start(command, env=env, keep_stderr=True)
    except OSError as error:
        return StartedChild(
            None, asked_at, f"The NVML child could not be started ({error}): see `ulimit -u`."
        )
    ask(process, 1)
    return StartedChild(process, asked_at)


def read_once(child: StartedChild, deadline_seconds: float = DEADLINE_SECONDS) -> GpuReport:
    """Fetch the answer; a driver that stays silent until the deadline, counted from the ask, is broken."""
    if child.process is None:
        return GpuReport(outcome=Outcome.DRIVER_BROKEN, detail=child.failure)
    left = max(0.0, child.asked_at + deadline_seconds - time.monotonic())
    try:
        output, errors = child.process.communicate(timeout=left)
    except subprocess.TimeoutExpired as missed:
        output, errors = missed.output or b"", b""
        _leave_behind(child.process)
        silence = hung_sentence(deadline_seconds)
    else:
        silence = death_sentence(child.process.returncode, errors)
    answers = [answer for line in output.splitlines() if (answer := answer_in(line))]
    if answers:
        return answers[-1].report
    took_ms = round((time.monotonic() - child.asked_at) * 1000, 3)
    return GpuReport(outcome=Outcome.DRIVER_BROKEN, detail=silence, took_ms=took_ms)


def dismiss(child: StartedChild) -> None:
    """Let a child go whose answer is not needed after all."""
    if child.process is not None:
        ask_to_end(child.process)
        _leave_behind(child.process)


def _leave_behind(process: subprocess.Popen[bytes]) -> None:
    """Ask a silent child to end; one that is stuck in the kernel ends when the driver lets it."""
    process.terminate()
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        return
    finally:
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
