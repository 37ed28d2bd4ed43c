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
"""Of one place. Each costs the kernel about a kilobyte."""

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
    """One inotify instance and the folders it follows."""

    def __init__(self, descriptor: int) -> None:
        """`descriptor` is an inotify instance of one's own, which does not block; it goes with this."""
        self.descriptor = descriptor
        self._close = weakref.finalize(self, os.close, descriptor)
        self._numbers: dict[str, int] = {}
        self._none: set[str] = set()
        """Places that are no folders, or not there: not asked again while they are wanted."""
        self._lost: set[int] = set()
        self._wanted: Collection[str] = ()
        self.limit: str | None = None
        """Why some folders are not followed, in a sentence; `None` when all are."""

    @classmethod
    def open(cls) -> Self | None:
        """An instance; `None` where the platform has none, or no more of them."""
        if not sys.platform.startswith("linux"):
            return None
        descriptor = _libc().inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        return None if descriptor < 0 else cls(descriptor)

    def follow(self, places: Collection[str]) -> bool:
        """Follow the folders among these places and no others; whether some are followed from now on only.

        Of what changed in those before, there is no notice. The same object as the last time costs nothing,
        unless a folder was lost since. `limit` says why some are not followed.
        """
        lost, self._lost = self._lost, set()
        if places is self._wanted and not lost:
            return False
        self._numbers = {path: number for path, number in self._numbers.items() if number not in lost}
        self._let_go(places)
        before = len(self._numbers)
        new = (path for path in places if path not in self._numbers and path not in self._none)
        self.limit = next(filter(None, map(self._take_on, new)), None)
        self._wanted = () if self.limit else places
        return len(self._numbers) > before

    def drain(self) -> None:
        """Take all notices that wait: what they said is that one must look."""
        while True:
            try:
                data = os.read(self.descriptor, _READ_BYTES)
            except OSError:
                return  # there are no more
            self._note(data)
            if len(data) < _READ_BYTES // 2:
                return

    def close(self) -> None:
        """Let go of all."""
        self._close()

    def _let_go(self, places: Collection[str]) -> None:
        wanted = set(places)
        self._none &= wanted
        for path in [path for path in self._numbers if path not in wanted]:
            _libc().inotify_rm_watch(self.descriptor, self._numbers.pop(path))

    def _take_on(self, path: str) -> str | None:
        if len(self._numbers) >= MOST_FOLDERS:
            return f"more than {MOST_FOLDERS} folders hold models"
        number = _libc().inotify_add_watch(self.descriptor, os.fsencode(path), _ASKED)
        if number >= 0:
            self._numbers[path] = number
            return None
        fault = ctypes.get_errno()
        if fault == errno.ENOSPC:
            return "this user may watch no more folders; raise the sysctl fs.inotify.max_user_watches"
        if fault != errno.ENOENT:  # one that is not there yet is asked for again
            self._none.add(path)
        return None

    def _note(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            number, mask, _, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size + length
            if mask & (_IGNORED | _MOVE_SELF):
                self._lost.add(number)


@cache
def _libc() -> ctypes.CDLL:
    """The C library of this process, whose functions tell what went wrong."""
    return ctypes.CDLL(None, use_errno=True)
