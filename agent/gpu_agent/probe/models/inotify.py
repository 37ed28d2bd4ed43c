"""inotify watches on the folders that a scan has read: the kernel reports that something changed. Linux only.

Single folders are watched, never a whole tree: that would follow links out of it and pay for each folder. A
scan finds out what changed; while nothing is reported, none has to. Where inotify or its watches run out,
scans at their own pace do. `follow` looks paths up, which blocks on a dead disk: call it in the thread that
scans.
"""

import ctypes
import errno
import os
import select
import struct
import sys
import weakref
from collections.abc import Collection, Mapping
from functools import cache
from typing import Self

MOST_FOLDERS = 50_000
"""Of one source. Each watch costs the kernel about a kilobyte."""

_CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x8, 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF, _IGNORED = 0x400, 0x800, 0x8000
_ONLY_FOLDERS, _NO_LINKS = 0x1000000, 0x2000000
_ASKED = (
    _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF  # no MODIFY:
    | _ONLY_FOLDERS | _NO_LINKS  # a download writes thousands of times, and closes once
)  # fmt: skip
_EVENT = struct.Struct("iIII")
_READ_BYTES = 65_536
_NO_MORE_WATCHES = "this user may watch no more folders; raise the sysctl fs.inotify.max_user_watches"


class InotifyWatcher:
    """One inotify instance and the folders that it watches."""

    def __init__(self, descriptor: int) -> None:
        """`descriptor` is a non-blocking inotify instance; it is closed with this object."""
        self.descriptor = descriptor
        self._close = weakref.finalize(self, os.close, descriptor)
        self._watched: set[int] = set()
        """The kernel's numbers of the folders."""
        self._lost: set[int] = set()
        self._drained = 0
        """How often events were taken from the kernel."""
        self._covers = False
        """Whether each change of what is wanted is reported."""
        self._wanted: Collection[str] = ()
        self.limit: str | None = None
        """Why some folders are not watched, in a sentence; `None` when all are."""

    @classmethod
    def open(cls) -> Self | None:
        """Open an instance; `None` where the platform has none, or grants no more."""
        if not sys.platform.startswith("linux"):
            return None
        descriptor = _libc().inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        return None if descriptor < 0 else cls(descriptor)

    def follow(self, paths: Collection[str]) -> bool:
        """Watch the folders among these paths and no others; True where some were not watched before.

        Earlier changes in those are not reported. The same object as the last time costs nothing, unless a
        watch was lost since. `limit` says why some are not watched. Another object is looked up path by path:
        a folder may have come in the place of one of the same name.
        """
        lost, self._lost = self._lost, set()
        if paths is self._wanted and not lost:
            return False
        watches: dict[str, int] = {}
        self.limit, refused = self._add_all(paths, watches)
        before, self._watched = self._watched - lost, set(watches.values())
        for number in before - self._watched:
            _libc().inotify_rm_watch(self.descriptor, number)
        self._wanted = () if self.limit else paths
        self._covers = all(_is_reported(path, fault, watches) for path, fault in refused.items())
        return not self._watched <= before

    def quiet_since(self, paths: Collection[str]) -> int | None:
        """A number that stays the same while nothing changes in these folders, the same object as followed.

        None where that is not known: not each of them can be watched, or there are events to be taken.
        """
        if paths is not self._wanted or not self._covers or self._lost:
            return None
        waiting = select.poll()
        waiting.register(self.descriptor, select.POLLIN)
        drained = self._drained  # before the kernel is asked: what is taken meanwhile counts as a change
        return None if waiting.poll(0) else drained

    def drain(self) -> None:
        """Discard all waiting events: their only meaning is that a scan is due."""
        while True:
            try:
                data = os.read(self.descriptor, _READ_BYTES)
            except OSError:
                return  # there are no more
            self._drained += 1
            self._handle(data)
            if len(data) < _READ_BYTES // 2:
                return

    def close(self) -> None:
        """Close the instance and all watches."""
        self._close()

    def _add_all(self, paths: Collection[str], watches: dict[str, int]) -> tuple[str | None, dict[str, int]]:
        """Add to the watches; returns the limit that was reached, and why paths have none, as errno."""
        refused: dict[str, int] = {}
        for path in paths:
            if len(watches) >= MOST_FOLDERS:
                return f"more than {MOST_FOLDERS} folders hold models", refused
            number = _libc().inotify_add_watch(self.descriptor, os.fsencode(path), _ASKED)
            if number >= 0:
                watches[path] = number
                continue
            refused[path] = ctypes.get_errno()
            if refused[path] == errno.ENOSPC:
                return _NO_MORE_WATCHES, refused
        return None, refused

    def _handle(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            number, mask, _, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size + length
            if mask & (_IGNORED | _MOVE_SELF) and number in self._watched:
                self._lost.add(number)


def _is_reported(path: str, fault: int, watches: Mapping[str, int]) -> bool:
    """Whether a change of a path without a watch is reported by the folder that it is in, or will be in."""
    return fault in (errno.ENOTDIR, errno.ENOENT) and path.rpartition(os.sep)[0] in watches


@cache
def _libc() -> ctypes.CDLL:
    """The C library of this process, whose functions set errno."""
    return ctypes.CDLL(None, use_errno=True)
