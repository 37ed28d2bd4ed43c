"""A bounded, read-only reader of folders that others write; it never leaves its root.

It lists, measures and reads the heads of files below one root, and records a mark of everything that it
looked at. Links out of the root, other file systems, and anything but regular files are refused with a
sentence that holds no path of this machine. Every failure is an `OSError`.
"""

import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from itertools import islice, repeat
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple, TypeVar

from gpu_agent.probe.models.file_cursor import CutShortError, FileCursor, ForeignFileError
from gpu_agent.probe.models.source import Listing, Mark, Root, Unit
from gpu_agent.records import dataclass

# A Path per entry of a large cache costs more than the stat behind it:
# ruff: noqa: PTH114, PTH115, PTH116


MOUNTS = Path("/proc/self/mountinfo")
MAX_DEPTH = 6
"""Folders below a unit's own."""
MAX_ENTRIES = 20_000
"""Entries read in one unit, or listed in one root."""

READ_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)  # a pipe without a writer must not block
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)
_FOLDER_FLAGS = READ_FLAGS | getattr(os, "O_DIRECTORY", 0)
_BY_DESCRIPTOR = os.scandir in os.supports_fd and os.readlink in os.supports_dir_fd
"""Entries of an open folder are read by name alone: twice as fast as by path."""
FOLLOWS_NO_LINK = hasattr(os, "O_NOFOLLOW")
_OUTSIDE = "its link leaves the cache; add the folder it leads to as a root of its own"
_ELSEWHERE = "it is on another file system; add that as a root of its own"

_NAME = attrgetter("name")
_Seen = TypeVar("_Seen")


class OutOfBoundsError(OSError):
    """The request is outside the bounds of this reader; the text says which."""


class FoundFile(NamedTuple):
    """A file below a folder. A tuple, because a cache holds tens of thousands."""

    name: str
    """From the folder, with `/`."""
    path: str
    """Where its bytes are: the end of the link, if it is one."""
    size: int | None = 0
    """Bytes; `None` where it was not measured yet: see `FolderReader.size_of`."""
    problem: str | None = None
    """Why it is not whole."""


_FOUND = partial(tuple.__new__, FoundFile)
"""What a named tuple calls itself, by a detour that costs as much again."""
_UNMEASURED, _WHOLE = repeat(None), repeat(None)


