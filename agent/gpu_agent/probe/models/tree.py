"""A careful reader of folders that others write: bounded, read-only, never outside its root.

It lists, measures and reads the heads of files below one `Root`, and notes the mark of everything
it looked at. It refuses to follow a link that leaves the root, to cross into another file system,
to open anything but a regular file, and to go deeper or further than its bounds. Everything that
goes wrong is an `OSError` (`Refused` is one), with a sentence that holds no path of this machine.
"""
# A Path per entry of a large cache costs more than the stat behind it:
# ruff: noqa: PTH114, PTH115, PTH116, PTH118, PTH120

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

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


class Refused(OSError):  # noqa: N818  it is an answer to a request
    """What was asked lies outside the bounds of this reader; the text says which."""


@dataclass(frozen=True, slots=True)
class Found:
    """A file below a folder: its name from there (with `/`), size, or what is wrong with it."""

    name: str
    path: str
    size: int = 0
    problem: str | None = None


class Tree:
    """Reads below one root for one unit."""

    def __init__(self, root: Root, *, watch_files: bool = False) -> None:
        """`watch_files`: files may change in place, so each one found is watched too."""
        self._root = root
        self._watch_files = watch_files
        self._left = MAX_ENTRIES
        self._real: dict[str, bool] = {}
        self.watched: dict[str, Mark | None] = {}

    def folder(self, path: str) -> list[os.DirEntry[str]]:
        """The entries of a real folder (not a link to one), by name."""
        self.watched[path] = None  # until it is listed: a failure is looked at again
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            raise Refused("it is a link; add the folder it leads to as a root of its own")
        if status.st_dev != self._root.device:
            raise Refused("it is on another file system; add it as a root of its own")
        with os.scandir(path) as entries:
            listed = sorted(self._counted(entries), key=lambda entry: entry.name)
        self.watched[path] = mark_of(status)
        return listed

    def files(self, folder: str) -> Iterator[Found]:
        """Every file below `folder`, links to files inside the root included; hidden folders are not."""
        waiting = [(folder, "", 0)]
        while waiting:
            path, prefix, depth = waiting.pop()
            for entry in self.folder(path):
                name = prefix + entry.name
                if not entry.is_dir(follow_symlinks=False):
                    yield self._found(entry.path, name)
                elif depth == MAX_DEPTH:
                    raise Refused(f"it has folders more than {MAX_DEPTH} deep")
                elif not entry.name.startswith("."):
                    waiting.append((entry.path, name + "/", depth + 1))

    def found(self, entry: os.DirEntry[str]) -> Found:
        """One file of a listed folder, measured."""
        return self._found(entry.path, entry.name)

    def file(self, path: str, name: str) -> Found | None:
        """One file by its path, measured, which may be a link inside the root; `None` when none is there."""
        try:
            os.lstat(path)
        except FileNotFoundError:
            self.watched[path] = None  # until it comes
            return None
        except OSError as error:
            self.watched[path] = None
            return Found(name, path, problem=reason(error))
        return self._found(path, name)

    def head(self, path: str, limit: int) -> bytes:
        """At most `limit` bytes from the start of a file, which may be a link inside the root."""
        place = self._resolved(path)
        self.watched[place] = None
        descriptor = os.open(place, _READ_FLAGS)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise Refused("it is not a regular file")
            data = os.read(descriptor, limit)
            self.watched[place] = mark_of(status)
            return data
        finally:
            os.close(descriptor)

    def _counted(self, entries: Iterable[os.DirEntry[str]]) -> Iterator[os.DirEntry[str]]:
        for entry in entries:
            self._left -= 1
            if self._left < 0:
                raise Refused(f"it has more than {MAX_ENTRIES} entries")
            yield entry

    def _found(self, path: str, name: str) -> Found:
        try:
            place = self._resolved(path)
            status = os.lstat(place)
        except FileNotFoundError:
            return Found(name, path, problem="its link leads nowhere")
        except OSError as error:
            return Found(name, path, problem=reason(error))
        if self._watch_files:
            self.watched[place] = mark_of(status)
        if not stat.S_ISREG(status.st_mode):
            return Found(name, path, problem="it is not a regular file")
        return Found(name, path, size=status.st_size)

    def _resolved(self, path: str) -> str:
        """`path`, or where it leads if it is a link; both inside the root and its file system."""
        if not stat.S_ISLNK(os.lstat(path).st_mode):
            return path
        place = self._end_of_link(path)
        if not place.startswith(self._root.path.rstrip(os.sep) + os.sep):
            raise Refused("its link leaves the cache; add the folder it leads to as a root of its own")
        if os.lstat(place).st_dev != self._root.device:
            raise Refused("its link leads to another file system; add that as a root of its own")
        return place

    def _end_of_link(self, path: str) -> str:
        """The real path at a link's end; a cache's thousands of links into one folder stay cheap."""
        target = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
        folder = os.path.dirname(target)
        if folder not in self._real:
            self._real[folder] = os.path.realpath(folder) == folder
        if self._real[folder] and not os.path.islink(target):
            return target
        return os.path.realpath(path)


def below(folder: str, *names: str) -> str:
    """The path of what is called `names` below `folder`."""
    return os.sep.join((folder, *names))


def mark_of(status: os.stat_result) -> Mark:
    """What to remember of a file or folder to see that it changed."""
    return status.st_ino, status.st_mtime_ns, status.st_size


def open_root(path: Path) -> Root:
    """A configured root, its own links followed.

    Raises:
        OSError: it is not there, not a folder, or may not be looked at.
    """
    real = os.path.realpath(path)
    status = os.stat(real)
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError("it is not a folder")
    return Root(real, status.st_dev)


def reason(error: OSError) -> str:
    """What went wrong, without the path that Python's own text would tell."""
    return str(error) if isinstance(error, Refused) else (error.strerror or str(error)).lower()


def readable(name: str) -> str:
    """A file's name as text that any JSON reader takes: what is no printable text becomes `\ufffd`."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in name)
