"""An NVML child forked from a command that has loaded next to nothing: the quickest way to start one.

A child that is executed starts a second interpreter, and a command that has read its arguments has loaded
half of what it needs. So the program forks first where all of this holds, and else executes the child later:

- no thread runs, whose locks the child would inherit taken;
- the environment holds no credential: a forked process has its parent's for as long as it is stuck;
- no module is loaded from the working directory, where a file may pass for one of ours;
- no earlier child is stuck.

No driver library lives through the fork: only the child ever loads one.
"""

import contextlib  # noqa: F401 - command and child need it: it is loaded once for both, as the next two are
import json  # noqa: F401
import os
import select
import sys
import threading  # noqa: F401
import time
from collections.abc import Callable, Iterable, Sequence

from gpu_agent.probe.nvml.stuck_child import find_stuck_child

REQUEST = b'{"id": 1, "request": "read"}\n'

_OURS = ("GPU_AGENT_", "GPU_REGISTRY_")
_SECRET_PARTS = (
    *("TOKEN", "SECRET", "PASSW", "PASSPHRASE", "_PASS", "_PWD", "CREDENTIAL", "PROXY"),
    *("API_KEY", "APIKEY", "ACCESS_KEY", "PRIVATE_KEY"),
)
"""Parts of names: no driver needs such a variable, and a stuck child would hold it as long as it is stuck."""
_OTHERS = ("-h", "--help", "--watch", "--simulate")
"""Words of a probe that does not read the GPUs once."""

_STREAMS = 3
_STDERR = 2
_SIGTERM = 15
_PR_SET_PDEATHSIG = 1
"""prctl(2)"""
_READ_BYTES = 1 << 16
_MOST_BYTES = 32 << 20
"""Of each output; what is beyond is dropped: a driver library may print without end."""
_FIRST_WAIT_SECONDS = 0.0005
_LONGEST_WAIT_SECONDS = 0.05
_GRACE_SECONDS = 0.2
"""How long a hung child has to end after SIGTERM before it is left behind."""


def is_secret(name: str, value: str = "") -> bool:
    """Whether a variable may hold a credential: by its name, or as a URL that names a user."""
    upper = name.upper()
    if upper.startswith(_OURS) or any(part in upper for part in _SECRET_PARTS):
        return True
    return "@" in value.partition("://")[2]


class Outputs:
    """Pipes that a child writes to, read until they end or the time is over, and no more than a bound."""

    def __init__(self, *descriptors: int) -> None:
        self._texts = {descriptor: bytearray() for descriptor in descriptors}
        self._open = list(descriptors)

    @property
    def ended(self) -> bool:
        """Whether all have ended."""
        return not self._open

    def read_until(self, deadline: float) -> tuple[bytes, ...]:
        """Read until that moment, on the monotonic clock; what waits already is read in any case."""
        while self._open and (ready := self._await_any(deadline)):
            for descriptor in ready:
                self._read(descriptor)
        return tuple(map(bytes, self._texts.values()))

    def close(self) -> None:
        """Read no more."""
        while self._open:
            os.close(self._open.pop())

    def _await_any(self, deadline: float) -> list[int]:
        if time.monotonic() >= deadline and any(len(each) >= _MOST_BYTES for each in self._texts.values()):
            return []
        poll = select.poll()
        for descriptor in self._open:
            poll.register(descriptor, select.POLLIN)
        return [descriptor for descriptor, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000)]

    def _read(self, descriptor: int) -> None:
        data = os.read(descriptor, _READ_BYTES)
        if len(self._texts[descriptor]) < _MOST_BYTES:
            self._texts[descriptor] += data
        if not data:
            self._open.remove(descriptor)
            os.close(descriptor)


