"""Access to the control socket: which users may read, announce jobs, drain and resume.

The kernel identifies a caller. Root, the agent's own user and the members of the socket's group may read and
announce jobs. Root, the agent's own user and the members of `socket_operators` may drain and resume.
"""

import os
import socket
import struct
import sys
from dataclasses import dataclass

_ROOT = 0
_LINUX_PEERGROUPS = 59
_MOST_BYTES = 1024
"""The most that Python asks the kernel for: 256 groups."""
_DARWIN_LOCAL, _DARWIN_PEERCRED, _DARWIN_PEERPID = 0, 1, 2
_DARWIN_CREDENTIALS = "=IIh2x16I"


@dataclass(frozen=True, slots=True)
class Peer:
    """A process that has connected."""

    uid: int
    groups: frozenset[int]
    pid: int | None
    """None where its process cannot be seen from here, as from another container."""


@dataclass(frozen=True, slots=True)
class AccessPolicy:
    """Whose agent this is, and whom he lets in."""

    uid: int
    group: int
    """The socket's own."""
    operators: int | None = None
    """The group whose members may also drain and resume."""

    def may_read(self, peer: Peer) -> bool:
        """Whether he may ask, and announce jobs of his."""
        return self.may_operate(peer) or self.group in peer.groups

    def may_operate(self, peer: Peer) -> bool:
        """Whether he may drain and resume, and speak of the jobs of others."""
        return peer.uid in (_ROOT, self.uid) or (self.operators is not None and self.operators in peer.groups)


def peer_credentials(connection: socket.socket) -> Peer | None:
    """Ask the kernel; None where it does not say, and then nobody is let in."""
    try:
        if sys.platform == "darwin":
            return _on_darwin(connection)
        if hasattr(socket, "SO_PEERCRED"):
            return _on_linux(connection)
    except (OSError, struct.error):
        return None
    return None


def own_uid() -> int:
    """The user who runs this process."""
    return os.geteuid()


def _on_linux(connection: socket.socket) -> Peer:
    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, gid = struct.unpack("3i", told)
    return Peer(uid, frozenset({gid}) | _more_groups(connection), pid or None)


def _more_groups(connection: socket.socket) -> frozenset[int]:
    try:
        told = connection.getsockopt(socket.SOL_SOCKET, _LINUX_PEERGROUPS, _MOST_BYTES)
    except OSError:  # a kernel before 4.13, or more groups than there is room for
        return frozenset()
    return frozenset(struct.unpack(f"{len(told) // 4}I", told))


def _on_darwin(connection: socket.socket) -> Peer:
    told = connection.getsockopt(_DARWIN_LOCAL, _DARWIN_PEERCRED, struct.calcsize(_DARWIN_CREDENTIALS))
    _version, uid, count, *groups = struct.unpack(_DARWIN_CREDENTIALS, told)
    pid = connection.getsockopt(_DARWIN_LOCAL, _DARWIN_PEERPID)
    return Peer(uid, frozenset(groups[:count]), pid or None)
