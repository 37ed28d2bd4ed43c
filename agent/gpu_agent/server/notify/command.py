"""How an attempt to hand over a message ends; and a message to a command.

A command reads the message from its standard input, and takes it by exit status 0.
"""

import asyncio
import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from gpu_agent.registry.quoting import clip_sentence, one_line

COMMAND_SECONDS = 30.0

_REAP_SECONDS = 1.0
_READS_OUTPUT = os.name == "posix"
_LOOK_SECONDS = 0.05
_PIPE_BYTES, _MOST_OUTPUT_BYTES = 64 * 1024, 4096
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")
"""What a command gets of the registry's environment: nothing that may be a secret."""
_PATH = "/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended."""

    problem: str | None = None
    """Why it failed; None where the receiver took the message."""
    lasting: bool = False
    """Whether it fails until a person changes something."""
    retry_after_seconds: float = 0.0
    output: str = ""
    """The last line that a failed command wrote, for the log alone: nobody knows what is in it."""


DELIVERED = Outcome()


async def run_command(command: tuple[str, ...], body: bytes) -> Outcome:
    """Run a command with a message; never raises for what it does."""
    with _Output() as output:
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=output.write_end,
                stderr=output.write_end,
                env=command_environment(),
                start_new_session=True,
            )
        except (OSError, ValueError) as error:  # ValueError: a word holds a NUL
            reason = getattr(error, "strerror", None) or error
            return Outcome(not_started(command[0], reason), lasting=True)
        problem = await _problem_of(process, body, Path(command[0]).name)
        return DELIVERED if problem is None else Outcome(problem, output=output.last_line())


async def _problem_of(process: asyncio.subprocess.Process, body: bytes, program: str) -> str | None:
    """Hand a command the message and wait for its end; returns why it failed."""
    try:
        async with asyncio.timeout(COMMAND_SECONDS):
            await _feed(process, body)
            await process.wait()
    except TimeoutError:
        return f"the command {program} did not end within {COMMAND_SECONDS:g} s"
    finally:
        if process.returncode is None:
            _end(process)
            with suppress(TimeoutError):  # one that hangs in the kernel ends when it ends
                async with asyncio.timeout(_REAP_SECONDS):
                    await process.wait()
    code = process.returncode or 0
    return f"the command {program} failed with exit status {code}" if code else None


class _Output:
    """The end of what a command and its children write; a child that stays may hold the pipe open."""

    def __init__(self) -> None:
        self._end = b""
        self._timer: asyncio.TimerHandle | None = None
        self._read_end, self.write_end = os.pipe() if _READS_OUTPUT else (-1, asyncio.subprocess.DEVNULL)

    def __enter__(self) -> Self:
        if _READS_OUTPUT:
            os.set_blocking(self._read_end, False)
            self._look()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if _READS_OUTPUT:
            os.close(self._read_end)
            os.close(self.write_end)

    def last_line(self) -> str:
        """Return the last line that is not empty, as it shows in a log; empty where nothing was written."""
        if _READS_OUTPUT:
            self._read()
        lines = [line for line in self._end.decode(errors="replace").splitlines() if line.strip()]
        return clip_sentence(one_line(lines[-1].strip())) if lines else ""

    def _look(self) -> None:
        """Read now and then what the pipe holds: one that writes without end waits, not the loop."""
        self._read()
        self._timer = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)

    def _read(self) -> None:
        with suppress(BlockingIOError):
            self._end = (self._end + os.read(self._read_end, _PIPE_BYTES))[-_MOST_OUTPUT_BYTES:]


def command_environment() -> dict[str, str]:
    """Return the variables that a command gets."""
    return {"PATH": _PATH, **{name: os.environ[name] for name in _PASSED_ON if name in os.environ}}


def not_started(program: str, reason: object) -> str:
    """Say that a program cannot be started."""
    return f"the command {program} cannot be started ({reason})"


async def _feed(process: asyncio.subprocess.Process, body: bytes) -> None:
    """Write the message; a command that does not read it, or not all, ends as it likes."""
    stdin = process.stdin
    assert stdin is not None  # noqa: S101 - it is a pipe
    with suppress(ConnectionError, RuntimeError):  # uvloop raises the latter for a pipe that is closed
        stdin.write(body)
        await stdin.drain()
    stdin.close()


def _end(process: asyncio.subprocess.Process) -> None:
    """End a command and all that it started."""
    with suppress(ProcessLookupError, PermissionError):
        if os.name == "nt":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
