"""The control socket's file: created safely, and removed when the agent exits.

A socket that a dead agent left is removed. Everything else is refused with a sentence: a living agent's
socket, another user's, a link, a file, a folder in which others could put a socket of their own.
"""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpu_agent.local.socket_path import LONGEST_ADDRESS_BYTES, address_of
from gpu_agent.node.identity import find_exposure
from gpu_agent.runtime.files import AlreadyLockedError, FileLock

BACKLOG = 64
_MODE = 0o660
_KNOCK_SECONDS = 0.5
_ELSEWHERE = "or name another place with the setting `socket`"


class SocketUnavailableError(Exception):
    """There is no local socket: the machine's fault, a sentence with the next step."""


@contextmanager
def listen(path: Path, *, group: int | None = None) -> Iterator[socket.socket]:
    """Listen at a place for as long as the block runs, open to our user and one group.

    Raises `SocketUnavailableError`. `group` is a number; None leaves the socket to our own.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise SocketUnavailableError("this platform has none; the agent does without")
    lock = _lock(path)
    try:
        _clear(path)
        listener = _bound(path, group)
        made = path.lstat()
        try:
            yield listener
        finally:
            listener.close()
            _leave(path, made)
    finally:
        lock.release()


def find_closed_folder(path: Path, group: int) -> Path | None:
    """Find the first folder on the way to the socket that a group's members may not enter."""
    for folder in reversed(path.absolute().parents):
        found = folder.stat()
        if not found.st_mode & (stat.S_IXGRP if found.st_gid == group else stat.S_IXOTH):
            return folder
    return None


def _lock(path: Path) -> FileLock:
    """Take the lock beside the socket, which tells a living agent from one that is gone."""
    folder = path.parent
    try:
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        exposed = find_exposure(folder)
        if exposed is not None:
            raise SocketUnavailableError(
                f"in {folder} others could put a socket of their own: {exposed}; mend that, {_ELSEWHERE}"
            )
        return FileLock(path.with_name(f".{path.name}.lock"))
    except AlreadyLockedError as error:
        raise SocketUnavailableError(
            f"another agent (process {error.holder or 'unknown'}) listens at {path}; stop it, {_ELSEWHERE}"
        ) from None
    except (OSError, ValueError) as error:
        raise SocketUnavailableError(f"{path} cannot be used ({_reason(error)}); {_ELSEWHERE}") from None


def _clear(path: Path) -> None:
    """Remove what an agent of ours that is gone has left; refuse everything else."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise SocketUnavailableError(f"{path} cannot be looked at ({_reason(error)}); {_ELSEWHERE}") from None
    if not stat.S_ISSOCK(found.st_mode):
        what = "a link" if stat.S_ISLNK(found.st_mode) else "no socket"
        raise SocketUnavailableError(f"{path} is there and is {what}; move it away, {_ELSEWHERE}")
    if found.st_uid != os.geteuid():
        raise SocketUnavailableError(
            f"{path} is a socket of user {found.st_uid}, and this is user {os.geteuid()}; "
            f"remove it, {_ELSEWHERE}"
        )
    if _is_served(path):
        raise SocketUnavailableError(f"another program listens at {path}; stop it, {_ELSEWHERE}")
    try:
        path.unlink()
    except OSError as error:
        raise SocketUnavailableError(f"{path} cannot be removed ({_reason(error)}); {_ELSEWHERE}") from None


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knocking, address_of(path) as address:
        knocking.settimeout(_KNOCK_SECONDS)
        try:
            knocking.connect(address)
        except OSError as error:
            return error.errno not in (errno.ECONNREFUSED, errno.ENOENT)
    return True


def _bound(path: Path, group: int | None) -> socket.socket:
    """Bind, and listen only when the mode is right: until then the kernel turns everybody away."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.ExitStack() as undo:
        undo.callback(listener.close)
        listener.setblocking(False)  # noqa: FBT003 - the socket module's own signature
        try:
            with address_of(path) as address:
                listener.bind(address)
            path.chmod(_MODE)
            if group is not None:
                os.chown(path, -1, group)
            listener.listen(BACKLOG)
        except OSError as error:
            raise SocketUnavailableError(_why_not(path, group, error)) from None
        undo.pop_all()
    return listener


def _leave(path: Path, made: os.stat_result) -> None:
    """Remove our socket, unless it is ours no more."""
    with contextlib.suppress(OSError):
        found = path.lstat()
        if (found.st_dev, found.st_ino) == (made.st_dev, made.st_ino):
            path.unlink()


def _why_not(path: Path, group: int | None, error: OSError) -> str:
    if isinstance(error, PermissionError) and group is not None and path.exists():
        with contextlib.suppress(OSError):
            path.unlink()
        return (
            f"{path} cannot be given to group {group}: the agent's user is no member of it; "
            "make him one (SupplementaryGroups= in its unit), or name another with socket_group"
        )
    if len(os.fsencode(path)) > LONGEST_ADDRESS_BYTES and error.errno is None:
        return f"{path} is too long for a socket; name a shorter place with the setting `socket`"
    return f"{path} cannot be listened at ({_reason(error)}); {_ELSEWHERE}"


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
