"""How many heartbeats a second one core takes: a real registry, real sockets, one frame per wake-up.

    python benchmarks/heartbeats.py [--nodes 5000] [--seconds 8] [--check]

Starts `gpu-agent registry serve` on one core and sends from another: every node is connected,
registered and ready, and every heartbeat carries the figures of 8 GPUs, different from the heartbeat
before it: each GPU's use, heat and power vary freely, the machine's means by a few percent. Two
workloads: in a *settled* fleet memory moves by up to 64 MiB around what is loaded; in a *jumping*
one it lies anywhere on the card at each heartbeat, so that every heartbeat is filed again for dispatch. A
node's next frame leaves only when its last one was taken in, so that no read finds two.

Figures are heartbeats per second of the *server's* CPU time; the wall time stands beside it. In the same run,
from the same sender, a bare `websockets` server, with Python's collector set
as the registry sets it, takes the same frames and only counts them: what the library's own server
costs before anything is read, judged or answered.

Other work on the machine makes both figures worse: watch the load.

`--check` ends with 1 when a workload stays under 30 000 heartbeats per core and second. Linux only.
"""

import argparse
import asyncio
import gc
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from websockets.asyncio.server import ServerConnection, serve

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # it is run as a file

from benchmarks.load.frames import GPUS, MASK, frame, heartbeats_of, registration_of
from gpu_agent.server.serve import COLLECTOR_THRESHOLDS

TARGET_HEARTBEATS_PER_SECOND = 30_000
WORKLOADS = {"settled": 64, "jumping": 70_000}
"""How far each GPU's memory use moves between heartbeats, in MiB: around a loaded model, or anywhere."""

CHUNKS = 10
"""The fleet is sent to in so many parts, so that the server always has one to work on."""

WARM_UP_WAVES = 5
LONGEST_RUN_SECONDS = 120
PING, PONG = b"\x89\x80" + MASK, b"\x8a\x00"
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")

Frames = list[list[bytes]]


@dataclass(frozen=True, slots=True)
class Measured:
    """What a server did with the heartbeats it was sent."""

    heartbeats: int
    wall_seconds: float
    cpu_seconds: float

    @property
    def per_core_second(self) -> float:
        """Heartbeats for each second of the server's CPU time."""
        return self.heartbeats / self.cpu_seconds

    def __str__(self) -> str:
        return (
            f"{self.per_core_second:9,.0f} heartbeats per core-second  "
            f"({self.cpu_seconds / self.heartbeats * 1e6:5.1f} µs each; "
            f"{self.heartbeats:,} heartbeats, {self.cpu_seconds:.2f} s CPU, {self.wall_seconds:.2f} s wall)"
        )


