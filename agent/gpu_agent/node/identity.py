"""The agent's identity: the node id and node token that a registry issued, stored in the state directory.

A file is written whole or not at all, readable by its owner alone, and never through a link. A file that
cannot be parsed is moved aside and never overwritten, and the agent starts without an identity. The newest
few such files stay, so that an endless conflict does not fill the disk. One agent at a time locks a state
directory. Disk access from the event loop has a deadline. A disk that fails ends no session; an identity that
it does not take is written once it does.
"""

import asyncio
import contextlib
import errno
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from gpu_agent.runtime.files import AlreadyLockedError, FileLock, foreign_link
from gpu_agent.runtime.logs import Logger
from gpu_agent.runtime.state_dir import user_state_dir
from gpu_agent.runtime.tasks import in_thread
from gpu_agent.session.types import ArchiveIdentity, StoreIdentity

FILE = "identity.json"
LOCK_FILE = "agent.lock"
_FORMAT = 1
_MAX_BYTES = 64 * 1024
_NODE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_MODE = 0o600
_FOLDER_MODE = 0o700
_OTHERS_MAY_WRITE = 0o022
MAX_COPIES = 5
"""Files of each kind that are moved aside and stay for the operator."""
DISK_SECONDS = 1.5
"""How long the event loop waits for the state directory."""
CHECK_SECONDS = 10.0
"""The interval between two checks of the state directory's disk."""
_ROOM_BYTES = 16 * 1024
"""Less room than this is no room: an identity, and its old copy beside it."""

_T = TypeVar("_T")
_LOG = Logger("node")


class IdentityError(Exception):
    """The state directory cannot be used: the machine's fault, a sentence with the next step."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a registry issued to this node; None before."""

    node_id: str | None = None
    node_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class LoadedIdentity:
    """What was found in the state directory."""

    identity: Identity
    moved_to: Path | None = None
    """The new path of a file that could not be parsed."""
    reason: str = ""


def default_state_dir() -> Path:
    """Return the platform's directory for this user's program state."""
    return user_state_dir("gpu-agent")


def read_identity(folder: Path) -> Identity:
    """Read a state directory's identity without locking it or changing anything.

    Raises `FileNotFoundError` where there is none, `OSError` from the disk, `ValueError` for a corrupt file.
    """
    return _parse(_read(folder / FILE, fix_mode=False))


def find_exposure(folder: Path) -> str | None:
    """Say why another user could replace the identity there; None where no other user can."""
    if not hasattr(os, "geteuid"):
        return None
    found = folder.stat()
    if found.st_uid not in (os.geteuid(), 0):
        return f"it belongs to user {found.st_uid}"
    if found.st_mode & _OTHERS_MAY_WRITE:
        return f"other users may write there (mode {stat.S_IMODE(found.st_mode):04o})"
    return None


def find_disk_fault(folder: Path) -> str | None:
    """Say why an existing state directory takes no new identity, with the next step; None where it does.

    Nothing is written, so a quota is not seen. Raises `OSError` where the disk gives no answer.
    """
    if not hasattr(os, "statvfs"):
        return None
    disk = os.statvfs(folder)
    if disk.f_flag & os.ST_RDONLY:
        return f"{folder} is on a disk that is mounted read-only: mount it for writing"
    if disk.f_bavail * disk.f_frsize < _ROOM_BYTES:
        return f"the disk of {folder} is full: make room there"
    if disk.f_files and not disk.f_favail:
        return f"the disk of {folder} has no room for another file: remove files there"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"the agent's user may not write to {folder}: give it to that user, mode 0700"
    return None


