"""A cgroup of its own for each machine under test: none sees another's processes, none outlives its run.

Two machines in one cgroup would share their services' cgroups by name, so that one's systemd ends what the
other's started. The process that made a cgroup locks it until it ends; an unlocked one is a leftover.
"""

import fcntl
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NAMED = "gpu-test-"
_END_SECONDS = 20.0
_LOOK_EVERY_SECONDS = 0.05


@contextmanager
def cgroup() -> Iterator[Path]:
    """An empty cgroup; what is in it at the end is killed, and the cgroup goes."""
    place, lock = _made()
    try:
        yield place
    finally:
        _end(place)
        os.close(lock)


def end_leftovers() -> None:
    """Kill what a run left behind that was killed itself."""
    for place in sorted(_mounted().rglob(f"{_NAMED}*")):
        with suppress(FileNotFoundError):
            lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _end(place)
            except BlockingIOError:
                continue
            finally:
                os.close(lock)


def can_make() -> bool:
    """True where this process may have cgroups of the unified hierarchy, and end what is in them."""
    try:
        with cgroup() as place:
            return (place / "cgroup.kill").exists()
    except OSError:
        return False


def _made() -> tuple[Path, int]:
    """Make one and lock it; another run may take it for a leftover before it is locked."""
    own = next(line for line in _lines("/proc/self/cgroup") if line.startswith("0::"))
    below = _mounted() / own.removeprefix("0::/")
    while True:
        place = below / f"{_NAMED}{secrets.token_hex(4)}"
        place.mkdir()
        with suppress(FileNotFoundError):
            lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if place.exists():
                return place, lock
            os.close(lock)


def _mounted() -> Path:
    """Find the unified hierarchy. Raises `FileNotFoundError` where there is none."""
    for place in _mounts("cgroup2"):
        return place
    raise FileNotFoundError("no cgroup2 is mounted")


def _mounts(kind: str) -> list[Path]:
    mounts = (line.split() for line in _lines("/proc/self/mounts"))
    return [Path(mount[1]) for mount in mounts if mount[2] == kind]


def _lines(file: str) -> list[str]:
    return Path(file).read_text(encoding="utf-8").splitlines()


def _end(place: Path) -> None:
    (place / "cgroup.kill").write_text("1", encoding="ascii")
    deadline = time.monotonic() + _END_SECONDS
    while "populated 1" in _lines(f"{place}/cgroup.events") and time.monotonic() < deadline:
        threading.Event().wait(_LOOK_EVERY_SECONDS)
    # systemd-nspawn makes its cgroups again in the old hierarchies, where there are any.
    for mount in (_mounted(), *_mounts("cgroup")):
        for folder, _, _ in os.walk(mount / place.relative_to(_mounted()), topdown=False):
            Path(folder).rmdir()
