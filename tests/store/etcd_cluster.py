"""Members of etcd on loopback, as an unprivileged user, and a proxy that cuts connections to them."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import BinaryIO

import pytest

from gpu_agent.store.etcd.client import Access, Endpoint
from tests.waiting import patience

NO_ETCD = "the program etcd is missing: apt-get install -y etcd-server"
_NOT_ROOT = 65534
START_SECONDS = 20.0


class Member:
    """One process of etcd; it can be killed and started again on the same data."""

    def __init__(self, command: list[str], endpoint: Endpoint, log: Path) -> None:
        self.endpoint = endpoint
        self._command = command
        self._log = log
        self.process = self._start()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        self.process = self._start()

    def suspended(self, *, stopped: bool) -> None:
        self.process.send_signal(signal.SIGSTOP if stopped else signal.SIGCONT)

    def answers(self) -> bool:
        """Whether it serves and its cluster has a leader."""
        with closing(HTTPConnection(*self.endpoint, timeout=1)) as connection:
            try:
                connection.request("GET", "/health")
                return b'"true"' in connection.getresponse().read()
            except (OSError, HTTPException):
                return False

    def problem(self) -> str:
        return self._log.read_text()[-2000:]

    def _start(self) -> "subprocess.Popen[bytes]":
        with self._log.open("ab") as log:
            if os.geteuid() != 0:
                return subprocess.Popen(self._command, stderr=log, stdout=log)
            return subprocess.Popen(
                self._command, stderr=log, stdout=log, user=_NOT_ROOT, group=_NOT_ROOT, extra_groups=[]
            )


class Cluster:
    """Its members, ended by `stop`."""

    def __init__(self, folder: Path, size: int, *options: str, scheme: str = "http") -> None:
        etcd = shutil.which("etcd")
        if etcd is None:
            pytest.skip(NO_ETCD)
        names = [f"member-{number}" for number in range(size)]
        peers = {name: f"http://127.0.0.1:{port}" for name, port in zip(names, free_ports(size), strict=True)}
        self.members: list[Member] = []
        for name, port in zip(names, free_ports(size), strict=True):
            url = f"{scheme}://127.0.0.1:{port}"
            command = [
                *(etcd, "--name", name, "--data-dir", str(folder / name), "--log-level", "error"),
                *("--listen-client-urls", url, "--advertise-client-urls", url),
                *("--listen-peer-urls", peers[name], "--initial-advertise-peer-urls", peers[name]),
                *("--initial-cluster", ",".join(f"{one}={peer}" for one, peer in peers.items())),
                *options,
            ]
            self.members.append(Member(command, ("127.0.0.1", port), folder / f"{name}.log"))

    @property
    def access(self) -> Access:
        return Access(tuple(one.endpoint for one in self.members))

    def wait(self) -> None:
        """Until every member serves."""
        deadline = time.monotonic() + patience(START_SECONDS)
        while not all(one.answers() for one in self.members):
            if time.monotonic() > deadline:
                raise AssertionError("\n".join(one.problem() for one in self.members))
            time.sleep(0.05)

    def stop(self) -> None:
        for one in self.members:
            one.kill()


@contextmanager
def cluster(size: int, *options: str, scheme: str = "http") -> Iterator[Cluster]:
    """A cluster that serves, in a directory that its user can reach."""
    with tempfile.TemporaryDirectory(prefix="etcd-") as name:
        if os.geteuid() == 0:
            os.chown(name, _NOT_ROOT, _NOT_ROOT)
        running = Cluster(Path(name), size, *options, scheme=scheme)
        try:
            if scheme == "http":
                running.wait()
            yield running
        finally:
            running.stop()


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Proxy:
    """Stands before one member; cuts chosen transactions before they are forwarded, or before the answer."""

    def __init__(self, member: Endpoint) -> None:
        self._member = member
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint: Endpoint = ("127.0.0.1", int(self._listener.getsockname()[1]))
        self.cuts: dict[int, str] = {}
        """By the number of a transaction from now on, beginning with 0: `before`, `after` or `delay`."""
        self.transactions = 0
        self.delayed: list[bytes] = []
        """Requests that were taken in, whose connections were cut, and which `deliver` forwards."""
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def plan(self, cuts: dict[int, str]) -> None:
        with self._lock:
            self.cuts, self.transactions = cuts, 0

    def deliver(self) -> list[bytes]:
        """Forward what was delayed; returns the answers."""
        requests, self.delayed = self.delayed, []
        return [self._forward(one) for one in requests]

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines, suppress(OSError):
            while request := _read_message(lines):
                cut = self._cut(request)
                if cut == "delay":
                    self.delayed.append(request)
                if cut in {"before", "delay"}:
                    return
                answer = self._forward(request)
                if cut == "after":
                    return
                connection.sendall(answer)

    def _cut(self, request: bytes) -> str | None:
        if b"/kv/txn" not in request.partition(b"\r\n")[0]:
            return None
        with self._lock:
            self.transactions += 1
            return self.cuts.get(self.transactions - 1)

    def _forward(self, request: bytes) -> bytes:
        with socket.create_connection(self._member, timeout=10) as onward, onward.makefile("rb") as lines:
            onward.sendall(request)
            return _read_message(lines)


def _read_message(lines: BinaryIO) -> bytes:
    """Read one HTTP message with a length or in chunks; empty at the end of the connection."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = lines.readline()
        if not line:
            return b""
        head += line
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
    if b"content-length" in fields:
        return head + lines.read(int(fields[b"content-length"]))
    body = b""
    while not body.endswith(b"0\r\n\r\n"):
        body += lines.readline()
    return head + body
