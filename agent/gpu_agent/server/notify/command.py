"""How an attempt to hand over a message ends; and a message to a command.

A command reads the message from its standard input, and takes it by exit status 0.
"""

import asyncio
import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

COMMAND_SECONDS = 30.0

_REAP_SECONDS = 1.0
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


DELIVERED = Outcome()


async def run_command(command: tuple[str, ...], body: bytes) -> Outcome:
    """Run a command with a message; never raises for what it does."""
    program = Path(command[0]).name
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env=command_environment(),
            start_new_session=True,
        )
    except (OSError, ValueError) as error:  # ValueError: a word holds a NUL
        reason = getattr(error, "strerror", None) or error
        return Outcome(not_started(command[0], reason), lasting=True)
    try:
        async with asyncio.timeout(COMMAND_SECONDS):
            await _feed(process, body)
            await process.wait()
    except TimeoutError:
        return Outcome(f"the command {program} did not end within {COMMAND_SECONDS:g} s")
    finally:
        if process.returncode is None:
            _end(process)
            with suppress(TimeoutError):  # one that hangs in the kernel ends when it ends
                async with asyncio.timeout(_REAP_SECONDS):
                    await process.wait()
    code = process.returncode or 0
    if code:
        return Outcome(f"the command {program} failed with exit status {code}")
    return DELIVERED


def command_environment() -> dict[str, str]:
    """Return the variables that a command gets."""
    return {"PATH": _PATH, **{name: os.environ[name] for name in _PASSED_ON if name in os.environ}}


def not_started(program: str, reason: object) -> str:
    """Say that a program cannot be started."""
    return f"the command {Path(program).name} cannot be started ({reason})"


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
