"""What a registration costs the registry: a real one, real sockets, from the handshake to the ack.

    python benchmarks/registrations.py [--nodes 5000] [--rounds 3] [--alone 1000] [--check]

Starts `gpu-agent registry serve` on one core and connects from another. Each node opens a connection,
completes the handshake, sends a `node_register` with 8 GPUs and 2 models, and waits for its ack; all
connections stay open. Two registries: without tokens and in memory, and as a registry runs by default, with
a join token and SQLite. Figures are registrations per second of the *server's* CPU time, threads included.

The baseline is a bare `websockets` server on asyncio that answers the same frame with an ack written before,
with Python's collector set as the registry sets it. All run on the same core, in turns; the median of the
rounds counts.

Then nodes register one after another with the default registry: each connects once the one before it has its
ack. The baseline is Python's `sqlite3` that commits the same documents one by one in the same folder (WAL,
synchronous=FULL).

Other work on the machine makes all figures worse: watch the load. `benchmarks/fleet_load.py` has the restart.
`--check` ends with 1 when a target is missed. Linux only.
"""

import argparse
import asyncio
import gc
import itertools
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from websockets.asyncio.server import ServerConnection, serve

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # it is run as a file

from benchmarks.load.node_frames import frame, handshake, registration
from benchmarks.load.sockets import allow_sockets, await_bytes
from gpu_agent.server.collector import COLLECTOR_THRESHOLDS

TARGET_PER_CORE_SECOND = 2000
TARGET_ALONE_PER_SECOND = 600
GPUS = 8
AT_ONCE = 200
"""Nodes that register together: a registry that restarts finds more of them, waiting in the kernel."""

WARM_UP_NODES = 200
LONGEST_RUN_SECONDS = 900
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
ACK, HEAD_END = b"node_register_ack", b"\r\n\r\n"
BARE_SETTINGS = ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL")


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs, and what it asks of a node."""

    pid: int
    port: int
    token: str | None

    @property
    def cpu_seconds(self) -> float:
        """Its CPU time so far, its threads included."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


@dataclass(frozen=True, slots=True)
class Measured:
    """What a server did with the registrations that it was sent."""

    registrations: int
    wall_seconds: float
    cpu_seconds: float

    @property
    def per_core_second(self) -> float:
        """Registrations per second of the server's CPU time."""
        return self.registrations / self.cpu_seconds

    @property
    def per_second(self) -> float:
        """Registrations per second."""
        return self.registrations / self.wall_seconds


