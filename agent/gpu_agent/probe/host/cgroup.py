"""The control group this process lives in: what it may use of the machine.

Understands version 1, version 2 and both at once (hybrid), in a container with or without a
cgroup namespace. Every limit is the tightest one between our own group and the top of what is
mounted, because a parent's limit binds its children. The group of the service that systemd runs this
process as is skipped: what a unit grants the agent (`MemoryMax`) is not what the machine has for jobs.

No limit is `None`, and so is a file that cannot be read, with its reason in `unknowns`. Outside Linux there
is no group at all.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from gpu_agent.records import dataclass, field

UNLIMITED_BYTES = 1 << 60
"""A version 1 limit at or above this means "no limit" (the kernel writes 2^63 less a page)."""

_MICROSECONDS = 1_000_000.0
_NANOSECONDS = 1_000_000_000.0
_OWN_GROUPS = "proc/self/cgroup"
_MOUNTS = "proc/self/mountinfo"
_BOOTED = "run/systemd/system"
"""There where systemd is the init, sd_booted(3): in a container that has none it is not."""
_SERVICE = ".service"
_ESCAPED = re.compile(r"\\([0-7]{3})")
_MOST_CPUS = 65_536
_CONTROLLERS = ("cpu", "cpuacct", "memory", "cpuset")
_Ladder = tuple[list[str], bool]
"""Directories from our group up to the mount's top, and whether they are version 2."""
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cgroup:
    """Limits and use of our control group; `None` where there is no limit or no answer."""

    cpu_cores: float | None = None
    """Cores' worth of CPU time it may use; may be a fraction."""
    cpus: int | None = None
    """How many CPUs its set holds; where it has none of its own, its parent's."""
    cpu_used_seconds: float | None = None
    """CPU time used since the group was made."""
    memory_limit_bytes: int | None = None
    memory_used_bytes: int | None = None
    """Its working set: what it holds, less file pages that the kernel may drop at once."""
    unknowns: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Mount:
    """Where one hierarchy is mounted: `top` is the group seen at `point`."""

    top: str
    point: str
    controllers: frozenset[str]
    """Empty for version 2."""


class CgroupProbe:
    """Reads our control group. Keep one per process: it looks for the group again only where it has moved."""

    def __init__(self, root: Path = Path("/")) -> None:
        """`root` is where `proc`, `sys` and `run` are found."""
        self._root = root
        self._found: tuple[str, str] | None = None
        """The kernel's lists of groups and mounts by which `_ladders` were found."""
        self._ladders: dict[str, _Ladder] = {}

    def read(self) -> Cgroup:
        """Read limits and use now."""
        try:
            found = _read(f"{self._root}/{_OWN_GROUPS}"), _read(f"{self._root}/{_MOUNTS}")
        except FileNotFoundError:
            return Cgroup()
        except OSError as error:
            return Cgroup(unknowns={"cgroup": f"cannot read {error.filename}: {error.strerror}"})
        if found != self._found:
            self._found, self._ladders = found, self._find_ladders(*found)
        reader = _Reader()
        cpu, cpu_is_v2 = self._ladders["cpu"]
        usage, usage_is_v2 = self._ladders["cpuacct"]
        memory, memory_is_v2 = self._ladders["memory"]
        cpuset, cpuset_is_v2 = self._ladders["cpuset"]
        return Cgroup(
            cpu_cores=_least(reader.cores_v2(d) if cpu_is_v2 else reader.cores_v1(d) for d in cpu),
            cpus=reader.cpus(cpuset[0], version_2=cpuset_is_v2) if cpuset else None,
            cpu_used_seconds=reader.cpu_used(usage[0], version_2=usage_is_v2) if usage else None,
            memory_limit_bytes=_least(reader.memory_limit(d, version_2=memory_is_v2) for d in memory),
            memory_used_bytes=reader.memory_used(memory[0], version_2=memory_is_v2) if memory else None,
            unknowns=reader.unknowns,
        )

    def _find_ladders(self, own: str, mounts: str) -> "dict[str, _Ladder]":
        booted = (self._root / _BOOTED).is_dir()
        groups = _Groups(self._root, _own_paths(own), tuple(_mounts(mounts)), booted=booted)
        return {controller: groups.ladder(controller) for controller in _CONTROLLERS}


def _read(path: str) -> str:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - several times quicker for the kernel's files
        return file.read().decode(errors="replace")


def _own_paths(text: str) -> dict[str, str]:
    """Controller → path of our group; the empty name is version 2's single hierarchy."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:  # noqa: PLR2004  hierarchy:controllers:path
            for controller in parts[1].split(","):
                paths[controller] = parts[2]
    return paths


def _mounts(text: str) -> Iterator[_Mount]:
    """The cgroup file systems of a `mountinfo` file."""
    for line in text.splitlines():
        left, separator, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if not separator or len(fields) < 5 or not kind:  # noqa: PLR2004  proc(5): top, point are 4th, 5th
            continue
        if kind[0] == "cgroup2":
            yield _Mount(_unescaped(fields[3]), _unescaped(fields[4]), frozenset())
        elif kind[0] == "cgroup":
            yield _Mount(_unescaped(fields[3]), _unescaped(fields[4]), frozenset(kind[-1].split(",")))


def _unescaped(path: str) -> str:
    """Undo mountinfo's octal escapes: systemd writes backslashes into the names of its groups."""
    return _ESCAPED.sub(lambda octal: chr(int(octal[1], 8)), path)


