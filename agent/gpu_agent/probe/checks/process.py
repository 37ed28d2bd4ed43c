"""Runs a check in a process of its own, with a deadline; blocks until it has ended or is left behind.

A check that hangs is asked to end (SIGTERM, with all that it started) and then left behind: SIGKILL has
frozen GPUs. While any of it still exists, no other one is started: at most one is stuck.
"""

import contextlib
import errno
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO

from gpu_agent.probe.host import processes
from gpu_agent.probe.nvml.process import without_credentials
from gpu_agent.probe.nvml.stuck_child import CHECK_NAME, find_stuck_child
from gpu_agent.records import dataclass

GRACE_SECONDS = 2.0
"""How long a check has to end after SIGTERM before it is left behind."""
OUTPUT_BYTES = 16 * 1024
"""The end of the output; the rest is dropped."""
_POLL_SECONDS = 0.05
_READ_BYTES = 4096
_LAST_OUTPUT_SECONDS = 0.5
"""How long output may still come after the process has ended: what it started may hold the pipe open."""


_PASSING = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETXTBSY})
"""Why a program may start later: the machine lacks something, or the file is being written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A check process that ended in time."""

    returncode: int
    """Negative: the number of the signal that ended it."""
    output: str
    """The end of it."""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A check process that did not end in time, or that was not started, and why."""

    why: str
    hung: bool = False
    """True where the process itself let its deadline pass."""
    cannot_start: bool = False
    """True where the command is no program, or is not there."""


class CheckProcesses:
    """Starts one check process at a time; its methods are called from one thread at a time."""

    def __init__(self, environ: Mapping[str, str], *, name: str = CHECK_NAME) -> None:
        """`environ` is given to each process, without what may be a credential.

        `name` is the process name by which a stuck child of another agent or command is found.
        """
        self.name = name
        self._environ = without_credentials(environ)
        self._left_behind: subprocess.Popen[bytes] | None = None
        self._started_by_it: tuple[processes.Process, ...] = ()
        """What that process had started and was asked to end with it. Linux only."""
        self.was_refused = False
        """Whether the last check was not started for a reason that passes, such as an earlier one."""

    @property
    def left_behind_pid(self) -> int | None:
        """A process that was asked to end here and still exists; None where there is none."""
        process = self._left_behind
        if process is not None and process.poll() is None:
            return process.pid
        self._started_by_it = tuple(filter(_still_runs, self._started_by_it))
        return next((one.pid for one in self._started_by_it), None)

    def run(
        self, command: Sequence[str], *, deadline_seconds: float, stop: threading.Event
    ) -> Ended | Unfinished:
        """Run a command, without a shell; once `stop` is set, it is asked to end and not waited for."""
        stuck_pid = self.left_behind_pid or find_stuck_child(self.name)
        self.was_refused = stuck_pid is not None
        if stuck_pid is not None:
            return Unfinished(f"an earlier check, process {stuck_pid}, was asked to end and has not")
        try:
            process = subprocess.Popen(  # noqa: S603 - our own child, or the owner's hook
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=self._environ,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:  # ValueError: a word holds a NUL
            why = f"it could not be started ({getattr(error, 'strerror', None) or error})"
            self.was_refused = getattr(error, "errno", None) in _PASSING
            return Unfinished(why, cannot_start=not self.was_refused)
        deadline = time.monotonic() + deadline_seconds
        try:
            output = _Output(process.stdout)
        except RuntimeError as error:  # no thread can be started
            return self._without_output(process, str(error))
        try:
            while process.poll() is None and time.monotonic() < deadline and not stop.is_set():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_SECONDS)
        except KeyboardInterrupt:
            _terminate(process)
            raise
        if process.poll() is not None:
            return Ended(returncode=process.returncode, output=output.text())
        return self._end(process, deadline_seconds, stopped=stop.is_set())

    def _without_output(self, process: subprocess.Popen[bytes], why: str) -> Unfinished:
        """Ask a process to end whose output nobody can read."""
        _terminate(process)
        self._left_behind = process
        return Unfinished(f"its output could not be read ({why}): see `ulimit -u`, and TasksMax of the unit")

    def _end(self, process: subprocess.Popen[bytes], deadline_seconds: float, *, stopped: bool) -> Unfinished:
        self._started_by_it = processes.members(process.pid)
        _terminate(process)
        self._left_behind = process
        if stopped:
            return Unfinished("the agent stops")
        given_up_at = time.monotonic() + GRACE_SECONDS
        while (stuck_pid := self.left_behind_pid) is not None and time.monotonic() < given_up_at:
            time.sleep(_POLL_SECONDS)
        late = f"no end within {deadline_seconds:g} s"
        if stuck_pid is not None:
            return Unfinished(f"{late}, and process {stuck_pid} does not end by SIGTERM", hung=True)
        return Unfinished(late, hung=True)


def _still_runs(one: processes.Process) -> bool:
    found = processes.process(one.pid)
    return found is not None and found.started == one.started


def _terminate(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, and all that it started."""
    if os.name == "nt":
        process.terminate()
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGTERM)


class _Output:
    """The end of what a process prints, read by a thread: a pipe may stay open longer than the process."""

    def __init__(self, pipe: IO[bytes] | None) -> None:
        self._end = b""
        self._thread = threading.Thread(target=self._read, args=(pipe,), name="check-output", daemon=True)
        self._thread.start()

    def text(self) -> str:
        self._thread.join(_LAST_OUTPUT_SECONDS)
        return self._end.decode("utf-8", "replace")

    def _read(self, pipe: IO[bytes] | None) -> None:
        if pipe is None:
            return
        with pipe:
            while piece := os.read(pipe.fileno(), _READ_BYTES):
                self._end = (self._end + piece)[-OUTPUT_BYTES:]