def main() -> int:
    """Measure all servers and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3, help="of each server in turns; the median counts")
    parser.add_argument("--alone", type=int, default=1000, help="nodes that register one after another")
    parser.add_argument("--folder", type=Path, help="on the disk that is measured (default: a temporary one)")
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    parser.add_argument("--bare-server", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare_server:
        asyncio.run(_bare_server())
        return 0
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:  # noqa: PLR2004 - one for each side
        print("two cores are needed: one for the registry, one for the nodes")
        return 1
    allow_sockets(arguments.nodes)
    signal.alarm(LONGEST_RUN_SECONDS)
    os.sched_setaffinity(0, {cores[1]})
    load = " ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"{arguments.nodes} nodes, {GPUS} GPUs each, load before {load}", flush=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        reached = _together(Path(folder), arguments, core=cores[0])
        reached = _one_at_a_time(Path(folder), arguments, core=cores[0]) and reached
    return 0 if reached or not arguments.check else 1


def _together(folder: Path, arguments: argparse.Namespace, *, core: int) -> bool:
    bare, memory, default = list[Measured](), list[Measured](), list[Measured]()
    for number in range(arguments.rounds):
        for rounds, command, tokens in (
            (bare, [sys.executable, __file__, "--bare-server"], None),
            (memory, _registry("--auth", "off", "--store", "memory"), None),
            (default, _registry("--state-dir", str(folder / str(number))), folder / str(number)),
        ):
            with _running(command, core, state_dir=tokens, uses=arguments.nodes) as server:
                rounds.append(_register(server, arguments.nodes, at_once=AT_ONCE))
    print(f"bare websockets          {_in_words(bare)}")
    print(f"in memory, no tokens     {_in_words(memory)}")
    print(f"with SQLite and tokens   {_in_words(default)}")
    figures = [median(one.per_core_second for one in rounds) for rounds in (memory, default)]
    met = min(figures) >= TARGET_PER_CORE_SECOND
    print(f"  target {TARGET_PER_CORE_SECOND:,}: {'reached' if met else 'MISSED'}", flush=True)
    return met


def _one_at_a_time(folder: Path, arguments: argparse.Namespace, *, core: int) -> bool:
    state_dir = folder / "alone"
    command = _registry("--state-dir", str(state_dir))
    with _running(command, core, state_dir=state_dir, uses=arguments.alone) as server:
        alone = _register(server, arguments.alone, at_once=1)
    bare = _bare_commits(folder, state_dir / "registry.db", arguments.alone)
    met = alone.per_second >= TARGET_ALONE_PER_SECOND
    print(
        f"one at a time, SQLite    {alone.per_second:6,.0f}/s of wall time, "
        f"{alone.cpu_seconds / alone.registrations * 1e6:5.0f} µs CPU each; "
        f"bare SQLite commits the same documents {bare:,.0f}/s\n"
        f"  target {TARGET_ALONE_PER_SECOND}: {'reached' if met else 'MISSED'}"
    )
    return met


def _register(server: Server, nodes: int, *, at_once: int) -> Measured:
    """Let some nodes register first, which a server takes for its first time, then all others."""
    _register_all(server, range(WARM_UP_NODES), at_once=at_once)
    return _register_all(server, range(WARM_UP_NODES, WARM_UP_NODES + nodes), at_once=at_once)


def _register_all(server: Server, nodes: range, *, at_once: int) -> Measured:
    """Let nodes connect and register, so many together; returns what that took until the last ack."""
    frames = [frame(registration(f"{one:08x}", node_id=f"node-{one:08X}", gpus=GPUS)) for one in nodes]
    request = handshake("127.0.0.1", token=server.token)
    began, cpu = time.monotonic(), server.cpu_seconds
    held: list[socket.socket] = []
    for first in range(0, len(frames), at_once):
        part = frames[first : first + at_once]
        sockets = []
        for _ in part:
            one = socket.create_connection(("127.0.0.1", server.port), timeout=30)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as asyncio's own connections
            one.sendall(request)
            sockets.append(one)
        for one, registered in zip(sockets, part, strict=True):
            await_bytes(one, HEAD_END)
            one.sendall(registered)
        for one in sockets:
            await_bytes(one, ACK)
        held += sockets
    measured = Measured(len(frames), time.monotonic() - began, server.cpu_seconds - cpu)
    for one in held:
        one.close()
    return measured


def _bare_commits(folder: Path, path: Path, count: int) -> float:
    """Commit what the registry has stored with bare SQLite, one by one; returns how many a second."""
    with closing(sqlite3.connect(path)) as database:
        query = "SELECT kind, key, document FROM documents WHERE kind = 'node' LIMIT ?"
        rows = database.execute(query, (count,)).fetchall()
    with closing(sqlite3.connect(folder / "bare.db", isolation_level=None)) as database:
        for setting in BARE_SETTINGS:
            database.execute(setting)
        database.execute(
            "CREATE TABLE documents (kind TEXT, key TEXT, document TEXT, PRIMARY KEY (kind, key))"
        )
        began = time.monotonic()
        for row in rows:
            database.execute("BEGIN IMMEDIATE")
            database.execute("INSERT OR REPLACE INTO documents VALUES (?, ?, ?)", row)
            database.execute("COMMIT")
        return len(rows) / (time.monotonic() - began)


def _in_words(rounds: list[Measured]) -> str:
    each = median(one.per_core_second for one in rounds)
    wall = median(one.per_second for one in rounds)
    spread = " ".join(
        f"{one.per_core_second:,.0f}" for one in sorted(rounds, key=lambda one: one.cpu_seconds)
    )
    return f"{each:6,.0f} per core-second, {1e6 / each:5.0f} µs each, {wall:6,.0f}/s of wall time ({spread})"


def _registry(*options: str) -> list[str]:
    command = [str(Path(sys.executable).with_name("gpu-agent")), "registry", "serve", "--log-level", "info"]
    return [*command, "--node-listen", "127.0.0.1:0", "--operator-listen", "127.0.0.1:0", *options]


@contextmanager
def _running(command: list[str], core: int, *, state_dir: Path | None, uses: int) -> Iterator[Server]:
    """Run a server on one core until the block ends; it says where it listens as `registry_listening`."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        os.sched_setaffinity(process.pid, {core})
        assert process.stderr is not None  # noqa: S101 - it was asked for
        lines = (json.loads(line) for line in process.stderr if line.startswith("{"))
        said = next((line for line in lines if line.get("event") == "registry_listening"), None)
        if said is None:
            raise SystemExit(f"{command[0]} ended with {process.wait()} before it listened")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        token = None if state_dir is None else _join_token(state_dir, said["operator_listen"], uses)
        yield Server(process.pid, int(said["node_listen"].rsplit(":", 1)[1]), token)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _join_token(state_dir: Path, operator_listen: str, uses: int) -> str:
    operator = (state_dir / "operator.token").read_text().strip()
    request = urllib.request.Request(
        f"http://{operator_listen}/v1/tokens",
        data=json.dumps({"kind": "join", "ttl_seconds": 86400, "uses": uses + WARM_UP_NODES}).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {operator}"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - our own
        token: str = json.load(answer)["token"]
    return token


async def _bare_server() -> None:
    """The baseline: the library's own server, that answers each frame with one text."""
    gc.set_threshold(*COLLECTOR_THRESHOLDS)
    numbers = itertools.count()

    async def take(connection: ServerConnection) -> None:
        async for _ in connection:
            await connection.send(json.dumps({"type": ACK.decode(), "node_id": f"node-{next(numbers):08X}"}))

    async with serve(
        take, "127.0.0.1", 0, compression=None, ping_interval=None, close_timeout=1, backlog=4096
    ) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        listening = {"event": "registry_listening", "node_listen": f"127.0.0.1:{port}"}
        print(json.dumps(listening), file=sys.stderr, flush=True)
        await asyncio.sleep(LONGEST_RUN_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
