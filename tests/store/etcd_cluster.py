"""Members of etcd on loopback, as an unprivileged user, and a proxy that cuts connections to them."""

import json
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from gpu_agent.registry.actions import Change, DocumentKind
from gpu_agent.store.base import Batch, Store
from gpu_agent.store.etcd.client import Access, Endpoint, EtcdClient
from tests.histories.network import LOOPBACK, Host
from tests.programs import free_port
from tests.waiting import patience

NO_ETCD = "the program etcd is missing: apt-get install -y etcd-server"
_NOT_ROOT = 65534
START_SECONDS = 20.0


class Member:
    """One process of etcd; it can be killed and started again on the same data."""

    def __init__(self, command: list[str], endpoint: Endpoint, log: Path, tls: ssl.SSLContext | None) -> None:
        self.endpoint = endpoint
        self._tls = tls
        self._command = command
        self._log = log
        self.process = self._start()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        self.process = self._start()

    @property
    def data(self) -> Path:
        """The directory with all that it stores."""
        return Path(self._command[self._command.index("--data-dir") + 1])

    def status(self) -> dict[str, Any] | None:
        """What it says of itself and of its cluster's leader; None while it does not serve."""
        with closing(self._connect()) as connection:
            try:
                connection.request("POST", "/v3/maintenance/status", b"{}")
                answer = json.loads(connection.getresponse().read())
            except (OSError, HTTPException):
                return None
        return answer if answer.get("leader", "0") != "0" else None

    def _connect(self) -> HTTPConnection:
        if self._tls is None:
            return HTTPConnection(*self.endpoint, timeout=1)
        return HTTPSConnection(*self.endpoint, timeout=1, context=self._tls)

    def problem(self) -> str:
        return self._log.read_text()[-2000:]

    def _start(self) -> "subprocess.Popen[bytes]":
        with self._log.open("ab") as log:
            if os.geteuid() != 0 or self._command[0] == "nsenter":  # which only root may run
                return subprocess.Popen(self._command, stderr=log, stdout=log)
            return subprocess.Popen(
                self._command, stderr=log, stdout=log, user=_NOT_ROOT, group=_NOT_ROOT, extra_groups=[]
            )


class Cluster:
    """Its members, ended by `stop`."""

    def __init__(
        self,
        folder: Path,
        size: int,
        *options: str,
        tls: ssl.SSLContext | None = None,
        hosts: Sequence[Host] | None = None,
    ) -> None:
        hosts = hosts or [LOOPBACK] * size
        etcd = shutil.which("etcd")
        if etcd is None:
            pytest.skip(NO_ETCD)
        names = [f"member-{number}" for number in range(size)]
        peers = {
            name: f"http://{host.address}:{port}"
            for name, host, port in zip(names, hosts, free_ports(size), strict=True)
        }
        self.members: list[Member] = []
        self._tls = tls
        for name, host, port in zip(names, hosts, free_ports(size), strict=True):
            url = f"{'http' if tls is None else 'https'}://{host.address}:{port}"
            command = [
                *host.words,
                *(etcd, "--name", name, "--data-dir", str(folder / name), "--log-level", "error"),
                *("--listen-client-urls", url, "--advertise-client-urls", url),
                *("--listen-peer-urls", peers[name], "--initial-advertise-peer-urls", peers[name]),
                *("--initial-cluster", ",".join(f"{one}={peer}" for one, peer in peers.items())),
                *options,
            ]
            self.members.append(Member(command, (host.address, port), folder / f"{name}.log", tls))

    @property
    def access(self) -> Access:
        tls = self._tls
        return Access(tuple(one.endpoint for one in self.members), tls=None if tls is None else lambda: tls)

    def leader(self) -> Member:
        for one in self.members:
            status = one.status()
            if status is not None and status["header"]["member_id"] == status["leader"]:
                return one
        raise AssertionError("no member leads")

    def wait(self) -> None:
        """Until every member serves."""
        deadline = time.monotonic() + patience(START_SECONDS)
        while any(one.status() is None for one in self.members):
            if time.monotonic() > deadline:
                raise AssertionError("\n".join(one.problem() for one in self.members))
            time.sleep(0.05)

    def stop(self) -> None:
        for one in self.members:
            one.kill()