class IdentityFile:
    """The identity in one state directory. All methods raise `IdentityError` when the disk fails."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / FILE
        self.problem: str | None = None
        """Why the disk lacks what the registry issued last, or would not take more; with the next step."""
        self._identity = Identity()
        self._unwritten: Identity | None = None
        """What the registry issued last, where the disk lacks it."""

    @property
    def exposed(self) -> str | None:
        """Say why another user could replace the identity; None where no other user can."""
        return find_exposure(self.folder)

    @property
    def identity(self) -> Identity:
        """The identity as last loaded or saved."""
        return self._identity

    def load(self) -> LoadedIdentity:
        """Read it; a corrupt file is moved aside, and an empty identity replaces it."""
        try:
            text = _read(self.path)
        except FileNotFoundError:
            return LoadedIdentity(self._identity)
        except OSError as error:
            raise IdentityError(f"{self.path} cannot be read {_reason(error)}") from error
        try:
            self._identity = _parse(text)
        except ValueError as error:
            return LoadedIdentity(self._identity, self._move_aside(), str(error))
        return LoadedIdentity(self._identity)

    def save(self, node_id: str, node_token: str | None) -> None:
        """Store what a registry issued. Without a new token the old one stays, unless the id differs.

        An identity that cannot be written still serves this process, because its join token may be consumed.
        The exception is a new token for the same id: the old token is valid until the new one is used, and a
        restart would find only the old one.
        """
        known = self._identity
        same = known.node_id in (None, node_id)
        token = node_token or (known.node_token if same else None)
        changed = Identity(node_id, token)
        if changed != known or self._unwritten is not None or not self.path.exists():
            self._unwritten = changed
            if known.node_token is None or not same:
                self._identity = changed
            self._write(changed, self.path)
            self._unwritten = None
        self._identity = changed

    def save_again(self) -> None:
        """Store what the registry issued last, where the disk lacks it."""
        if self._unwritten is not None and self._unwritten.node_id is not None:
            self.save(self._unwritten.node_id, self._unwritten.node_token)

    def prove_writable(self) -> None:
        """Write what an identity needs, and remove it: what a registry issues next can be stored."""
        beside = self.folder / f".{FILE}.{secrets.token_hex(4)}"
        try:
            _write_through(beside, " " * _ROOM_BYTES)
            beside.unlink()
        except OSError as error:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise IdentityError(f"{self.path} cannot be written {_reason(error)}") from error

    def archive_id(self) -> Path | None:
        """Remove the id, not the token; returns the path of a copy for the operator."""
        if self._identity.node_id is None:
            return None
        self._unwritten = None
        copy = self._next_copy("conflict")
        self._write(self._identity, copy)
        self._remove_oldest_copies("conflict")
        self._identity = replace(self._identity, node_id=None)
        self._write(self._identity, self.path)
        return copy

    def _write(self, identity: Identity, path: Path) -> None:
        """Write beside, flush to the disk, then rename: a crash leaves the old file or the new one."""
        document = {"format": _FORMAT, "node_id": identity.node_id, "node_token": identity.node_token}
        beside = self.folder / f".{FILE}.{secrets.token_hex(4)}"
        try:
            _write_through(beside, json.dumps(document, indent=2) + "\n")
            beside.replace(path)
            _flush_folder(self.folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise IdentityError(f"{path} cannot be written {_reason(error)}") from error

    def _move_aside(self) -> Path:
        aside = self._next_copy("corrupt")
        try:
            self.path.rename(aside)
        except OSError as error:
            raise IdentityError(f"{self.path} cannot be moved aside {_reason(error)}") from error
        self._remove_oldest_copies("corrupt")
        return aside

    def _next_copy(self, reason: str) -> Path:
        return self.folder / f"{FILE}.{reason}-{max(self._copies(reason), default=0) + 1}"

    def _remove_oldest_copies(self, reason: str) -> None:
        copies = self._copies(reason)
        for number in sorted(copies)[:-MAX_COPIES]:
            with contextlib.suppress(OSError):  # the next call tries again
                copies[number].unlink()

    def _copies(self, reason: str) -> dict[int, Path]:
        """Find the copies of one kind by their number: the highest is the newest."""
        numbered = re.compile(rf"{re.escape(FILE)}\.{reason}-([1-9][0-9]{{0,8}})")
        try:
            found = [(numbered.fullmatch(path.name), path) for path in self.folder.iterdir()]
        except OSError as error:
            raise IdentityError(f"{self.folder} cannot be listed {_reason(error)}") from error
        return {int(name[1]): path for name, path in found if name}


@contextmanager
def lock_state_dir(folder: Path) -> Iterator[IdentityFile]:
    """Lock a state directory while the block runs; create it where it is missing.

    Raises `IdentityError`: another agent has locked it (its process id is named), or the disk fails.
    """
    try:
        planted = foreign_link(folder)
        if planted is not None:
            raise IdentityError(
                f"the state directory {folder} cannot be used: {planted}, or name another directory with "
                "--state-dir"
            )
        folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK_FILE)
    except AlreadyLockedError as error:
        raise IdentityError(
            f"another agent (process {error.holder or 'unknown'}) uses the state directory {folder}; "
            "stop it, or give this one a directory of its own with --state-dir"
        ) from error
    except OSError as error:
        place = f"{folder}'s lock {LOCK_FILE}" if error.errno in (errno.ELOOP, None) else str(folder)
        raise IdentityError(f"the state directory {place} cannot be used {_reason(error)}") from error
    try:
        yield IdentityFile(folder)
    finally:
        lock.release()


def load_identity(identity: IdentityFile) -> None:
    """Load the identity, and log what is wrong with its directory or its file."""
    if (exposed := identity.exposed) is not None:
        fix = f"run `chmod 700 {identity.folder}`, as its owner"
        _LOG.warning("state_directory_exposed", state_dir=str(identity.folder), reason=exposed, fix=fix)
    loaded = identity.load()
    if loaded.moved_to is not None:
        _LOG.warning("identity_corrupt", moved_to=str(loaded.moved_to), reason=loaded.reason)


async def store_identity(identity: IdentityFile, action: StoreIdentity | ArchiveIdentity) -> None:
    """Store or archive the identity. If the disk fails the session goes on; `watch_disk` tries again."""
    if isinstance(action, StoreIdentity):
        node_id, node_token = action.node_id, action.node_token
        await _on_disk(identity, lambda: identity.save(node_id, node_token))
        return
    copy = await _on_disk(identity, identity.archive_id)
    _LOG.warning("identity_archived", node_id=action.node_id, copy=None if copy is None else str(copy))


async def can_store(identity: IdentityFile) -> bool:
    """Whether the disk takes what a registry may issue now; where it does not, `problem` says why."""
    await _on_disk(identity, identity.prove_writable)
    return identity.problem is None


async def watch_disk(identity: IdentityFile) -> None:
    """Look at the state directory's disk until cancelled, and store what it lacks once it takes it."""

    def look() -> None:
        try:
            fault = find_disk_fault(identity.folder)
        except OSError as error:
            fault = f"{identity.folder} cannot be read ({error.strerror or error})"
        if fault is not None:
            raise IdentityError(fault)
        if identity.problem is not None:  # a quota shows only when something is written
            identity.prove_writable()
        identity.save_again()

    while True:
        await _on_disk(identity, look)
        await asyncio.sleep(CHECK_SECONDS)


