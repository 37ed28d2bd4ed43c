"""A careful reader of folders that others write: bounded, read-only, never outside its root.

It lists, measures and reads the heads of files below one `Root`, and notes the mark of everything
it looked at. It refuses to follow a link that leaves the root, to cross into another file system,
to open anything but a regular file, and to go deeper or further than its bounds. Everything that
goes wrong is an `OSError` (`Refused` is one), with a sentence that holds no path of this machine.
"""
# A Path per entry of a large cache costs more than the stat behind it:
# ruff: noqa: PTH114, PTH115, PTH116

import os
import stat
from collections.abc import Collection
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from gpu_agent.probe.models.layers import is_layered
from gpu_agent.probe.models.source import Mark, Root

MAX_DEPTH = 6
"""Folders below a unit's own."""
MAX_ENTRIES = 20_000
"""Entries read in one unit, or listed in one root."""

_READ_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)  # a pipe that nobody writes must not hold us
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)
_FOLDER_FLAGS = _READ_FLAGS | getattr(os, "O_DIRECTORY", 0)
_BY_DESCRIPTOR = os.scandir in os.supports_fd and os.readlink in os.supports_dir_fd
"""What lies in an open folder is asked by its name alone: twice as fast as by its path."""
_OPENS_NO_LINK = hasattr(os, "O_NOFOLLOW")
_OUTSIDE = "its link leaves the cache; add the folder it leads to as a root of its own"
_ELSEWHERE = "it is on another file system; add that as a root of its own"

_NAME = attrgetter("name")
_NEW = tuple.__new__  # what a named tuple calls itself, by a detour that costs as much again


class Refused(OSError):  # noqa: N818  it is an answer to a request
    """What was asked lies outside the bounds of this reader; the text says which."""


class Found(NamedTuple):
    """A file below a folder. A tuple, because a cache holds tens of thousands."""

    name: str
    """From the folder, with `/`."""
    path: str
    """Where its bytes are: the end of the link, if it is one."""
    size: int | None = 0
    """Bytes; `None` where nobody asked yet: see `Tree.size`."""
    problem: str | None = None
    """Why it is not whole."""


