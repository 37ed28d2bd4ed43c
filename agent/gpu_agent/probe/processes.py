"""Processes of this machine as `/proc` shows them: who started whom, and when. Linux only.

A process that cannot be seen from here, such as one outside of our container whose number means
another one or none, is unknown. It lists nothing: only what is asked for is looked at.
"""

from dataclasses import dataclass
from pathlib import Path

_LONGEST_BYTES = 4096
_PARENT, _STARTED = 1, 19
"""Fields of `stat` after the name in parentheses: proc(5) counts them as the 4th and the 22nd."""
_MOST_ANCESTORS = 256


@dataclass(frozen=True, slots=True)
class Process:
    """One running process."""

    pid: int
    parent: int
    started: int
    """Ticks since the boot: with the pid, it names one process."""


def process(pid: int, root: Path = Path("/")) -> Process | None:
    """Look at a process; None where there is none, or where it cannot be seen."""
    try:
        with (root / "proc" / str(pid) / "stat").open("rb") as file:
            # The name may hold anything, parentheses and spaces too: what follows the last one is fixed.
            told = file.read(_LONGEST_BYTES).rpartition(b")")[2].split()
        return Process(pid, int(told[_PARENT]), int(told[_STARTED]))
    except (OSError, ValueError, IndexError):
        return None


def program(pid: int, root: Path = Path("/")) -> str | None:
    """The name of a process' program, as far as the kernel keeps it; None where it cannot be seen."""
    try:
        with (root / "proc" / str(pid) / "comm").open("rb") as file:
            return file.read(_LONGEST_BYTES).decode("utf-8", "replace").strip()
    except OSError:
        return None


def lineage(pid: int, root: Path = Path("/")) -> tuple[Process, ...]:
    """A process and those that it comes from, itself first; empty where it cannot be seen."""
    line: list[Process] = []
    while pid > 0 and len(line) < _MOST_ANCESTORS:
        found = process(pid, root)
        if found is None:
            break
        line.append(found)
        pid = found.parent
    return tuple(line)