class FolderReader:
    """Reads below one root for one unit."""

    def __init__(self, root: Root, *, watch_files: bool = False) -> None:
        """`watch_files`: files may change in place, so each one found or read is watched too."""
        self._root = root
        self._device = root.device
        self._watch_files = watch_files
        self._left = MAX_ENTRIES
        self._shared = ""
        self._ends: Collection[str] = ()
        self.watched: dict[str, Mark | None] = {}

    def check_folder(self, path: str) -> None:
        """Check that a folder may be read, where its parts are watched instead of itself."""
        try:
            self._refuse_unless_folder(os.lstat(path))
        except OSError:
            self.watched[path] = None
            raise

    def list_folder(self, path: str) -> list[os.DirEntry[str]]:
        """The entries of a real folder (not a link to one), by name."""
        listed = self._entries(path)
        listed.sort(key=_NAME)
        return listed

    def list_shared(self, path: str) -> Collection[str]:
        """The names in a folder to which the links of this unit lead: known once, each is cheap to follow."""
        listed = self._entries(path)
        self._shared = path
        self._ends = {entry.name for entry in listed if entry.is_file(follow_symlinks=False)}
        return self._ends if len(self._ends) == len(listed) else [entry.name for entry in listed]

    def size_of(self, found: FoundFile) -> int:
        """The bytes of a file; one that went away meanwhile has none."""
        if found.size is not None:
            return found.size
        try:
            return os.lstat(found.path).st_size
        except OSError:
            return 0

    def find_files(self, folder: str) -> list[FoundFile]:
        """Every file below `folder`, links to files inside the root included; hidden folders are not."""
        found: list[FoundFile] = []
        waiting = [(folder, "", 0)]
        while waiting:
            path, prefix, depth = waiting.pop()
            opened, status = self._opened(path)
            try:
                folders = self._sort_out(opened, path, prefix=prefix, found=found)
            finally:
                if isinstance(opened, int):
                    os.close(opened)
            self.watched[path] = mark_of(status)
            if folders and depth == MAX_DEPTH:
                raise OutOfBoundsError(f"it has folders more than {MAX_DEPTH} deep")
            waiting += [(path + os.sep + name, f"{prefix}{name}/", depth + 1) for name in folders]
        return found

    def measure(self, entry: os.DirEntry[str]) -> FoundFile:
        """One file of a listed folder, measured."""
        return self.find_file(entry.path, entry.name) or FoundFile(
            entry.name, entry.path, problem="it went away"
        )

    def find_file(self, path: str, name: str) -> FoundFile | None:
        """One file by its path, measured, which may be a link inside the root; `None` when none is there."""
        self.watched[path] = None  # until it comes
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            return FoundFile(name, path, problem=reason(error))
        self.watched[path] = mark_of(status)
        return self._linked(path, name) if stat.S_ISLNK(status.st_mode) else self._judged(name, path, status)

    def read_head(self, path: str, limit: int, *, watch: bool = False) -> bytes:
        """At most `limit` bytes from the start of a file, no link; `watch` one that changes in place."""
        return self._read(path, limit, watch=watch)[0]

    def read_start(self, found: FoundFile, limit: int) -> tuple[bytes, int]:
        """At most `limit` bytes from the start of a file that was found, and its size."""
        if found.size is not None or self._watch_files or not FOLLOWS_NO_LINK:
            return self._read(found.path, limit)
        return read_listed(found.path, limit)

    def _read(self, path: str, limit: int, *, watch: bool = False) -> tuple[bytes, int]:
        descriptor, status = self._opened_file(path, watch=watch)
        size = status.st_size
        try:
            data = os.read(descriptor, min(limit, size))  # a large buffer costs more than the file
        finally:
            os.close(descriptor)
        self._was_read(path, status)
        return data, size

    def look_into(self, path: str, look: Callable[[FileCursor], _Seen]) -> _Seen:
        """What `look` finds in a file, no link, in which it may read where it likes."""
        descriptor, status = self._opened_file(path)
        try:
            seen = look(FileCursor(descriptor, status.st_size))
        except (CutShortError, ForeignFileError):
            self._was_read(path, status)  # it stays so until it changes
            raise
        finally:
            os.close(descriptor)
        self._was_read(path, status)
        return seen

    def _opened_file(self, path: str, *, watch: bool = False) -> tuple[int, os.stat_result]:
        """Descriptor and status of a regular file."""
        if watch or self._watch_files:
            self.watched[path] = None  # until it is read
        if not FOLLOWS_NO_LINK and os.path.islink(path):
            raise OutOfBoundsError("it is a link")
        descriptor = os.open(path, READ_FLAGS)
        try:
            status = os.fstat(descriptor)
            if status.st_dev != self._device:
                self._check(status)
            if not stat.S_ISREG(status.st_mode):
                raise OutOfBoundsError("it is not a regular file")
        except OSError:
            os.close(descriptor)
            raise
        return descriptor, status

    def _was_read(self, path: str, status: os.stat_result) -> None:
        if path in self.watched:
            self.watched[path] = mark_of(status)

    def _entries(self, path: str) -> list[os.DirEntry[str]]:
        self.watched[path] = None  # until it is listed: a failure is looked at again
        status = os.lstat(path)
        if status.st_dev != self._device or not stat.S_ISDIR(status.st_mode):
            self._refuse_unless_folder(status)
        listed = self._listed(path)
        self.watched[path] = mark_of(status)
        return listed

    def _sort_out(self, opened: "int | str", path: str, *, prefix: str, found: list[FoundFile]) -> list[str]:
        """Add the files of an open folder to those found; the names of the folders in it."""
        folders: list[str] = []
        listed = self._listed(opened)
        links = [entry.name for entry in listed if entry.is_symlink()]
        links.sort()
        places = self._places_of(links, opened, path)
        if len(links) == len(listed) and None not in places:  # the thousands of links of a cache
            names = [prefix + name for name in links] if prefix else links
            found += map(_FOUND, zip(names, places, _UNMEASURED, _WHOLE, strict=False))
            return folders
        known = dict(zip(links, places, strict=True))
        listed.sort(key=_NAME)
        for entry in listed:
            name = entry.name
            if name in known:
                place = known[name]
                found.append(
                    FoundFile(prefix + name, place, None)
                    if place
                    else self._linked(path + os.sep + name, prefix + name)
                )
            elif not entry.is_dir(follow_symlinks=False):
                found.append(self._unlinked(path + os.sep + name, prefix + name, entry))
            elif not name.startswith("."):
                folders.append(name)
        return folders

    def _places_of(self, links: Sequence[str], opened: "int | str", folder: str) -> "Sequence[str | None]":
        """The file of the shared folder that each link names; `None` for one that has to be followed."""
        if not self._ends:
            return [None] * len(links)
        try:
            if isinstance(opened, int):
                targets = [os.readlink(name, dir_fd=opened) for name in links]
            else:
                targets = [os.readlink(folder + os.sep + name) for name in links]
        except OSError:
            return [None] * len(links)  # one went away, or is none any more: each is looked at again
        common, _, name = self._shared.rpartition(os.sep)
        if not folder.startswith(common + os.sep):
            return [None] * len(links)
        # Both folders are real, so the text of a link is true.
        way = (os.pardir + os.sep) * folder.count(os.sep, len(common)) + name + os.sep
        skipped, shared, ends = len(way), self._shared + os.sep, self._ends
        return [
            shared + target[skipped:] if target.startswith(way) and target[skipped:] in ends else None
            for target in targets
        ]

    def _linked(self, path: str, name: str) -> FoundFile:
        """What a link leads to, over whatever other links, inside the root."""
        end = os.path.realpath(path)
        if not end.startswith(self._root.path.rstrip(os.sep) + os.sep):
            return FoundFile(name, path, problem=_OUTSIDE)
        try:
            status = os.lstat(end)
        except OSError as error:
            return FoundFile(name, path, problem=_fault(error))
        if stat.S_ISLNK(status.st_mode):
            return FoundFile(name, path, problem="its link leads back to itself")
        return self._judged(name, end, status)

    def _unlinked(self, path: str, name: str, entry: os.DirEntry[str]) -> FoundFile:
        if not self._watch_files and entry.is_file(follow_symlinks=False):
            return FoundFile(name, path, None)
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError as error:
            return FoundFile(name, path, problem=_fault(error))
        return self._judged(name, path, status)

    def _judged(self, name: str, end: str, status: os.stat_result) -> FoundFile:
        if self._watch_files:
            self.watched[end] = mark_of(status)
        if not self._root.holds(status):
            return FoundFile(name, end, problem=_ELSEWHERE)
        if not stat.S_ISREG(status.st_mode):
            return FoundFile(name, end, problem="it is not a regular file")
        return FoundFile(name, end, status.st_size)

    def _opened(self, path: str) -> "tuple[int | str, os.stat_result]":
        """A real folder, open where that is possible, and its status; to be closed."""
        self.watched[path] = None  # until it is listed: a failure is looked at again
        if not _BY_DESCRIPTOR:
            self._refuse_unless_folder(status := os.lstat(path))
            return path, status
        try:
            descriptor = os.open(path, _FOLDER_FLAGS)
        except OSError:
            self._refuse_unless_folder(os.lstat(path))
            raise
        try:
            status = os.fstat(descriptor)
            if status.st_dev != self._device:
                self._check(status)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor, status

    def _listed(self, opened: "int | str") -> list[os.DirEntry[str]]:
        """The entries of a folder, no more than the bound leaves."""
        with os.scandir(opened) as entries:
            listed = list(islice(entries, self._left + 1))
        if len(listed) > self._left:
            raise OutOfBoundsError(f"it has more than {MAX_ENTRIES} entries")
        self._left -= len(listed)
        return listed

    def _refuse_unless_folder(self, status: os.stat_result) -> None:
        if stat.S_ISLNK(status.st_mode):
            raise OutOfBoundsError("it is a link; add the folder it leads to as a root of its own")
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError("it is not a folder")
        self._check(status)

    def _check(self, status: os.stat_result) -> None:
        if not self._root.holds(status):
            raise OutOfBoundsError(_ELSEWHERE)