class Tree:
    """Reads below one root for one unit."""

    def __init__(self, root: Root, *, watch_files: bool = False) -> None:
        """`watch_files`: files may change in place, so each one found or read is watched too."""
        self._root = root
        self._watch_files = watch_files
        self._inside = root.path.rstrip(os.sep) + os.sep
        self._left = MAX_ENTRIES
        self._shared = ""
        self._ends: Collection[str] = ()
        self.watched: dict[str, Mark | None] = {}

    def enter(self, path: str) -> None:
        """Make sure that a folder may be looked into, for one whose parts are watched in its place."""
        self.watched[path] = None
        self._check_folder(os.lstat(path))
        del self.watched[path]

    def folder(self, path: str) -> list[os.DirEntry[str]]:
        """The entries of a real folder (not a link to one), by name."""
        listed = self._entries(path)
        listed.sort(key=_NAME)
        return listed

    def shared(self, path: str) -> Collection[str]:
        """The names in a folder to which the links of this unit lead: known once, each is cheap to follow."""
        listed = self._entries(path)
        self._shared = path
        self._ends = {entry.name for entry in listed if entry.is_file(follow_symlinks=False)}
        return self._ends if len(self._ends) == len(listed) else [entry.name for entry in listed]

    def size(self, found: Found) -> int:
        """The bytes of a file; one that went away meanwhile has none."""
        if found.size is not None:
            return found.size
        try:
            return os.lstat(found.path).st_size
        except OSError:
            return 0

    def files(self, folder: str) -> list[Found]:
        """Every file below `folder`, links to files inside the root included; hidden folders are not."""
        found: list[Found] = []
        waiting = [(folder, "", 0)]
        while waiting:
            path, prefix, depth = waiting.pop()
            opened, status = self._opened(path)
            try:
                folders = self._sort_out(opened, path, prefix=prefix, found=found)
            finally:
                _close(opened)
            self.watched[path] = mark_of(status)
            if folders and depth == MAX_DEPTH:
                raise Refused(f"it has folders more than {MAX_DEPTH} deep")
            waiting += [(path + os.sep + name, f"{prefix}{name}/", depth + 1) for name in folders]
        return found

    def found(self, entry: os.DirEntry[str]) -> Found:
        """One file of a listed folder, measured."""
        return self.file(entry.path, entry.name) or Found(entry.name, entry.path, problem="it went away")

    def file(self, path: str, name: str) -> Found | None:
        """One file by its path, measured, which may be a link inside the root; `None` when none is there."""
        self.watched[path] = None  # until it comes
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            return Found(name, path, problem=reason(error))
        self.watched[path] = mark_of(status)
        return self._linked(path, name) if stat.S_ISLNK(status.st_mode) else self._judged(name, path, status)

    def head(self, path: str, limit: int, *, watch: bool = False) -> bytes:
        """At most `limit` bytes from the start of a file, no link; `watch` one that changes in place."""
        if watch or self._watch_files:
            self.watched[path] = None
        if not _OPENS_NO_LINK and os.path.islink(path):
            raise Refused("it is a link")
        descriptor = os.open(path, _READ_FLAGS)
        try:
            status = os.fstat(descriptor)
            self._check(status)
            if not stat.S_ISREG(status.st_mode):
                raise Refused("it is not a regular file")
            data = os.read(descriptor, min(limit, status.st_size))  # a large buffer costs more than the file
            if path in self.watched:
                self.watched[path] = mark_of(status)
            return data
        finally:
            os.close(descriptor)

    def _entries(self, path: str) -> list[os.DirEntry[str]]:
        self.watched[path] = None  # until it is listed: a failure is looked at again
        status = os.lstat(path)
        self._check_folder(status)
        listed = self._listed(path)
        self.watched[path] = mark_of(status)
        return listed

    def _sort_out(self, opened: "int | str", path: str, *, prefix: str, found: list[Found]) -> list[str]:
        """Add the files of an open folder to those found; the names of the folders in it."""
        folders = []
        way = self._way_from(path)
        shared, ends, beyond = self._shared + os.sep, self._ends, len(way)
        listed = self._listed(opened)
        listed.sort(key=_NAME)
        for entry in listed:
            name = entry.name
            if entry.is_symlink():
                try:
                    target = _link(opened, path, name)
                except OSError:
                    target = ""  # it went away, or is none any more: looked at again below
                end = target[beyond:]
                if end in ends and target.startswith(way):  # the thousands of links of a cache
                    found.append(_NEW(Found, (prefix + name, shared + end, None, None)))
                else:
                    found.append(self._linked(path + os.sep + name, prefix + name))
            elif not entry.is_dir(follow_symlinks=False):
                found.append(self._unlinked(path + os.sep + name, prefix + name, entry))
            elif not name.startswith("."):
                folders.append(name)
        return folders

    def _way_from(self, path: str) -> str:
        """How a link in `path` names what is in the shared folder: both are real, so the text is true."""
        common = self._shared.rpartition(os.sep)[0] + os.sep
        if not self._shared or not path.startswith(common):
            return os.sep  # no link of a cache begins so
        climb = (os.pardir + os.sep) * (path.count(os.sep, len(common)) + 1)
        return climb + self._shared.removeprefix(common) + os.sep

    def _linked(self, path: str, name: str) -> Found:
        """What a link leads to, over whatever other links, inside the root."""
        place = os.path.realpath(path)
        if not place.startswith(self._inside):
            return Found(name, path, problem=_OUTSIDE)
        try:
            return self._judged(name, place, os.lstat(place))
        except OSError as error:
            return Found(name, path, problem=_fault(error))

    def _unlinked(self, path: str, name: str, entry: os.DirEntry[str]) -> Found:
        if not self._watch_files and entry.is_file(follow_symlinks=False):
            return Found(name, path, None)
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError as error:
            return Found(name, path, problem=_fault(error))
        return self._judged(name, path, status)

    def _judged(self, name: str, place: str, status: os.stat_result) -> Found:
        if self._watch_files:
            self.watched[place] = mark_of(status)
        if not self._root.holds(status):
            return Found(name, place, problem=_ELSEWHERE)
        if not stat.S_ISREG(status.st_mode):
            return Found(name, place, problem="it is not a regular file")
        return Found(name, place, status.st_size)

    def _opened(self, path: str) -> "tuple[int | str, os.stat_result]":
        """A real folder, open where that is possible, and its status; `_close` it."""
        self.watched[path] = None  # until it is listed: a failure is looked at again
        if not _BY_DESCRIPTOR:
            self._check_folder(status := os.lstat(path))
            return path, status
        try:
            descriptor = os.open(path, _FOLDER_FLAGS)
        except OSError:
            self._check_folder(os.lstat(path))
            raise
        try:
            self._check(status := os.fstat(descriptor))
        except OSError:
            os.close(descriptor)
            raise
        return descriptor, status

    def _listed(self, opened: "int | str") -> list[os.DirEntry[str]]:
        """The entries of a folder, no more than the bound leaves."""
        with os.scandir(opened) as entries:
            listed = list(islice(entries, self._left + 1))
        if len(listed) > self._left:
            raise Refused(f"it has more than {MAX_ENTRIES} entries")
        self._left -= len(listed)
        return listed

    def _check_folder(self, status: os.stat_result) -> None:
        if stat.S_ISLNK(status.st_mode):
            raise Refused("it is a link; add the folder it leads to as a root of its own")
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError("it is not a folder")
        self._check(status)

    def _check(self, status: os.stat_result) -> None:
        if not self._root.holds(status):
            raise Refused(_ELSEWHERE)


def mark_of(status: os.stat_result) -> Mark:
    """What to remember of a file or folder to see that it changed."""
    return status.st_ino, status.st_mtime_ns, status.st_size


def open_root(path: Path, *, cross_file_systems: bool = False) -> Root:
    """A configured root, its own links followed; its owner says whether other file systems below it count.

    Raises:
        OSError: it is not there, not a folder, or may not be looked at.
    """
    real = os.path.realpath(path)
    status = os.stat(real)
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError("it is not a folder")
    layered = not cross_file_systems and is_layered(status.st_dev)
    return Root(real, None if cross_file_systems else status.st_dev, layered)


def reason(error: OSError) -> str:
    """What went wrong, without the path that Python's own text would tell."""
    return str(error) if isinstance(error, Refused) else (error.strerror or str(error)).lower()


def _link(opened: "int | str", folder: str, name: str) -> str:
    """What a link in a folder says."""
    if isinstance(opened, int):
        return os.readlink(name, dir_fd=opened)
    return os.readlink(folder + os.sep + name)


def _fault(error: OSError) -> str:
    return "its link leads nowhere" if isinstance(error, FileNotFoundError) else reason(error)


def _close(opened: "int | str") -> None:
    if isinstance(opened, int):
        os.close(opened)
