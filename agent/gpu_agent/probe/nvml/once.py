"""One reading of all GPUs for a command that must be quick: no event loop, no second ask.

The child is started and asked first, by `head_start`, and its answer is fetched when the command
has done the rest of its start. It restarts nothing and retries nothing.
"""

import subprocess
import time

from gpu_agent.probe.nvml.head_start import StartedChild, leave_behind
from gpu_agent.probe.nvml.process import DEADLINE_SECONDS, death_sentence, hung_sentence
from gpu_agent.probe.nvml.report import answer_in
from gpu_agent.wire.inventory import GpuReport, Outcome


def read_once(child: StartedChild, deadline_seconds: float = DEADLINE_SECONDS) -> GpuReport:
    """Fetch the answer; a driver that stays silent until the deadline, counted from the ask, is broken."""
    if child.process is None:
        return GpuReport(outcome=Outcome.DRIVER_BROKEN, detail=child.failure)
    left = max(0.0, child.asked_at + deadline_seconds - time.monotonic())
    try:
        output, errors = child.process.communicate(timeout=left)
    except subprocess.TimeoutExpired as missed:
        output, errors = missed.output or b"", b""
        leave_behind(child.process)
        silence = hung_sentence(deadline_seconds)
    else:
        silence = death_sentence(child.process.returncode, errors)
    answers = [answer for line in output.splitlines() if (answer := answer_in(line))]
    if answers:
        return answers[-1].report
    took_ms = round((time.monotonic() - child.asked_at) * 1000, 3)
    return GpuReport(outcome=Outcome.DRIVER_BROKEN, detail=silence, took_ms=took_ms)
