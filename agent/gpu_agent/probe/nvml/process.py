"""The NVML child seen from outside, where it is executed: starting it, sending requests, ending it.

Shared by the daemon (`client`) and by commands that read once (`report.read_once`) and cannot fork a child. A
command starts the child and sends the request before it imports the rest. Nothing is killed: a process that
is killed inside the driver has frozen GPUs.
"""

import contextlib
import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from gpu_agent.probe.nvml.forked_child import Outputs, is_secret
from gpu_agent.probe.nvml.no_answer import stuck_sentence
from gpu_agent.probe.nvml.stuck_child import CHILD_NAME, find_stuck_child
from gpu_agent.records import dataclass

CHILD_COMMAND: tuple[str, ...] = (sys.executable, "-P", "-m", "gpu_agent.probe.nvml.child")
"""`-P`: a file in the working directory must never pass for a module of the child's."""

_GRACE_SECONDS = 0.2
"""How long a hung child has to end after SIGTERM before it is left behind."""


@dataclass(frozen=True, slots=True)
class StartedChild:
    """A child with its request sent, or the reason why there is none."""

    process: subprocess.Popen[bytes] | None
    requested_at: float
    """Monotonic seconds."""
    failure: str | None = None

    def finish(self, timeout_seconds: float) -> tuple[bytes, bytes, int | None]:
        """Read what it writes until it ends: output, errors, exit status.

        Without a status it has not ended by then, and is abandoned.
        """
        process = self.process
        assert process is not None  # noqa: S101 - what did not start is not read
        if sys.platform == "win32":  # which cannot wait for pipes
            return _communicate(process, timeout_seconds)
        deadline = time.monotonic() + timeout_seconds
        close_stdin(process)
        pipes = [pipe for pipe in (process.stdout, process.stderr) if pipe is not None]
        outputs = Outputs(*(os.dup(pipe.fileno()) for pipe in pipes))
        output, errors = outputs.read_until(deadline)
        outputs.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        if process.returncode is None:
            abandon(process)
            return output, b"", None
        for pipe in pipes:
            pipe.close()
        return output, errors, process.returncode

    def dismiss(self) -> None:
        """End it: its answer is not needed after all."""
        if self.process is not None:
            close_stdin(self.process)
            abandon(self.process)


def start_child(
    command: Sequence[str] = CHILD_COMMAND, *, env: Mapping[str, str] | None = None, name: str = CHILD_NAME
) -> StartedChild:
    """Start a child and send the request; returns at once. Give the result to `report.read_once`.

    While a child of this `name` is stuck, none is started: it would only be stuck beside it.
    """
    requested_at = time.monotonic()
    stuck_pid = find_stuck_child(name)
    if stuck_pid is not None:
        return StartedChild(None, requested_at, stuck_sentence(stuck_pid))
    try:
        process = spawn(command, env=env, keep_stderr=True)
    except OSError as error:
        limit = "-n" if error.errno in (errno.EMFILE, errno.ENFILE) else "-u"
        return StartedChild(
            None, requested_at, f"The NVML child could not be started ({error}): see `ulimit {limit}`."
        )
    send_request(process, 1)
    return StartedChild(process, requested_at)


def _communicate(process: subprocess.Popen[bytes], timeout_seconds: float) -> tuple[bytes, bytes, int | None]:
    try:
        output, errors = process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired as missed:
        abandon(process)
        return missed.output or b"", b"", None
    return output, errors, process.returncode


def abandon(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM to a child and stop waiting.

    One that is stuck in the kernel ends when the driver lets it.
    """
    process.terminate()
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        return
    finally:
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def spawn(
    command: Sequence[str], *, env: Mapping[str, str] | None, keep_stderr: bool = False
) -> subprocess.Popen[bytes]:
    """Start a child in a session of its own, so that a Ctrl-C meant for us does not reach it.

    Raises:
        OSError: the machine did not start it.
    """
    return subprocess.Popen(  # noqa: S603 - our own interpreter, or what the caller configured
        list(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if keep_stderr else subprocess.DEVNULL,
        env=without_credentials(os.environ if env is None else env),
        start_new_session=True,
    )


def send_request(
    process: subprocess.Popen[bytes], request_id: int, more: Mapping[str, object] | None = None
) -> None:
    """Request one reading, with what else `child` reads of a request; one that has ended shows by its end."""
    wanted = {name: value for name, value in (more or {}).items() if value}
    line = json.dumps({"id": request_id, "request": "read", **wanted})
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.write(line.encode() + b"\n")
            process.stdin.flush()


def close_stdin(process: subprocess.Popen[bytes]) -> None:
    """Close the child's stdin: it ends as soon as the driver lets it."""
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()


def without_credentials(env: Mapping[str, str]) -> dict[str, str]:
    """Return what a child needs of an environment: nothing of ours, nothing that may be a secret."""
    return {name: value for name, value in env.items() if not is_secret(name, value)}
