"""An NVML child of an earlier command that was asked to end and is still in the driver.

It is stuck when its SIGTERM stays pending, as `/proc` shows it: no file remembers it. Of a stuck process
nothing is read that could block the reader as well, as its command line could. Linux only.

Each child listens at one of a few addresses of the kernel (abstract sockets), which end with it. The kernel
says which process and which user listens there, so that a search takes as long beside three thousand
processes as beside none. All processes are searched for the children's name only where a child may have no
address: a sandbox allows no socket, an address is another user's or has no room for a search, none is free.

Addresses belong to a network namespace: a child in another one, as in a container with its own network, is
not found. Nor is a child that found all addresses taken, once one is free again.
"""

import os
import sys
import time
from collections.abc import Iterator

if sys.platform == "linux":
    import _socket  # `socket`, which wraps it, costs a command more than the whole search

CHILD_NAME = "gpu-agent-nvml"
"""The process name of an NVML child; the kernel stores 15 bytes."""
CHECK_NAME = "gpu-agent-check"
"""That of a process that checks a GPU."""

ADDRESSES = 8
"""More children of one user at once are found by a search of all processes."""
WAITING = 64
"""Searches that an address can answer until its child registers again, at its next reading."""
_INT_BYTES = 4
_CREDENTIALS_BYTES = 3 * _INT_BYTES
"""Of `SO_PEERCRED`: process id, user and group."""

_ENDING_SECONDS = 0.5
"""A child that is only slow to end has ended after so long, on a busy machine too."""
_POLL_SECONDS = 0.01
"""Polled, because nothing can wait for the end of a process that is no child of ours."""
_ENDED = frozenset({"Z", "X"})
_PENDING = ("SigPnd", "ShdPnd")
_SIGTERM_BIT = 1 << 14
"""SIGTERM in the masks of pending signals; importing `signal` for its name would cost the child."""


class Registration:
    """This process as an NVML child that others can find, until it ends."""

    def __init__(self, name: str = CHILD_NAME) -> None:
        """Take the name, and a free address."""
        self._name = name
        self._socket: _socket.socket | None = None
        self.renew()
        _set_process_name(name)

    def renew(self) -> None:
        """Drop the searches that wait at the address: only so many fit."""
        if sys.platform != "linux":
            return
        if self._socket is not None:
            self._socket.close()
        self._socket = _listen(self._name)


def _set_process_name(name: str) -> None:
    """Give this process its name; without `/proc` it has none."""
    try:
        with open("/proc/self/comm", "w", encoding="ascii") as file:  # noqa: PTH123 - pathlib costs the child
            file.write(name)
    except OSError:
        return


def find_stuck_child(name: str = CHILD_NAME) -> int | None:
    """Return the process id of a stuck child of this user's; None where there is none."""
    if sys.platform != "linux":
        return None
    for pid in _children(name):
        if _is_stuck(pid):
            return int(pid)
    return None


if sys.platform == "linux":

    def _listen(name: str) -> _socket.socket | None:
        """Listen at the first free address; None where there is none, or a sandbox allows no socket."""
        for number in range(ADDRESSES):
            try:
                listening = _open_socket()
            except OSError:
                return None
            try:
                listening.bind(_address(name, number))
                listening.listen(WAITING)
            except OSError:
                listening.close()
            else:
                return listening
        return None

    def _children(name: str) -> Iterator[str]:
        """Yield the children of this user's: those at addresses, or all by name where some may have none."""
        found = []
        for number in range(ADDRESSES):
            try:
                listener = _listener_at(_address(name, number))
            except OSError:
                return (yield from _pids_named(name))
            if listener is not None:
                found.append(listener)
        free = _listen(name)
        if free is None:
            return (yield from _pids_named(name))
        free.close()
        yield from (pid for pid in found if _read(pid, "comm").strip() == name)

    def _listener_at(address: bytes) -> str | None:
        """Return the process that listens there; None where none does.

        Raises:
            OSError: it is another user's, or has no room for a search.
        """
        search = _open_socket()
        try:
            search.connect(address)
            given = search.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _CREDENTIALS_BYTES)
        except ConnectionRefusedError:
            return None
        finally:
            search.close()
        pid, user = (int.from_bytes(given[at : at + _INT_BYTES], sys.byteorder) for at in (0, _INT_BYTES))
        if user != os.geteuid():
            raise PermissionError
        return str(pid)

    def _open_socket() -> _socket.socket:
        kind = _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC
        return _socket.socket(_socket.AF_UNIX, kind)

    def _address(name: str, number: int) -> bytes:
        return f"\0{name}/{os.geteuid()}/{number}".encode()


def _pids_named(name: str) -> list[str]:
    try:
        pids = [entry for entry in os.listdir("/proc") if entry.isdigit()]  # noqa: PTH208 - before pathlib
    except OSError:
        return []
    return [pid for pid in pids if _read(pid, "comm").strip() == name and _is_ours(pid)]


def _is_ours(pid: str) -> bool:
    """Any user may give a program this name: one of another user's must not block our reading."""
    try:
        return os.stat(f"/proc/{pid}").st_uid == os.geteuid()  # noqa: PTH116 - before pathlib
    except OSError:
        return False


def _is_stuck(pid: str) -> bool:
    """Whether its SIGTERM stays pending for longer than a slow child takes to end."""
    deadline = time.monotonic() + _ENDING_SECONDS
    while _has_pending_sigterm(pid):
        if time.monotonic() >= deadline:
            return True
        time.sleep(_POLL_SECONDS)
    return False


def _has_pending_sigterm(pid: str) -> bool:
    status = dict(line.partition(":")[::2] for line in _read(pid, "status").splitlines())
    if status.get("State", "Z").strip()[:1] in _ENDED:
        return False
    return any(int(status.get(mask, "0"), 16) & _SIGTERM_BIT for mask in _PENDING)


def _read(pid: str, name: str) -> str:
    try:
        with open(f"/proc/{pid}/{name}", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - as above
            return file.read()
    except OSError:
        return ""
