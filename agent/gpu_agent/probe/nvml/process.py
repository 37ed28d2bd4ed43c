"""The NVML child seen from outside: starting it, sending requests, and what its end means.

Shared by the daemon (`client`) and by commands that read once (`report.read_once`). A command starts the
child and sends the request before it imports the rest, so this module imports little. It kills nothing: a
process that is killed inside the driver has frozen GPUs.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from gpu_agent.probe.nvml.forked_child import ForkedChild, Outputs, is_secret
from gpu_agent.probe.nvml.stuck_child import CHILD_NAME, find_stuck_child
from gpu_agent.records import dataclass

CHILD_COMMAND: tuple[str, ...] = (sys.executable, "-P", "-m", "gpu_agent.probe.nvml.child")
"""`-P`: a file in the working directory must never pass for a module of the child's."""

DEADLINE_SECONDS = 5.0
"""How long one reading of all GPUs may take."""

_GRACE_SECONDS = 0.2
"""How long a hung child has to end after SIGTERM before it is left behind."""


@dataclass(frozen=True, slots=True)
class StartedChild:
    """A child with its request sent, or the reason why there is none."""

    process: subprocess.Popen[bytes] | None
    requested_at: float
    """Monotonic seconds."""
    failure: str | None = None


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
        return StartedChild(
            None, requested_at, f"The NVML child could not be started ({error}): see `ulimit -u`."
        )
    send_request(process, 1)
    return StartedChild(process, requested_at)


def collect(child: StartedChild | ForkedChild, timeout_seconds: float) -> tuple[bytes, bytes, int | None]:
    """Read what a child writes until it ends: output, errors, exit status.

    One that has not ended by then has no status, and is abandoned.
    """
    if isinstance(child, ForkedChild):
        output, errors = child.collect(timeout_seconds)
        status = child.returncode
        child.abandon(_GRACE_SECONDS)
        return output, errors, status
    process = child.process
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


def _communicate(process: subprocess.Popen[bytes], timeout_seconds: float) -> tuple[bytes, bytes, int | None]:
    try:
        output, errors = process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired as missed:
        abandon(process)
        return missed.output or b"", b"", None
    return output, errors, process.returncode


def dismiss(child: StartedChild | ForkedChild) -> None:
    """End a child whose answer is not needed after all."""
    if isinstance(child, ForkedChild):
        child.abandon(_GRACE_SECONDS)
    elif child.process is not None:
        close_stdin(child.process)
        abandon(child.process)


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
    process: subprocess.Popen[bytes],
    request_id: int,
    *,
    reopen: bool = False,
    with_events: bool = False,
    quarantined: Mapping[str, object] | None = None,
    look_every_seconds: float | None = None,
) -> None:
    """Request one reading of all but the quarantined GPUs; a child that has ended shows that by its end."""
    request = {"id": request_id, "request": "read", "reopen": reopen, "events": with_events}
    more = {"quarantined": quarantined, "look_every": look_every_seconds}
    line = json.dumps({**request, **{name: value for name, value in more.items() if value}})
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.write(line.encode() + b"\n")
            process.stdin.flush()


def close_stdin(process: subprocess.Popen[bytes]) -> None:
    """Close the child's stdin: it ends as soon as the driver lets it."""
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()


def hung_sentence(seconds: float) -> str:
    """Say that the driver let the deadline pass, with the next step."""
    return (
        f"NVML did not answer within {seconds:g} s (nvml_hung): the driver or a GPU is stuck; "
        "see `dmesg` for Xid or NVRM messages, and reboot if it stays."
    )


def stuck_sentence(pid: int) -> str:
    """Say that the driver still holds a child of an earlier reading, with the next step."""
    return (
        f"Process {pid}, an earlier NVML child, was asked to end and is still in the driver (nvml_hung): the "
        "driver or a GPU is stuck; see `dmesg` for Xid or NVRM messages, and reboot if it stays."
    )


def death_sentence(returncode: int, stderr: bytes = b"") -> str:
    """Say how the child ended without an answer, with the next step."""
    if returncode < 0:
        names = {number.value: number.name for number in signal.Signals}
        how = f"was ended by {names.get(-returncode, f'signal {-returncode}')}"
    else:
        how = f"left with exit status {returncode}"
    lines = [line for line in stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    message = f", saying {lines[-1].strip()!r}" if lines else ""
    return (
        f"The process that queries the NVIDIA driver {how}{message} (nvml_child_died): "
        "run `nvidia-smi`; if it fails too, reinstall the driver."
    )


def without_credentials(env: Mapping[str, str]) -> dict[str, str]:
    """Return what a child needs of an environment: nothing of ours, nothing that may be a secret."""
    return {name: value for name, value in env.items() if not is_secret(name, value)}