@dataclass(frozen=True, slots=True)
class _Groups:
    """Our group in each hierarchy, and where the hierarchies are mounted."""

    root: Path
    own: dict[str, str]
    mounts: tuple[_Mount, ...]
    booted: bool
    """Whether systemd runs here, so that a service's group is the agent's and not its machine's."""

    def ladder(self, controller: str) -> _Ladder:
        """Find the groups of a controller; none where it is not mounted."""
        for mount in self.mounts:
            if controller in mount.controllers and controller in self.own:
                return self._above_our_unit(_upwards(self.root, mount, self.own[controller])), False
        for mount in self.mounts:
            if not mount.controllers and "" in self.own:
                return self._above_our_unit(_upwards(self.root, mount, self.own[""])), True
        return [], False

    def _above_our_unit(self, ladder: list[str]) -> list[str]:
        own, *above = ladder
        return above if self.booted and above and own.endswith(_SERVICE) else ladder


def _upwards(root: Path, mount: _Mount, group: str) -> list[str]:
    point = root / mount.point.lstrip("/")
    below = group.removeprefix(mount.top.rstrip("/")).strip("/")
    parts = [] if ".." in below.split("/") else [part for part in below.split("/") if part]
    if not point.joinpath(*parts).is_dir():
        parts = []  # the path is the host's, the mount shows only our own group
    return [str(point.joinpath(*parts[:depth])) for depth in range(len(parts), -1, -1)]


def _least(values: Iterable[_Number | None]) -> _Number | None:
    return min((value for value in values if value is not None), default=None)


class _Reader:
    """Reads the files of one group; a file that is not there is no limit, a broken one is unknown."""

    def __init__(self) -> None:
        self.unknowns: dict[str, str] = {}

    def cores_v2(self, directory: str) -> float | None:
        fields = (self._text(directory, "cpu.max") or "").split() or ["max"]
        if fields[0] == "max":
            return None
        quota, period = self._number(fields[0], "cpu.max"), self._number(fields[-1], "cpu.max")
        return quota / period if quota and period else None

    def cores_v1(self, directory: str) -> float | None:
        quota = self._value(directory, "cpu.cfs_quota_us")
        period = self._value(directory, "cpu.cfs_period_us")
        return quota / period if quota and period and quota > 0 and period > 0 else None

    def cpus(self, directory: str, *, version_2: bool) -> int | None:
        name = "cpuset.cpus.effective" if version_2 else "cpuset.effective_cpus"
        listed = (self._text(directory, name) or "").strip()
        if not listed:
            return None
        counts = [self._range(part, name) for part in listed.split(",")]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    def cpu_used(self, directory: str, *, version_2: bool) -> float | None:
        if version_2:
            used = self._stat(directory, "cpu.stat", "usage_usec")
            return None if used is None else used / _MICROSECONDS
        used = self._value(directory, "cpuacct.usage")
        return None if used is None else used / _NANOSECONDS

    def memory_limit(self, directory: str, *, version_2: bool) -> int | None:
        if version_2:
            limits = [self._value(directory, "memory.max")]
        else:  # a container may not see its parents, but version 1 reports the tightest limit of them all
            limits = [
                self._value(directory, "memory.limit_in_bytes"),
                self._stat(directory, "memory.stat", "hierarchical_memory_limit"),
            ]
        return _least(limit for limit in limits if limit is not None and 0 < limit < UNLIMITED_BYTES)

    def memory_used(self, directory: str, *, version_2: bool) -> int | None:
        held = self._value(directory, "memory.current" if version_2 else "memory.usage_in_bytes")
        if held is None:
            return None
        name = "inactive_file" if version_2 else "total_inactive_file"
        return max(held - (self._stat(directory, "memory.stat", name) or 0), 0)

    def _value(self, directory: str, name: str) -> int | None:
        text = self._text(directory, name)
        return None if text is None or text.strip() == "max" else self._number(text, name)

    def _stat(self, directory: str, file_name: str, name: str) -> int | None:
        for line in (self._text(directory, file_name) or "").splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return self._number(value, f"{file_name}:{name}")
        return None

    def _range(self, part: str, name: str) -> int | None:
        """How many CPUs `3` or `0-7` names."""
        first, _, last = part.partition("-")
        low, high = self._number(first, name), self._number(last or first, name)
        if low is None or high is None:
            return None
        if not 0 <= low <= high < _MOST_CPUS:
            self.unknowns[name] = f"holds {part[:40]!r}, which names no CPUs"
            return None
        return high - low + 1

    def _text(self, directory: str, name: str) -> str | None:
        try:
            return _read(f"{directory}/{name}")
        except FileNotFoundError:
            return None
        except OSError as error:
            self.unknowns[name] = f"cannot read it: {error.strerror}"
            return None

    def _number(self, text: str, name: str) -> int | None:
        try:
            return int(text)
        except ValueError:
            self.unknowns[name] = f"holds {text.strip()[:40]!r}, which is no number"
            return None
