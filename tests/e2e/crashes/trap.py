"""Traps set under a running registry: it ends by SIGKILL at the n-th point of a kind."""

import mmap
import struct
from enum import IntEnum
from pathlib import Path

from tests.c_compiler import shared_library

SOURCE = Path(__file__).with_name("crash_points.c")
_LAYOUT = struct.Struct("ii")


class Point(IntEnum):
    """Where the process ends; the numbers are those of crash_points.c."""

    ANY_INSTANT = 0
    """Killed from outside, whatever it does at that moment: starting up is no exception."""
    BEFORE_WRITE = 1
    TORN_WRITE = 2
    BEFORE_SYNC = 3
    AFTER_SYNC = 4
    CHECKPOINT = 5


class Trap:
    """The library to load under a process, and the control through which it is armed meanwhile."""

    def __init__(self, folder: Path) -> None:
        self._library = folder / "crash_points.so"
        self._control = folder / "control"
        shared_library([SOURCE], self._library, "-ldl")
        self._control.write_bytes(_LAYOUT.pack(0, 0))
        with self._control.open("r+b") as file:
            self._mapped = mmap.mmap(file.fileno(), _LAYOUT.size)

    @property
    def environment(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self._library), "CRASH_CONTROL": str(self._control)}

    def arm(self, point: Point, *, after: int) -> None:
        """Let the process end at the `after`-th such point from now on; 0 sets no trap."""
        self._mapped[:] = _LAYOUT.pack(int(point), 0 if point is Point.ANY_INSTANT else after)

    def disarm(self) -> None:
        self._mapped[:] = _LAYOUT.pack(0, 0)
