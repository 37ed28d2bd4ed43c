"""Processes of this machine as `/proc` shows them: their parents, groups and start times. Linux only.

A process that cannot be seen from here, such as one outside of our container whose number means
another one or none, is unknown. Only the requested ones are read, except for the members of a group.
"""

from dataclasses import dataclass
from pathlib import Path

_LONGEST_BYTES = 4096
_STATE, _PARENT, _GROUP, _THREADS, _STARTED = 0, 1, 2, 17, 19
"""Fields of `stat` after the name in parentheses: proc(5) counts them as the 3rd, 4th, 5th, 20th and 22nd."""
_ENDED = frozenset({b"Z", b"X", b"x"})
_MOST_ANCESTORS = 256
_NAME_AND_NUMBER = 2
"""What `status` has in its line of a process' numbers, where it has one alone."""


@dataclass(frozen=True, slots=True)
class Process:
    """One running process."""

    pid: int
    parent: int
    group: int
    started: int
    """Ticks since the boot: with the pid, it names one process."""


def process(pid: int, root: Path = Path("/")) -> Process | None:
    """Look at a process; None where there is none, or where it cannot be seen.

    A zombie, as a careless PID 1 leaves it, does not count.
    """
    try:
        with (root / "proc" / str(pid) / "stat").open("rb") as file:
            # The name may hold anything, parentheses and spaces too: what follows the last one is fixed.
            fields = file.read(_LONGEST_BYTES).rpartition(b")")[2].split()
        ended = fields[_STATE] in _ENDED and int(fields[_THREADS]) <= 1  # else its first thread alone has
        parent, group, started = (int(fields[at]) for at in (_PARENT, _GROUP, _STARTED))
        return None if ended else Process(pid, parent, group, started)
    except (OSError, ValueError, IndexError):
        return None


def members(group: int, root: Path = Path("/")) -> tuple[Process, ...]:
    """The processes of a group, such as all that a command has started; empty where none can be seen.

    It looks at every process of the machine.
    """
    try:
        pids = [int(entry.name) for entry in (root / "proc").iterdir() if entry.name.isdecimal()]
    except OSError:
        return ()
    return tuple(one for pid in pids if (one := process(pid, root)) and one.group == group)


def program(pid: int, root: Path = Path("/")) -> str | None:
    """The name of a process' program, as far as the kernel keeps it; None where it cannot be seen."""
    try:
        with (root / "proc" / str(pid) / "comm").open("rb") as file:
            return file.read(_LONGEST_BYTES).decode("utf-8", "replace").strip()
    except OSError:
        return None


def counts_as_we_do(pid: int, root: Path = Path("/")) -> bool:
    """Whether the numbers that a process knows of others are ours; not where it is shown in a container."""
    try:
        with (root / "proc" / str(pid) / "status").open("rb") as file:
            pids = [line.split() for line in file if line.startswith(b"NSpid:")]
    except OSError:
        return True
    return all(len(numbers) <= _NAME_AND_NUMBER for numbers in pids)


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
