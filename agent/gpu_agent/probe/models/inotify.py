"""inotify watches on the folders that a scan has read: the kernel reports that something changed. Linux only.

Single folders are watched, never a whole tree: that would follow links out of it and pay for each folder. A
scan finds out what changed. Where inotify or its watches run out, scans at their own pace do. `follow` looks
paths up, which blocks on a dead disk: call it in the thread that scans.
"""

import ctypes
import errno
import os
import struct
import sys
import weakref
from collections.abc import Collection
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


class InotifyWatcher:
    """One inotify instance and the folders that it watches."""

    def __init__(self, descriptor: int) -> None:
        """`descriptor` is a non-blocking inotify instance; it is closed with this object."""
        self.descriptor = descriptor
        self._close = weakref.finalize(self, os.close, descriptor)
        self._watches: dict[str, int] = {}
        self._no_folders: set[str] = set()
        """Paths that are no folders: not tried again while they are wanted."""
        self._lost: set[int] = set()
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
        watch was lost since. `limit` says why some are not watched.
        """
        lost, self._lost = self._lost, set()
        if paths is self._wanted and not lost:
            return False
        self._watches = {path: number for path, number in self._watches.items() if number not in lost}
        self._remove_all_but(paths)
        before = len(self._watches)
        new = (path for path in paths if path not in self._watches and path not in self._no_folders)
        self.limit = next(filter(None, map(self._add, new)), None)
        self._wanted = () if self.limit else paths
        return len(self._watches) > before

    def drain(self) -> None:
        """Discard all waiting events: their only meaning is that a scan is due."""
        while True:
            try:
                data = os.read(self.descriptor, _READ_BYTES)
            except OSError:
                return  # there are no more
            self._handle(data)
            if len(data) < _READ_BYTES // 2:
                return

    def close(self) -> None:
        """Close the instance and all watches."""
        self._close()

    def _remove_all_but(self, paths: Collection[str]) -> None:
        wanted = set(paths)
        self._no_folders &= wanted
        for path in [path for path in self._watches if path not in wanted]:
            _libc().inotify_rm_watch(self.descriptor, self._watches.pop(path))

    def _add(self, path: str) -> str | None:
        if len(self._watches) >= MOST_FOLDERS:
            return f"more than {MOST_FOLDERS} folders hold models"
        number = _libc().inotify_add_watch(self.descriptor, os.fsencode(path), _ASKED)
        if number >= 0:
            self._watches[path] = number
            return None
        fault = ctypes.get_errno()
        if fault == errno.ENOSPC:
            return "this user may watch no more folders; raise the sysctl fs.inotify.max_user_watches"
        if fault != errno.ENOENT:  # a folder that does not exist yet is tried again
            self._no_folders.add(path)
        return None

    def _handle(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            number, mask, _, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size + length
            if mask & (_IGNORED | _MOVE_SELF):
                self._lost.add(number)


@cache
def _libc() -> ctypes.CDLL:
    """The C library of this process, whose functions set errno."""
    return ctypes.CDLL(None, use_errno=True)