def read_listed(path: str, limit: int) -> tuple[bytes, int]:
    """At most `limit` bytes from the start of what a listing said is a file, and its size."""
    descriptor = os.open(path, READ_FLAGS)
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)  # `fstat` would take five times as long
        return os.pread(descriptor, min(limit, size), 0), size
    finally:
        os.close(descriptor)


def mark_of(status: os.stat_result) -> Mark:
    """What to remember of a file or folder to see that it changed."""
    return status.st_ino, status.st_mtime_ns, status.st_size


def open_root(path: Path, *, cross_file_systems: bool = False) -> Root:
    """A configured root, its own links resolved; `cross_file_systems` as for `list_units`.

    Raises:
        OSError: it is not there, not a folder, or may not be looked at.
    """
    real = os.path.realpath(path)
    status = os.stat(real)
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError("it is not a folder")
    if cross_file_systems:
        return Root(real, None)
    file_system = file_system_at(real)
    return Root(real, status.st_dev, file_system == _OVERLAY, _is_local(file_system))


def reason(error: OSError) -> str:
    """What went wrong, without the path that Python's own text would show."""
    return error.strerror.lower() if error.strerror else str(error)


def _fault(error: OSError) -> str:
    return "its link leads nowhere" if isinstance(error, FileNotFoundError) else reason(error)


