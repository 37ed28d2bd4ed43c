"""Access to the control socket: its file, and which users may read, announce jobs, drain and resume.

The kernel identifies a caller. Root, the agent's own user and the members of the socket's group may read and
announce jobs. Root, the agent's own user and the members of `socket_operators` may drain and resume.

A socket that a dead agent left behind is removed. Everything else is refused with a sentence: a living
agent's socket, another user's, a link, a file, a folder in which others could put a socket of their own.
"""

import contextlib
import errno
import os
import socket
import stat
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpu_agent.local.socket_path import MAX_ADDRESS_BYTES, SOCKET_NAME, address_of
from gpu_agent.node.identity import find_exposure
from gpu_agent.node.settings import AgentSettings
from gpu_agent.records import dataclass
from gpu_agent.runtime.files import AlreadyLockedError, FileLock
from gpu_agent.runtime.logs import Logger

if sys.platform != "win32":
    import grp

BACKLOG = 64
_MODE = 0o660
_CONNECT_SECONDS = 0.5
_ELSEWHERE = "or name another place with the setting `socket`"
_ROOT = 0
_LINUX_PEERGROUPS = 59
_MAX_GROUP_BYTES = 1024
"""The most that Python asks the kernel for: 256 groups."""
_DARWIN_LOCAL, _DARWIN_PEERCRED, _DARWIN_PEERPID = 0, 1, 2
_DARWIN_CREDENTIALS = "=IIh2x16I"
_LOG = Logger("node.control")


class SocketUnavailableError(Exception):
    """There is no control socket: the machine's fault, a sentence with the next step."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A process that has connected."""

    uid: int
    groups: frozenset[int]
    pid: int | None
    """None where the agent cannot see the process, as from another container."""


@dataclass(frozen=True, slots=True)
class AccessPolicy:
    """Which users may use the control socket."""

    uid: int
    """The agent's own user."""
    group: int
    """The socket's own group."""
    operators: int | None = None
    """The group whose members may also drain and resume."""

    def may_read(self, peer: Peer) -> bool:
        """Whether the peer may ask for the state, and announce its own jobs."""
        return self.may_operate(peer) or self.group in peer.groups

    def may_operate(self, peer: Peer) -> bool:
        """Whether the peer may drain and resume, and end the jobs of others."""
        return peer.uid in (_ROOT, self.uid) or (self.operators is not None and self.operators in peer.groups)


@dataclass(frozen=True, slots=True)
class ControlSocket:
    """The listening socket, and who may use it."""

    listener: socket.socket
    policy: AccessPolicy


@contextmanager
def open_control_socket(settings: AgentSettings, state_dir: Path) -> Iterator[ControlSocket | None]:
    """Listen while the block runs; None where no socket can be opened, which the log explains."""
    path = settings.socket or state_dir / SOCKET_NAME
    with contextlib.ExitStack() as stack:
        try:
            group = group_id(settings.socket_group, "socket_group")
            operators = group_id(settings.socket_operators, "socket_operators")
            listener = stack.enter_context(listen(path, group=group))
        except SocketUnavailableError as error:
            _LOG.warning("local_socket_unavailable", problem=str(error))
            yield None
            return
        shared = path.lstat().st_gid if group is None else group
        _LOG.info("local_socket_listening", path=str(path), group=shared)
        if group is not None and (closed := find_closed_folder(path, group)) is not None:
            problem = f"members of group {group} may not enter {closed}: name another place with `socket`"
            _LOG.warning("local_socket_unreachable", path=str(path), group=group, problem=problem)
        yield ControlSocket(listener, AccessPolicy(os.geteuid(), shared, operators))


