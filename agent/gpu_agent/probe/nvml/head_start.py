"""A child that is asked before the rest of a command is loaded, so that both happen at once.

It loads next to nothing itself; `once` fetches the answer. It restarts nothing and retries nothing.
"""

import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gpu_agent.probe.nvml.left_behind import CHILD_NAME, left_behind
from gpu_agent.probe.nvml.process import CHILD_COMMAND, ask, ask_to_end, start, stuck_sentence

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
    stuck = left_behind(name)
    if stuck is not None:
        return StartedChild(None, asked_at, stuck_sentence(stuck))
    try:
        process = start(command, env=env, keep_stderr=True)
    except OSError as error:
        return StartedChild(
            None, asked_at, f"The NVML child could not be started ({error}): see `ulimit -u`."
        )
    ask(process, 1)
    return StartedChild(process, asked_at)


def dismiss(child: StartedChild) -> None:
    """Let a child go whose answer is not needed after all."""
    if child.process is not None:
        ask_to_end(child.process)
        leave_behind(child.process)


def leave_behind(process: subprocess.Popen[bytes]) -> None:
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