# ---- roots: opened once per scan, and listed one level deep


def list_units(
    roots: Iterable[Path], units_of: Callable[[Root], Iterable[Unit]], *, cross_file_systems: bool = False
) -> Listing:
    """The units of each root; `units_of` may raise what listing a folder raises.

    A root that does not exist has no models and is no problem: caches come and go. A root named twice, also
    through a link, is listed once. `cross_file_systems`: file systems mounted below a root belong to it.
    """
    units: list[Unit] = []
    problems: dict[str, str] = {}
    seen: dict[str, bool] = {}
    for path in roots:
        try:
            root = open_root(path, cross_file_systems=cross_file_systems)
            if root.path not in seen:
                seen[root.path] = root.local
                for unit in units_of(root):
                    units.append(unit)  # noqa: PERF402  those before a fault count
        except FileNotFoundError:
            continue
        except OSError as error:
            problems[str(path)] = reason(error)
    return Listing(tuple(units), problems, tuple(seen), local=bool(seen) and all(seen.values()))


@dataclass(frozen=True, slots=True)
class RootEntries:
    """The entries of a root that are not hidden, by name, up to the bound of a listing."""

    shown: Sequence[os.DirEntry[str]]
    beyond: bool
    """There are more."""

    def check(self) -> None:
        """Raise where there are more; call it once the shown entries are units."""
        if self.beyond:
            raise OutOfBoundsError(f"it has more than {MAX_ENTRIES} entries; the rest was not looked at")


def list_root(root: Root) -> RootEntries:
    """List a root; may raise what listing a folder raises."""
    with os.scandir(root.path) as entries:
        shown = (entry for entry in entries if not entry.name.startswith("."))
        listed = list(islice(shown, MAX_ENTRIES + 1))
    listed.sort(key=attrgetter("name"))
    return RootEntries(listed[:MAX_ENTRIES], len(listed) > MAX_ENTRIES)


# ---- entries of a folder


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, and no link to one."""
    return entry.is_dir(follow_symlinks=False)


def leads_to_folder(entry: os.DirEntry[str]) -> bool:
    """A folder, or a link to one, which the search will refuse with a reason; a link in a loop is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


# ---- names


def join_path(folder: str, *names: str) -> str:
    """The path of what is called `names` below `folder`."""
    return os.sep.join((folder, *names))  # noqa: PTH118  a Path for each would cost more than its file


def readable(name: str) -> str:
    """A file's name as text that any JSON reader takes: what is no printable text becomes `\ufffd`."""
    if name.isprintable():
        return name
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in name)


# ---- file systems

_OVERLAY = "overlay"
"""Its layers may lie on several file systems, as in a container whose image is fetched piece by piece.

A file there has the device number of its layer, not of the overlay.
"""

_LOCAL = {_OVERLAY, "bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "jfs", "ntfs3", "ramfs"}
_LOCAL |= {"reiserfs", "tmpfs", "vfat", "xfs", "zfs"}
_ESCAPED = re.compile(r"\\([0-7]{3})")


def file_system_at(path: str, mounts: Path = MOUNTS) -> str | None:
    """The type of the file system that holds a path without links; `None` where that is not known."""
    try:
        listed = mounts.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    longest, found = -1, None
    for line in listed.splitlines():
        mount, _, file_system = line.partition(" - ")
        place = mount.split(" ")[4:5]
        if not place or not file_system:
            continue
        above = _ESCAPED.sub(lambda match: chr(int(match[1], 8)), place[0]).rstrip(os.sep)
        inside = path == above or path.startswith(above + os.sep)
        if inside and len(above) >= longest:  # of two mounts in one place the later one is seen
            longest, found = len(above), file_system.split(" ")[0]
    return found


def _is_local(file_system: str | None) -> bool:
    """Whether all its changes are made by this machine, so that the kernel can report each."""
    return file_system in _LOCAL