class ForkedChild:
    """A child that was asked for one reading."""

    def __init__(self, pid: int, stdout: int, stderr: int) -> None:
        self.pid = pid
        self.requested_at = time.monotonic()
        self.failure: str | None = None
        """As that of a child that could not be started."""
        self.returncode: int | None = None
        self._outputs = Outputs(stdout, stderr)

    def collect(self, timeout_seconds: float) -> tuple[bytes, bytes]:
        """Read all that it writes until it ends, or so long: then its `returncode` is None.

        What waits already is read even where the time is over.
        """
        deadline = time.monotonic() + timeout_seconds
        output, errors = self._outputs.read_until(deadline)
        if self._outputs.ended:
            self._await_end(deadline)
        return output, errors

    def finish(self, timeout_seconds: float) -> tuple[bytes, bytes, int | None]:
        """Read what it writes until it ends: output, errors, exit code.

        Without an exit code it has not ended by then, and is abandoned.
        """
        output, errors = self.collect(timeout_seconds)
        code = self.returncode
        self.dismiss()
        return output, errors, code

    def dismiss(self) -> None:
        """End it, and wait a moment for that."""
        self.abandon(_GRACE_SECONDS)

    def poll(self) -> int | None:
        """Return its exit code, negative for a signal; None while it runs."""
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # SIGCHLD is ignored since before our start: the kernel reaped it
                pid, status = self.pid, 0
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def abandon(self, grace_seconds: float = 0.0) -> None:
        """Send SIGTERM where it still runs, and wait no longer than that; its output is read no more."""
        if self.poll() is None:
            os.kill(self.pid, _SIGTERM)
            self._await_end(time.monotonic() + grace_seconds)
        self._outputs.close()

    def _await_end(self, deadline: float) -> int | None:
        wait = _FIRST_WAIT_SECONDS
        while self.poll() is None and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(wait, left))
            wait = min(wait * 2, _LONGEST_WAIT_SECONDS)
        return self.returncode


def fork_for(words: Sequence[str], run_child: Callable[[], None]) -> ForkedChild | None:
    """Fork a child where these arguments ask for one reading of the GPUs, and nothing speaks against it.

    `run_child` is called in the child: it answers the request on stdin as `child.main` does.
    """
    if words[:1] != ["probe"] or any(word.partition("=")[0] in _OTHERS for word in words):
        return None
    if not _may_fork() or find_stuck_child() is not None:
        return None
    pipes: list[tuple[int, int]] = []
    command_pid = os.getpid()
    try:
        while len(pipes) < _STREAMS:
            pipes.append(os.pipe())
        # where a standard stream is closed, a child would write over its own pipes
        pid = -1 if min(map(min, pipes)) <= _STDERR else os.fork()
    except OSError:
        pid = -1
    if pid == -1:
        _close(end for pipe in pipes for end in pipe)
        return None
    (stdin, request), (output, stdout), (errors, stderr) = pipes
    if pid == 0:
        _become_child((stdin, stdout, stderr), run_child, command_pid)
    _close((stdin, stdout, stderr))
    try:  # noqa: SIM105 - before contextlib
        os.write(request, REQUEST)  # a pipe has room for it
    except BrokenPipeError:  # it has ended already: its exit code and its last words say why
        pass
    os.close(request)
    return ForkedChild(pid, output, errors)


def _may_fork() -> bool:
    if sys.platform != "linux" or any(is_secret(*each) for each in os.environ.items()):
        return False
    try:
        return len(os.listdir("/proc/self/task")) == 1 and sys.path[0] not in ("", os.getcwd())  # noqa: PTH109, PTH208 - before pathlib
    except OSError:
        return False


def _become_child(streams: tuple[int, int, int], run_child: Callable[[], None], command_pid: int) -> None:
    """Answer as the child and end: this process never comes back to what the command would do."""
    try:
        os.setsid()  # a Ctrl-C meant for the command does not reach it
        for number, end in enumerate(streams):
            os.dup2(end, number)
        _close_others()
        _end_with(command_pid)
        run_child()
    finally:
        if (fault := sys.exception()) is not None:
            from traceback import format_exception  # noqa: PLC0415 - before anything else is loaded

            os.write(_STDERR, "".join(format_exception(fault)).encode("utf-8", "replace"))
        os._exit(1)


def _end_with(command_pid: int) -> None:
    """Have the kernel send SIGTERM to this process when the command is gone, however that ended."""
    from ctypes import CDLL  # noqa: PLC0415 - the binding loads it next, and in this process alone

    CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGTERM)
    if os.getppid() != command_pid:  # it ended before
        os._exit(1)


def _close_others() -> None:
    """Close what the command inherited, as an executed child has it closed."""
    for number in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208 - before pathlib
        if number > _STDERR:
            try:
                os.close(number)
            except OSError:  # that of the listing itself
                continue


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