@contextmanager
def listen(path: Path, *, group: int | None = None) -> Iterator[socket.socket]:
    """Listen at a path while the block runs, open to the agent's user and one group.

    Raises `SocketUnavailableError`. `group` is a number; None means the agent's own group.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise SocketUnavailableError("this platform has none; the agent does without")
    lock = _lock(path)
    try:
        _clear(path)
        listener = _bind(path, group)
        made = path.lstat()
        try:
            yield listener
        finally:
            listener.close()
            _remove(path, made)
    finally:
        lock.release()


def peer_credentials(connection: socket.socket) -> Peer | None:
    """Ask the kernel who has connected; None where it does not say, and then the caller is refused."""
    try:
        if sys.platform == "darwin":
            return _on_darwin(connection)
        if hasattr(socket, "SO_PEERCRED"):
            return _on_linux(connection)
    except (OSError, struct.error):
        return None
    return None


def find_closed_folder(path: Path, group: int) -> Path | None:
    """Find the first folder on the way to the socket that a group's members may not enter."""
    for folder in reversed(path.absolute().parents):
        found = folder.stat()
        if not found.st_mode & (stat.S_IXGRP if found.st_gid == group else stat.S_IXOTH):
            return folder
    return None


def group_id(group: str | None, setting: str) -> int | None:
    """Look a group up by name or number; blocks. Raises `SocketUnavailableError` where there is none."""
    if group is None or group.isdecimal():
        return None if group is None else int(group)
    if sys.platform == "win32":
        return None
    try:
        return grp.getgrnam(group).gr_gid
    except (KeyError, OSError):
        raise SocketUnavailableError(
            f"there is no group {group!r} on this machine; make it, or name another one with {setting}"
        ) from None


def _lock(path: Path) -> FileLock:
    """Take the lock beside the socket: a living agent holds it."""
    folder = path.parent
    try:
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        exposed = find_exposure(folder)
        if exposed is not None:
            raise SocketUnavailableError(
                f"in {folder} others could put a socket of their own: {exposed}; fix that, {_ELSEWHERE}"
            )
        return FileLock(path.with_name(f".{path.name}.lock"))
    except AlreadyLockedError as error:
        raise SocketUnavailableError(
            f"another agent (process {error.holder or 'unknown'}) listens at {path}; stop it, {_ELSEWHERE}"
        ) from None
    except (OSError, ValueError) as error:
        raise SocketUnavailableError(f"{path} cannot be used ({_reason(error)}); {_ELSEWHERE}") from None


def _clear(path: Path) -> None:
    """Remove the socket that a dead agent of this user left; refuse everything else."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise SocketUnavailableError(f"{path} cannot be read ({_reason(error)}); {_ELSEWHERE}") from None
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
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, address_of(path) as address:
        probe.settimeout(_CONNECT_SECONDS)
        try:
            probe.connect(address)
        except OSError as error:
            return error.errno not in (errno.ECONNREFUSED, errno.ENOENT)
    return True


def _bind(path: Path, group: int | None) -> socket.socket:
    """Bind, and listen only when the mode is right: until then the kernel refuses every connection."""
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


def _remove(path: Path, made: os.stat_result) -> None:
    """Remove the socket, unless another file has taken its place."""
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
            "add that user to it (SupplementaryGroups= in its unit), or name another with socket_group"
        )
    if len(os.fsencode(path)) > MAX_ADDRESS_BYTES and error.errno is None:
        return f"{path} is too long for a socket; name a shorter place with the setting `socket`"
    return f"{path} cannot be listened at ({_reason(error)}); {_ELSEWHERE}"


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _on_linux(connection: socket.socket) -> Peer:
    answer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, gid = struct.unpack("3i", answer)
    return Peer(uid, frozenset({gid}) | _more_groups(connection), pid or None)


def _more_groups(connection: socket.socket) -> frozenset[int]:
    try:
        answer = connection.getsockopt(socket.SOL_SOCKET, _LINUX_PEERGROUPS, _MAX_GROUP_BYTES)
    except OSError:  # a kernel before 4.13, or more groups than there is room for
        return frozenset()
    return frozenset(struct.unpack(f"{len(answer) // 4}I", answer))


def _on_darwin(connection: socket.socket) -> Peer:
    answer = connection.getsockopt(_DARWIN_LOCAL, _DARWIN_PEERCRED, struct.calcsize(_DARWIN_CREDENTIALS))
    _version, uid, count, *groups = struct.unpack(_DARWIN_CREDENTIALS, answer)
    pid = connection.getsockopt(_DARWIN_LOCAL, _DARWIN_PEERPID)
    return Peer(uid, frozenset(groups[:count]), pid or None)
