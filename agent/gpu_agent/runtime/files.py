"""Files, safe from other users and processes: lock files, links that others made, the user's home.

Loads nothing heavy: `probe` imports it.
"""

import contextlib
import errno
import os
import stat
import sys
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_MODE = 0o600
_LOCKED_AT = 1 << 20
"""On Windows a locked byte cannot be read, so the lock lies far behind the process id."""
_MAX_PID_BYTES = 20
_INODE_COLUMN = 5
"""Which word of a line in `/proc/locks` names the locked file: `major:minor:inode`."""
_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
"""How the platforms report that another process holds a lock."""
_SUPERUSER = 0


class AlreadyLockedError(Exception):
    """Another process holds the lock."""

    def __init__(self, holder: int | None) -> None:
        super().__init__(f"held by process {holder}")
        self.holder = holder
        """Its process id, when it could be read."""


class FileLock:
    """A held lock on a file that names the process; the kernel frees it when the process ends.

    It never waits: a taken lock is an error at once. The file stays after a release: removing it would let
    two processes lock two files.
    """

    def __init__(self, path: Path) -> None:
        """Take the lock. Raises `AlreadyLockedError`, or `OSError` from the disk."""
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
        self._descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0), _MODE)
        try:
            _refuse_pipes(self._descriptor)
            _lock(self._descriptor)
        except OSError as error:
            if error.errno not in _TAKEN:
                self.release()
                raise  # such as a file system that cannot lock
            holder = _holder(self._descriptor)
            self.release()
            raise AlreadyLockedError(holder) from None
        with contextlib.suppress(OSError):  # a full disk: the lock holds, and only its name is missing
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Free it; the end of the process does the same."""
        os.close(self._descriptor)


def lock_holder(path: Path, *, listed: Path = Path("/proc/locks")) -> int | None:
    """Return which process holds a lock, without taking it: None for a free lock.

    Else its process id, as the holder wrote it; 0 where it wrote none that can be read.

    Raises `OSError` where that is unknown: no such file, or a platform that lists no locks.
    """
    inode = str(path.stat().st_ino)
    for line in listed.read_text(encoding="ascii", errors="replace").splitlines():
        words = line.split()
        if (
            len(words) > _INODE_COLUMN
            and words[1] == "FLOCK"
            and words[_INODE_COLUMN].rpartition(":")[2] == inode
        ):
            written = path.read_text(encoding="ascii", errors="replace")[:_MAX_PID_BYTES].strip()
            return int(written) if written.isdigit() else 0
    return None


def foreign_link(path: Path) -> str | None:
    """Name a link on the way to a path that neither we nor root made, with the next step; None without one.

    Who may make a link there chooses where our files go. Raises `OSError` where the way cannot be read.
    """
    if not hasattr(os, "geteuid"):
        return None
    for step in (*reversed(path.absolute().parents), path.absolute()):
        try:
            found = step.lstat()
        except FileNotFoundError:
            return None
        if stat.S_ISLNK(found.st_mode) and found.st_uid not in (os.geteuid(), _SUPERUSER):
            return f"{step} is a link that user {found.st_uid} has made; remove it"
    return None


def user_home() -> Path | None:
    """Return this user's home directory; None for a user without one, as in many containers."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def _refuse_pipes(descriptor: int) -> None:
    """A pipe would swallow the holder's name, and block its reader."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise OSError("it is no regular file")


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        os.lseek(descriptor, _LOCKED_AT, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _holder(descriptor: int) -> int | None:
    os.lseek(descriptor, 0, os.SEEK_SET)
    written = os.read(descriptor, _MAX_PID_BYTES).strip()
    return int(written) if written.isdigit() else None
