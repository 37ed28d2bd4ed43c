"""Requests to the agent of this machine, one at a time, each answered within its time, and their errors.

`docs/reference/local.md` describes the protocol. It refuses to read an answer that has no end.
"""

import contextlib
import json
import socket
import struct
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gpu_agent.local.socket_path import VARIABLE, address_of, socket_path

PROTOCOL = 1
MAX_REQUEST_BYTES = 16 * 1024
MAX_ANSWER_BYTES = 8 * 1024 * 1024
PATIENCE_SECONDS = 5.0
"""How long a request may take that needs no probe and no session."""

_NOT_NOW = ("busy", "overdue")


class LocalError(Exception):
    """Base of the errors between a program and the agent on its machine: a sentence with the next step.

    The hierarchy: `LocalError`
    ├ `NoAgentError` (no agent answers: the machine's fault)
    └ `RefusedError` (the agent refuses: the caller's fault; `code` is for programs).
    """


class NoAgentError(LocalError):
    """No agent answers."""


class RefusedError(LocalError):
    """The agent refuses a request."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def not_now(self) -> bool:
        """Whether the agent is only busy: the same request may succeed in a moment."""
        return self.code in _NOT_NOW


def ask(
    what: str, *, path: Path | None = None, patience_seconds: float = PATIENCE_SECONDS, **fields: object
) -> dict[str, Any]:
    """Send the agent one request and return its answer; raises `LocalError`.

    Without `path` the socket is where an agent of this machine listens.
    """
    with Connection(path, patience_seconds=patience_seconds) as connection:
        return connection.ask(what, **fields)


class Connection:
    """One connection to the agent. Jobs that it announced end with it."""

    def __init__(self, path: Path | None = None, *, patience_seconds: float = PATIENCE_SECONDS) -> None:
        """Connect; raises `NoAgentError`."""
        self.path = socket_path() if path is None else path
        self._socket = _connected(self.path, patience_seconds)
        self._unread = b""

    def ask(self, what: str, **fields: object) -> dict[str, Any]:
        """Send one request and return its answer; raises `LocalError`. A field that is None is left out."""
        given = {name: value for name, value in fields.items() if value is not None}
        request = json.dumps({"protocol": PROTOCOL, "ask": what, **given}).encode() + b"\n"
        if len(request) > MAX_REQUEST_BYTES:
            raise RefusedError(f"a question has at most {MAX_REQUEST_BYTES} bytes", code="too_long")
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._socket.sendall(request)  # the agent refuses some callers before it reads
            line = self._line()
        except TimeoutError:
            raise NoAgentError(f"the agent at {self.path} does not answer; look at its log") from None
        except OSError as error:
            raise NoAgentError(f"the agent at {self.path} went away: {error.strerror or error}") from None
        return _read(line, self.path)

    def wait_for_end(self) -> None:
        """Return once the agent, or another thread by `close`, has ended the connection."""
        try:
            self._socket.settimeout(None)
            while self._socket.recv(MAX_REQUEST_BYTES):
                pass
        except OSError:
            return

    def abandon(self) -> None:
        """Close this process's copy, after a fork: the parent's connection stays open."""
        self._socket.close()

    def close(self) -> None:
        """End the connection, also while another thread waits on it."""
        with contextlib.suppress(OSError):  # the agent closed it first
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _line(self) -> bytes:
        while b"\n" not in self._unread:
            if len(self._unread) > MAX_ANSWER_BYTES:
                raise OSError("its answer has no end")
            more = self._socket.recv(64 * 1024)
            if not more:
                raise OSError("it closed the connection")
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        return line


def _connected(path: Path, patience_seconds: float) -> socket.socket:
    if not hasattr(socket, "AF_UNIX"):
        raise NoAgentError("this platform has no local sockets: ask the registry about this node instead")
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with address_of(path) as address:
            _connect(opened, address, patience_seconds)
    except ValueError:  # a NUL character
        opened.close()
        raise NoAgentError(f"{str(path)!r} is no path of a socket; write it without NUL") from None
    except OSError as error:
        opened.close()
        raise NoAgentError(_why_not(path, error)) from None
    return opened


def _connect(opened: socket.socket, address: str, patience_seconds: float) -> None:
    """Connect, waiting in the kernel's queue where many connect at once.

    With a timeout of Python's own, the kernel would refuse the connection instead of queueing it.
    """
    if sys.platform == "linux":
        whole, part = divmod(patience_seconds, 1.0)
        waits = struct.pack("ll", int(whole), max(1, round(part * 1e6)))
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, waits)
        opened.connect(address)
        opened.settimeout(patience_seconds)
    else:
        opened.settimeout(patience_seconds)
        opened.connect(address)


def _why_not(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError | ConnectionRefusedError | NotADirectoryError):
        return (
            f"no agent answers at {path}: start it (`systemctl start gpu-agent`, where it is a service), or "
            f"say where its socket is (--socket, {VARIABLE})"
        )
    if isinstance(error, PermissionError):
        return (
            f"this user may not talk to the agent at {path}: its group, its own user and root may; "
            "join it (`gpasswd -a USER gpu-agent` where it is a service), or see the setting socket_group"
        )
    if isinstance(error, TimeoutError | BlockingIOError):
        return f"the agent at {path} does not answer; look at its log"
    return f"{path} cannot be reached ({error.strerror or error}); say where its socket is with {VARIABLE}"


def _read(line: bytes, path: Path) -> dict[str, Any]:
    try:
        reply = json.loads(line)
    except (ValueError, RecursionError):
        reply = None
    if not isinstance(reply, dict) or (reply.get("ok") and not isinstance(reply.get("answer"), dict)):
        raise NoAgentError(f"what answers at {path} is no agent of this kind")
    if not reply.get("ok"):
        message = str(reply.get("message", "it gave no reason"))
        raise RefusedError(message, code=str(reply.get("code", "refused")))
    return dict(reply["answer"])