def main() -> int:
    """Measure both servers and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument(
        "--check",
        action="store_true",
        help="exit 1 below 30 000 heartbeats per core-second",
    )
    parser.add_argument("--bare-server", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare_server:
        asyncio.run(_bare_server())
        return 0
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:  # noqa: PLR2004 - one for each side
        print("two cores are needed: one for the registry, one for the sender")
        return 1
    _allow_sockets(arguments.nodes)
    signal.alarm(LONGEST_RUN_SECONDS)
    os.sched_setaffinity(0, {cores[1]})
    reached = True
    bare: Measured | None = None
    for workload, memory_moves_mb in WORKLOADS.items():
        frames = [heartbeats_of(node, memory_moves_mb) for node in range(arguments.nodes)]
        if bare is None:
            print(f"{arguments.nodes} nodes, {len(frames[0][0])} bytes a frame, {GPUS} GPUs each")
            bare = _measure_bare(frames, arguments.seconds, core=cores[0])
            print(f"bare websockets    {bare}")
        registry = _measure_registry(frames, arguments.seconds, core=cores[0])
        met = registry.per_core_second >= TARGET_HEARTBEATS_PER_SECOND
        reached = reached and met
        print(
            f"registry, {workload:<8} {registry}\n"
            f"  {registry.per_core_second / bare.per_core_second:.2f} of the bare server; "
            f"target {TARGET_HEARTBEATS_PER_SECOND:,}: {'reached' if met else 'MISSED'}"
        )
    return 0 if reached or not arguments.check else 1


def _measure_registry(frames: Frames, seconds: float, *, core: int) -> Measured:
    command = [str(Path(sys.executable).with_name("gpu-agent")), "registry", "serve"]
    command += ["--auth", "off", "--store", "memory"]
    command += ["--node-listen", "127.0.0.1:0", "--operator-listen", "127.0.0.1:0", "--log-level", "info"]
    with _running(command, core) as (process, listening):
        sockets = _connected(len(frames), int(listening["node_listen"].rsplit(":", 1)[1]))
        for node, one in enumerate(sockets):
            one.sendall(frame(registration_of(node)))
        for one in sockets:
            _await_bytes(one, b"node_register_ack")
        measured = _measure(process.pid, sockets, frames, seconds=seconds)
        with urllib.request.urlopen(f"http://{listening['operator_listen']}/v1/nodes", timeout=30) as answer:
            statuses = Counter(node["status"] for node in json.load(answer)["nodes"])
        if statuses != {"ready": len(frames)}:
            raise SystemExit(f"not every node is ready, so these are no healthy heartbeats: {dict(statuses)}")
        _close(sockets)
    return measured


def _measure_bare(frames: Frames, seconds: float, *, core: int) -> Measured:
    with _running([sys.executable, __file__, "--bare-server"], core) as (process, listening):
        sockets = _connected(len(frames), int(listening["node_listen"].rsplit(":", 1)[1]))
        measured = _measure(process.pid, sockets, frames, seconds=seconds)
        _close(sockets)
    return measured


def _measure(pid: int, sockets: list[socket.socket], frames: Frames, *, seconds: float) -> Measured:
    """Send wave after wave; the measured time begins and ends when everything sent was taken in."""
    fleet = Fleet(sockets, frames)
    for _ in range(WARM_UP_WAVES):
        fleet.wave()
    fleet.settle()
    began, cpu_before, waves = time.monotonic(), _cpu_seconds(pid), 0
    while time.monotonic() - began < seconds:
        fleet.wave()
        waves += 1
    fleet.settle()
    return Measured(waves * len(sockets), time.monotonic() - began, _cpu_seconds(pid) - cpu_before)


class Fleet:
    """The sending side: connected nodes, in chunks, each with the heartbeats it sends in turn."""

    def __init__(self, sockets: list[socket.socket], frames: Frames) -> None:
        size = max(1, len(sockets) // CHUNKS)
        nodes = [(one, cycle(heartbeats)) for one, heartbeats in zip(sockets, frames, strict=True)]
        self._sockets = sockets
        self._chunks = [nodes[at : at + size] for at in range(0, len(nodes), size)]
        self._flying: set[int] = set()

    def wave(self) -> None:
        """Send one heartbeat from every node, each chunk as soon as its last heartbeats were taken in."""
        for number, chunk in enumerate(self._chunks):
            self._land(number)
            for one, heartbeats in chunk:
                one.sendall(next(heartbeats))
            chunk[-1][0].sendall(PING)
            self._flying.add(number)

    def settle(self) -> None:
        """Wait until every connection has taken in everything."""
        for number in range(len(self._chunks)):
            self._land(number)
        for one in self._sockets:
            one.sendall(PING)
        for one in self._sockets:
            _await_bytes(one, PONG)

    def _land(self, number: int) -> None:
        """Sockets are taken in the order in which they had data: the last one's pong speaks for all."""
        if number in self._flying:
            self._flying.discard(number)
            _await_bytes(self._chunks[number][-1][0], PONG)


@contextmanager
def _running(command: list[str], core: int) -> Iterator[tuple["subprocess.Popen[str]", dict[str, str]]]:
    """Run a server on one core until the block ends; it says where it listens as `registry_listening`."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        os.sched_setaffinity(process.pid, {core})
        assert process.stderr is not None  # noqa: S101 - it was asked for
        for line in process.stderr:
            said = json.loads(line) if line.startswith("{") else {}
            if said.get("event") == "registry_listening":
                break
        else:
            raise SystemExit(f"{command[0]} ended with {process.wait()} before it listened")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield process, said
    finally:
        process.terminate()
        try:
            process.wait(6)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _bare_server() -> None:
    """The baseline: the library's own server, that counts what it receives."""
    count = 0
    gc.set_threshold(*COLLECTOR_THRESHOLDS)

    async def take(connection: ServerConnection) -> None:
        nonlocal count
        async for _ in connection:
            count += 1

    async with serve(
        take, "127.0.0.1", 0, compression=None, ping_interval=None, close_timeout=1, backlog=4096
    ) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        listening = {"event": "registry_listening", "node_listen": f"127.0.0.1:{port}"}
        print(json.dumps(listening), file=sys.stderr, flush=True)
        await asyncio.sleep(LONGEST_RUN_SECONDS)


def _connected(count: int, port: int) -> list[socket.socket]:
    handshake = (
        b"GET /ws/node HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    sockets = []
    for _ in range(count):
        one = socket.create_connection(("127.0.0.1", port), timeout=30)
        one.sendall(handshake)
        sockets.append(one)
    for one in sockets:
        _await_bytes(one, b"\r\n\r\n")
        one.settimeout(None)  # a timeout would cost a system call for each frame: `main` bounds the run
    return sockets


def _await_bytes(one: socket.socket, wanted: bytes) -> None:
    buffer = b""
    while wanted not in buffer:
        received = one.recv(65536)
        if not received:
            raise SystemExit(f"the server closed a connection after {buffer[-200:]!r}")
        buffer += received


def _close(sockets: list[socket.socket]) -> None:
    for one in sockets:
        one.close()


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process, its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def _allow_sockets(nodes: int) -> None:
    """Both sides need one file a node; the servers inherit the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = nodes + 200
    if hard != resource.RLIM_INFINITY and wanted > hard:
        raise SystemExit(
            f"{nodes} nodes need {wanted} open files, {hard} are allowed: raise `ulimit -n` or use --nodes"
        )
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    sys.exit(main())