@contextmanager
def cluster(
    size: int, *options: str, tls: ssl.SSLContext | None = None, hosts: Sequence[Host] | None = None
) -> Iterator[Cluster]:
    """A cluster that serves; `tls` is a client's context for one with certificates among its options."""
    with shared_folder() as folder:
        running = Cluster(folder, size, *options, tls=tls, hosts=hosts)
        try:
            running.wait()
            yield running
        finally:
            running.stop()


@contextmanager
def shared_folder() -> Iterator[Path]:
    """A directory that the members' user can reach."""
    with tempfile.TemporaryDirectory(prefix="etcd-") as name:
        hand_over(Path(name))
        yield Path(name)


def hand_over(folder: Path) -> None:
    """Give a directory and what is in it to the members' user."""
    if os.geteuid() == 0:
        for path in (folder, *folder.iterdir()):
            os.chown(path, _NOT_ROOT, _NOT_ROOT)


def copy_files(folder: Path, to: Path) -> None:
    """Copy a directory with the owner of each file."""
    subprocess.run(["cp", "-a", str(folder), str(to)], check=True)


def free_ports(count: int) -> list[int]:
    """Different ones."""
    found: set[int] = set()
    while len(found) < count:
        found.add(free_port())
    return [*found]


def authentication(prefix: str) -> Iterator[tuple[str, dict[str, object]]]:
    """What sets a user up that may use the keys of one registry."""
    start, end = (b64encode(f"{prefix}{last}".encode()).decode() for last in "/0")
    permission = {"permType": "READWRITE", "key": start, "range_end": end}
    for user in ("root", "registry"):
        yield "user/add", {"name": user, "password": "secret"}
        yield "role/add", {"name": user}
        yield "user/grant", {"user": user, "role": user}
    yield "role/grant", {"name": "registry", "perm": permission}
    yield "enable", {}


# What lies in etcd


def claims(*keys: str, document: object = None) -> Batch:
    return Batch([Change(DocumentKind.CLAIM, key, {"document": document}) for key in keys])


def keys(store: Store) -> list[str]:
    return sorted(change.key for change in store.load().changes)


def below(client: EtcdClient, *names: str) -> list[bytes]:
    key = "/".join(names).encode()
    return [one.key for one in client.read(key + b"/", key + b"0")]


def commit_number(client: EtcdClient, prefix: str) -> int:
    stored_commit = client.get(f"{prefix}/commit".encode())
    return 0 if stored_commit is None else int(json.loads(stored_commit.value)["number"])


_FULL_BODY = b'{"error":"etcdserver: mvcc: database space exceeded","code":8}'
_FULL = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: %d\r\n\r\n%s" % (len(_FULL_BODY), _FULL_BODY)


class Proxy:
    """Stands before one member; cuts chosen transactions before they are forwarded, or before the answer."""

    def __init__(self, member: Endpoint) -> None:
        self._member = member
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint: Endpoint = ("127.0.0.1", int(self._listener.getsockname()[1]))
        self.cuts: dict[int, str] = {}
        """By the number of a transaction from now on, beginning with 0.

        `before` and `after` cut the connection before the request is forwarded, or before its answer is;
        `delay` cuts it and holds the request; `deliver` forwards what is held first; `full` forwards the
        request and answers what etcd does where that has reached its quota.
        """
        self.transactions = 0
        self.silent: bytes | None = None
        """A path whose requests get no answer, and are not forwarded."""
        self.delayed: list[bytes] = []
        """What is held."""
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def plan(self, cuts: dict[int, str]) -> None:
        with self._lock:
            self.cuts, self.transactions = cuts, 0

    def deliver(self) -> list[bytes]:
        """Forward what is held; returns the answers."""
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
                if self.silent is not None and self.silent in request.partition(b"\r\n")[0]:
                    return
                cut = self._cut(request)
                if cut == "delay":
                    self.delayed.append(request)
                if cut == "deliver":
                    self.deliver()
                if cut in {"before", "delay"}:
                    return
                answer = self._forward(request)
                if cut == "after":
                    return
                connection.sendall(_FULL if cut == "full" else answer)

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
