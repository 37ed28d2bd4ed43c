"""Real programs under test: started, followed by their logs, and ended in any case."""

import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from tests.waiting import patience

_LOWEST_PORT, _PORTS = 20_000, 12_000

T = TypeVar("T")

COMMAND: tuple[str, ...] = (str(Path(sys.executable).with_name("gpu-agent")),)


def eventually(look: Callable[[], T | None], *, within_seconds: float, what: str) -> T:
    """Look until there is something to see; fails with `what` when the time is over.

    `within_seconds` is for an idle machine; a busy one gets more (`tests.waiting`).
    """
    began = time.monotonic()
    while True:
        seen = look()
        if seen is not None and seen is not False:
            return seen
        if time.monotonic() - began > patience(within_seconds):
            raise AssertionError(f"not within {patience(within_seconds):.0f} s: {what}")
        threading.Event().wait(0.02)


class Program:
    """A `gpu-agent` process whose JSON log lines are collected while it runs."""

    command = COMMAND

    def __init__(
        self,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        within: Sequence[str] = (),
    ) -> None:
        """`within`: a command that runs another one in its own place, such as `ip netns exec NAME`."""
        self.words = (*within, *self.command, *arguments)
        self.lines: list[dict[str, Any]] = []
        self.other: list[str] = []
        self._process = subprocess.Popen(
            self.words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
            cwd=folder,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            try:
                self.lines.append(json.loads(line))
            except ValueError:
                self.other.append(line)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def events(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line.get("event") == event]

    def await_event(self, event: str, *, within_seconds: float = 10.0, **fields: object) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            for line in self.events(event):
                if all(line.get(name) == value for name, value in fields.items()):
                    return line
            if self._process.poll() is not None:
                raise AssertionError(f"ended with {self._process.returncode}: {self.output()}")
            return None

        return eventually(
            look, within_seconds=within_seconds, what=f"{event} {fields}; said: {self.output()}"
        )

    def output(self) -> str:
        return "\n".join([*(json.dumps(line) for line in self.lines[-15:]), *self.other[-15:]])

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> None:
        """Stop it with SIGTERM and check its exit code."""
        self.send(signal.SIGTERM)
        assert self.wait(patience(10)) == 0, self.output()

    def wait(self, within_seconds: float) -> int:
        code = self._process.wait(patience(within_seconds))
        self._reader.join(patience(5))
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(patience(6))
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(patience(5))
        self._reader.join(patience(5))
        assert self._process.stderr is not None
        self._process.stderr.close()


class Registry(Program):
    """A real `gpu-agent registry serve` on ports of its own."""

    def __init__(
        self,
        *arguments: str,
        auth: str = "off",
        node_port: int = 0,
        operator_port: int = 0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            "registry",
            "serve",
            "--auth",
            auth,
            "--store",
            "memory",
            "--node-listen",
            f"127.0.0.1:{node_port}",
            "--operator-listen",
            f"127.0.0.1:{operator_port}",
            *arguments,
            environment=environment,
        )

    def __enter__(self) -> Self:
        listening = self.await_event("registry_listening", within_seconds=20)
        self.node_url = f"ws://{listening['node_listen']}/ws/node"
        self.api = f"http://{listening['operator_listen']}"
        return self

    @property
    def node_port(self) -> int:
        return int(self.node_url.rsplit(":", 1)[1].split("/")[0])

    @property
    def operator_port(self) -> int:
        return int(self.api.rsplit(":", 1)[1])

    def get(self, path: str) -> dict[str, Any]:
        with urllib.request.urlopen(self.api + path, timeout=patience(5)) as response:  # noqa: S310 - loopback, ours
            document: dict[str, Any] = json.load(response)
            return document

    def answer(self, path: str) -> dict[str, Any] | None:
        """What it answers; None while it refuses, does not answer, or cuts its answer off with its lead."""
        try:
            return self.get(path)
        except (OSError, http.client.HTTPException):
            return None

    def post(self, path: str, body: object, *, within_seconds: float = 10.0) -> dict[str, Any]:
        data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(self.api + path, data, headers)  # noqa: S310 - loopback, ours
        timeout = patience(within_seconds)
        with urllib.request.urlopen(request, timeout=timeout) as response:  # noqa: S310 - as above
            document: dict[str, Any] = json.load(response)
            return document

    def nodes(self) -> list[dict[str, Any]]:
        nodes: list[dict[str, Any]] = self.get("/v1/nodes")["nodes"]
        return nodes

    def await_status(self, node_id: str, status: str, *, within_seconds: float) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            return next((n for n in self.nodes() if n["node_id"] == node_id and n["status"] == status), None)

        return eventually(
            look, within_seconds=within_seconds, what=f"{node_id} {status}; nodes: {self.nodes()}"
        )

    def await_ready(self, count: int, *, within_seconds: float) -> list[dict[str, Any]]:
        def look() -> list[dict[str, Any]] | None:
            nodes = (self.answer("/v1/nodes") or {"nodes": []})["nodes"]
            ready = [node for node in nodes if node["status"] == "ready" and node["connected"]]
            return ready if len(ready) >= count else None

        return eventually(look, within_seconds=within_seconds, what=f"{count} nodes ready")


class Agent(Program):
    """A real `gpu-agent run`."""

    def __init__(
        self,
        registry_url: str,
        state_dir: Path,
        *arguments: str,
        simulate: str | None = "2xL4-24GB",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        simulated: Sequence[str] = () if simulate is None else ("--simulate", simulate)
        super().__init__(
            "run",
            "--registry",
            registry_url,
            "--state-dir",
            str(state_dir),
            *simulated,
            *arguments,
            environment=environment,
        )


def free_port() -> int:
    """A free port, which no program gets that lets the system choose one: those are higher."""
    while True:
        port = _LOWEST_PORT + secrets.randbelow(_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
