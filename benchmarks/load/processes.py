"""The processes of a load: one registry, and the generators full of nodes that connect to it."""

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from benchmarks.load.log import RegistryLog

REPOSITORY = Path(__file__).resolve().parent.parent.parent
LISTENING_SECONDS = 60.0

_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


class RegistryProcess:
    """A `gpu-agent registry serve` that can be killed and started again at the same address.

    It asks for tokens and keeps its state in SQLite, as it does by default, in a directory of its own.
    """

    def __init__(self, options: Sequence[str], *, state_dir: Path, measured_every_seconds: float) -> None:
        self.log = RegistryLog()
        self._options = options
        self._state_dir = state_dir
        self._measured_every = str(measured_every_seconds)
        self._node_port, self._operator_port = _free_port(), _free_port()
        self._process: subprocess.Popen[str]

    @property
    def asks_for_tokens(self) -> bool:
        """Whether auth is on."""
        return "--auth" not in self._options

    @property
    def pid(self) -> int:
        """The process that runs now."""
        return self._process.pid

    @property
    def node_port(self) -> int:
        """Where nodes connect, on 127.0.0.1."""
        return self._node_port

    @property
    def operator_port(self) -> int:
        """Where operators and schedulers connect, on 127.0.0.1."""
        return self._operator_port

    def start(self) -> None:
        """Start it and wait until it listens."""
        self.log = RegistryLog()
        command = [str(Path(sys.executable).with_name("gpu-agent")), "registry", "serve", *self._options]
        command += ["--node-listen", f"127.0.0.1:{self._node_port}"]
        command += ["--operator-listen", f"127.0.0.1:{self._operator_port}"]
        command += ["--state-dir", str(self._state_dir)]
        environment = {**os.environ, "GPU_REGISTRY_PERFORMANCE_INTERVAL_SECONDS": self._measured_every}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed program has its bytecode
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        assert self._process.stderr is not None  # noqa: S101 - it was asked for
        threading.Thread(target=self.log.read, args=(self._process.stderr,), daemon=True).start()
        with ExitStack() as on_error:
            on_error.callback(self.kill)
            self.log.await_listening(within_seconds=LISTENING_SECONDS)
            on_error.pop_all()

    def join_token(self, uses: int) -> str:
        """Have a token made by which so many nodes may join."""
        operator = (self._state_dir / "operator.token").read_text().strip()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._operator_port}/v1/tokens",
            data=json.dumps({"kind": "join", "ttl_seconds": 86400, "uses": uses}).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {operator}"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - the same
            token: str = json.load(answer)["token"]
        return token

    @property
    def is_running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._process.poll() is None

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self._process.kill()
        self._process.wait()

    @property
    def resident_mb(self) -> float:
        """Memory now."""
        return self._memory_mb("VmRSS")

    @property
    def peak_mb(self) -> float:
        """The most memory it ever had."""
        return self._memory_mb("VmHWM")

    @property
    def cpu_seconds(self) -> float:
        """User and system time so far, its threads included."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS

    @property
    def open_files(self) -> int:
        """How many files it has open now, sockets included."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def _memory_mb(self, name: str) -> float:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) / 1024
        raise SystemExit(f"/proc/{self.pid}/status has no {name}")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()


class Generator:
    """One process of nodes; its last word is stored."""

    def __init__(self, order: dict[str, object]) -> None:
        self.last: dict[str, Any] = {"statuses": {}, "happened": {}}
        self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.load.generator"],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._say(order)
        threading.Thread(target=self._read, daemon=True).start()

    def ask(self, order: dict[str, object]) -> dict[str, float]:
        """Send it a command; returns the nodes that it concerns with their timeouts."""
        self._say(order)
        nodes: dict[str, float] = self._answers.get(timeout=60)["nodes"]
        return nodes

    def end(self) -> None:
        """Kill it: no goodbye from any of its nodes."""
        self._process.kill()
        self._process.wait()

    def _say(self, order: dict[str, object]) -> None:
        assert self._process.stdin is not None  # noqa: S101 - it was asked for
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - it was asked for
        for line in self._process.stdout:
            said = json.loads(line)
            if "nodes" in said:
                self._answers.put(said)
            self.last = said


class Joined(Protocol):
    """What nodes join: a registry, or what stands before several instances of one."""

    @property
    def asks_for_tokens(self) -> bool:
        """Whether nodes need a token."""

    @property
    def node_port(self) -> int:
        """Where nodes connect, on 127.0.0.1."""

    def join_token(self, uses: int) -> str:
        """Have a token made by which so many nodes may join."""


class Generators:
    """All processes of nodes; those still there when the block ends are killed."""

    def __init__(self, registry: Joined, *, gpus: int, startup_seconds: float) -> None:
        self._registry = registry
        self._shared = {"host": "127.0.0.1", "gpus": gpus, "startup_seconds": startup_seconds}
        self._running: list[Generator] = []
        self._started = 0
        self._ended: Counter[str] = Counter()

    def start(self, nodes: int) -> None:
        """Start one more process."""
        self._started += 1
        own = {
            "name": f"{self._started:x}",
            "port": self._registry.node_port,
            "nodes": nodes,
            "token": self._registry.join_token(nodes) if self._registry.asks_for_tokens else None,
        }
        self._running.append(Generator({**self._shared, **own}))

    def await_ready(self, nodes: int, *, within_seconds: float) -> float:
        """Wait until so many nodes received that they are ready; returns how long it took."""
        began = time.monotonic()
        while self._ready() < nodes:
            if time.monotonic() - began > within_seconds:
                raise SystemExit(
                    f"{self._ready()} of {nodes} nodes ready within {within_seconds:.0f} s; they are "
                    f"{dict(self._statuses())} and met {self.happened()}"
                )
            time.sleep(0.1)
        return time.monotonic() - began

    def await_unready(self) -> None:
        """Wait until every process has noticed that the registry is gone."""
        while any(one.last["statuses"].get("ready", 0) for one in self._running):
            time.sleep(0.05)

    def listed(self) -> dict[str, float]:
        """Return all nodes with their timeouts."""
        return {node: seconds for one in self._running for node, seconds in one.ask({"do": "list"}).items()}

    def kill_last(self) -> dict[str, float]:
        """Kill the process that was started last; returns its nodes with their timeouts."""
        doomed = self._running.pop()
        nodes = doomed.ask({"do": "list"})
        self._ended += Counter(doomed.last["happened"])
        doomed.end()
        return nodes

    def silence(self, count: int) -> dict[str, float]:
        """Let nodes of the first process fall silent; returns them with their timeouts."""
        return self._running[0].ask({"do": "silence", "count": count})

    def revive(self) -> None:
        """Bring the silent ones back."""
        self._running[0].ask({"do": "revive"})

    def happened(self) -> str:
        """Say what all nodes met so far."""
        sums = sum((Counter(one.last["happened"]) for one in self._running), self._ended)
        return ", ".join(f"{what} {count}" for what, count in sorted(sums.items()))

    def _statuses(self) -> Counter[str]:
        return sum((Counter(one.last["statuses"]) for one in self._running), Counter())

    def _ready(self) -> int:
        return self._statuses()["ready"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in self._running:
            one.end()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