async def _on_disk(identity: IdentityFile, work: Callable[[], _T]) -> _T | None:
    """Run disk work in a thread with a deadline; when it fails, `problem` and one log line say so."""
    before, result = identity.problem, None
    try:
        result = await in_thread("identity", work, deadline_seconds=DISK_SECONDS)
        identity.problem = None
    except IdentityError as error:
        identity.problem = str(error)
    except TimeoutError:
        identity.problem = f"the disk of {identity.folder} gives no answer within {DISK_SECONDS:g} s"
    if identity.problem is None and before is not None:
        _LOG.info("disk_recovered", what="identity")
    elif identity.problem is not None and identity.problem != before:
        _LOG.error("disk_failed", what="identity", problem=identity.problem)
    return result


async def with_disk_deadline(name: str, work: Callable[[], _T]) -> _T | None:
    """Run disk work in a thread with a deadline; None, and a log line, when it fails."""
    try:
        return await in_thread(name, work, deadline_seconds=DISK_SECONDS)
    except IdentityError as error:
        _LOG.error("disk_failed", what=name, problem=str(error))
    except TimeoutError:
        _LOG.error("disk_failed", what=name, problem=f"no answer within {DISK_SECONDS:g} s")
    return None


_FIXES: dict[int | None, str] = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room within that user's quota",
    errno.EROFS: "mount that disk for writing",
    errno.EISDIR: "move that directory away",
    errno.ELOOP: "replace that link by a file of its own",
    None: "move it away",
}


def _reason(error: OSError) -> str:
    """The disk's error, and the next step."""
    fix = _FIXES.get(error.errno, "check its owner and permissions")
    return f"({error.strerror or error}); {fix}, or name another directory with --state-dir"


def _read(path: Path, *, fix_mode: bool = True) -> str:
    """Read a regular file, never through a link; bytes that are no text are replaced."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError("it is no regular file")
        if fix_mode and found.st_mode & ~_MODE & 0o777 and _is_ours_alone(found):
            os.fchmod(descriptor, _MODE)  # restored from a backup, say: it holds a credential
        return file.read(_MAX_BYTES).decode("utf-8", "replace")


def _is_ours_alone(found: os.stat_result) -> bool:
    """A file with a second name may be another user's, planted so that we change its mode."""
    return hasattr(os, "fchmod") and found.st_uid == os.geteuid() and found.st_nlink == 1


def _parse(text: str) -> Identity:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON: {error}") from None
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise ValueError(f"it is not of format {_FORMAT}")
    node_id, token = document.get("node_id"), document.get("node_token")
    if node_id is not None and not (isinstance(node_id, str) and _NODE_ID.fullmatch(node_id)):
        raise ValueError("its node_id is none")
    if token is not None and not (isinstance(token, str) and token.isascii() and token.isprintable()):
        raise ValueError("its node_token is none")
    return Identity(node_id, token)


def _write_through(path: Path, text: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(path, flags, _MODE), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Make the rename itself durable, where folders can be opened (not on Windows)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
