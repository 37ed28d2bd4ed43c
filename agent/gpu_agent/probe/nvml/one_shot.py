"""One reading of all GPUs for a command: no event loop, no second request.

`start_child` starts the child and sends the request before the rest of the command is imported, so that both
happen at once; `read_once` fetches the answer. Nothing is restarted or retried.
"""

import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gpu_agent.probe.nvml.process import (
    CHILD_COMMAND,
    DEADLINE_SECONDS,
    close_stdin,
    death_sentence,
    hung_sentence,
    send_request,
    spawn,
    stuck_sentence,
)
from gpu_agent.probe.nvml.report import parse_answer
from gpu_agent.probe.nvml.stuck_child import CHILD_NAME, find_stuck_child
from gpu_agent.wire.inventory import GpuReport, Outcome

# A child that is asked before the rest of a command is loaded, so that both happen at once.
#
# It loads next to nothing itself; `once` fetches the answer. It restarts nothing and retries nothing.


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
    command: Sequence[str] = CHILD_COMMAND, *, env: Mapping[str, str] | None = None, name: str = CHILD_NAME
) -> StartedChild:
    """Start a child and ask it; returns at once. Give the result to `nvml_once.read_once`.

    While a child of this `name` is stuck, none is started: it would only be stuck beside it.
    """
    asked_at = time.monotonic()
    stuck = find_stuck_child(name)
    if stuck is not None:
        return StartedChild(None, asked_at, stuck_sentence(stuck))
    try:
        process = spawn(command, env=env, keep_stderr=True)
    except OSError as error:
        return StartedChild(
            None, asked_at, f"The NVML child could not be started ({error}): see `ulimit -u`."
        )
    send_request(process, 1)
    return StartedChild(process, asked_at)


def dismiss(child: StartedChild) -> None:
    """Let a child go whose answer is not needed after all."""
    if child.process is not None:
        close_stdin(child.process)
        abandon(child.process)


def abandon(process: subprocess.Popen[bytes]) -> None:
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


# One reading of all GPUs for a command that must be quick: no event loop, no second ask.
#
# The child is started and asked first, by `head_start`, and its answer is fetched when the command
# has done the rest of its start. It restarts nothing and retries nothing.


def read_once(child: StartedChild, deadline_seconds: float = DEADLINE_SECONDS) -> GpuReport:
    """Fetch the answer; a driver that stays silent until the deadline, counted from the ask, is broken."""
    if child.process is None:
        return GpuReport(outcome=Outcome.DRIVER_BROKEN, detail=child.failure)
    left = max(0.0, child.asked_at + deadline_seconds - time.monotonic())
    try:
        output, errors = child.process.communicate(timeout=left)
    except subprocess.TimeoutExpired as missed:
        output, errors = missed.output or b"", b""
        abandon(child.process)
        silence = hung_sentence(deadline_seconds)
    else:
        silence = death_sentence(child.process.returncode, errors)
    answers = [answer for line in output.splitlines() if (answer := parse_answer(line))]
    if answers:
        return answers[-1].report
    took_ms = round((time.monotonic() - child.asked_at) * 1000, 3)
    return GpuReport(outcome=Outcome.DRIVER_BROKEN, detail=silence, took_ms=took_ms)
