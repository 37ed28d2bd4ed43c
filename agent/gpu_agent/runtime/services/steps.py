"""What is done to a machine, step by step: each can be said beforehand, and is then carried out.

A file is put in place whole or not at all, and never through a link. The first step that fails ends the walk.
"""

import os
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

_LONGEST_SECONDS = 120.0
_FOLDER_MODE = 0o755


class StepError(Exception):
    """A step failed: the machine's fault, a sentence."""


@dataclass(frozen=True, slots=True)
class Write:
    """Put a file there, in the place of one that is there, and make its folders."""

    path: Path
    text: str
    mode: int = 0o644

    def __str__(self) -> str:
        """Say it."""
        return f"write {self.path}"

    def carry_out(self) -> None:
        """Do it."""
        _make(self.path.parent)
        beside = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}")
        try:
            with os.fdopen(
                os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, self.mode), "w", encoding="utf-8"
            ) as file:
                os.fchmod(file.fileno(), self.mode)  # whatever the mask of whoever asks
                file.write(self.text)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self.path)
        except OSError:
            beside.unlink(missing_ok=True)
            raise


def _make(folder: Path) -> None:
    """Make a folder and those above it, open to all: the service's user has to get in, whatever the mask."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    for place in reversed(missing):
        place.mkdir()
        place.chmod(_FOLDER_MODE)


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove a file or a link, or a folder with all that is in it."""

    path: Path

    def __str__(self) -> str:
        """Say it."""
        return f"remove {self.path}"

    def carry_out(self) -> None:
        """Do it; what a link leads to stays."""
        if self.path.is_dir() and not self.path.is_symlink():
            shutil.rmtree(self.path)
        else:
            self.path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class RemoveEmpty:
    """Remove a folder where nothing is left in it."""

    path: Path

    def __str__(self) -> str:
        """Say it."""
        return f"remove {self.path} if it is empty"

    def carry_out(self) -> None:
        """Do it."""
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()


@dataclass(frozen=True, slots=True)
class Run:
    """Run a program of the machine to its end."""

    words: tuple[str, ...]
    may_fail: bool = False

    def __str__(self) -> str:
        """Say it."""
        return f"run {' '.join(self.words)}"

    def carry_out(self) -> None:
        """Do it."""
        code, said = ran(self.words)
        if code != 0 and not self.may_fail:
            told = said.strip().splitlines()
            raise StepError(f"`{' '.join(self.words)}` failed: {told[-1] if told else f'exit code {code}'}")


Step = Write | Remove | RemoveEmpty | Run


def carry_out(steps: Iterable[Step], done: Callable[[Step], None]) -> None:
    """Do all of it in order, and tell of each that is done. Raises `StepError`."""
    for step in steps:
        try:
            step.carry_out()
        except OSError as error:
            raise StepError(f"cannot {step} ({error.strerror or error})") from error
        done(step)


def ran(words: tuple[str, ...]) -> tuple[int, str]:
    """Run a program of the machine; its exit code and all that it said. Raises `StepError`."""
    try:
        done = subprocess.run(  # noqa: S603 - words of our own
            words,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_LONGEST_SECONDS,
        )
    except FileNotFoundError:
        raise StepError(f"this machine has no {words[0]}") from None
    except subprocess.TimeoutExpired:
        raise StepError(f"`{' '.join(words)}` did not end within {_LONGEST_SECONDS:g} s") from None
    return done.returncode, done.stdout.decode("utf-8", "replace")
