"""What a heartbeat costs the registry: a real one, real sockets, one frame per wake-up.

    python benchmarks/heartbeats.py [--nodes 5000] [--seconds 3] [--rounds 5] [--check]

Starts `gpu-agent registry serve` on one core and sends from another: every node is connected,
registered and ready, and each heartbeat differs from the one before it. Three workloads: an *older node's
shape*, without figures of GPUs, that repeats three models and their states in each heartbeat; our agent's
with the figures of 8 GPUs in a *settled* fleet, where memory moves by up to 64 MiB around what is loaded; and
in a *jumping* one, where it lies anywhere on the card, so that every heartbeat is filed again for dispatch. A
node's next frame leaves only when its last one was taken in, so that no read finds two.

The baseline is a bare `websockets` server on asyncio that takes the same frames and only counts them, with
Python's collector set as the registry sets it. Both run on the same core, are measured in turns, and the
median of the rounds counts. Figures are of the *server's* CPU time; the wall time stands beside it.

Then the registry idles: empty, and with 1 000 of our nodes, each of which sends a heartbeat every 15 s;
beside it the bare server with the same frames. A heartbeat that comes alone costs both several times one of
many.

With `--gateways N` only a registry with N gateways is measured, in turns with one of one process, both on all
cores: CPU time of all its processes, of the leader alone, and heartbeats a second of wall time. The sender
takes most of a core, so that on two the gateways have little more than one process has. What they do with
cores of their own follows from the CPU times: the number of cores, divided by what a heartbeat costs, at most
as many as the leader takes part in.

Other work on the machine makes all figures worse: watch the load.

`--check` ends with 1 when a target is missed. Linux only.
"""

import argparse
import asyncio
import gc
import json
import os
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
from statistics import median

from websockets.asyncio.server import ServerConnection, serve

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # it is run as a file

from benchmarks.load.frames import MASK, WORKLOADS, Workload, frame
from benchmarks.load.sockets import allow_sockets, await_bytes
from gpu_agent.server.collector import COLLECTOR_THRESHOLDS

MOST_OF_BARE = 0.8
"""Of the bare server's CPU time; the jumping fleet has no target."""
MOST_OF_ONE_PROCESS, MOST_OF_THE_LEADER, LEAST_WALL = 1.3, 15.0, 1.5
"""With gateways: CPU time and heartbeats a second, of one process; microseconds of the leader alone."""
LEAST_ON_FOUR = 3.0
"""Heartbeats a second with gateways, of one process, on four cores of their own."""
MOST_IDLE, MOST_EMPTY = 0.02, 0.003
"""Of a core."""
IDLE_NODES, IDLE_INTERVAL_SECONDS = 1000, 15.0

VOICES = 8
CHUNKS = 10
"""The fleet is sent to in so many parts, so that the server always has one to work on."""

WARM_UP_WAVES = 5
REGISTERED_AT_ONCE = 50
"""A gateway accepts only so many nodes that have not registered yet: 64."""
LONGEST_RUN_SECONDS = 900
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
PING, PONG = b"\x89\x80" + MASK, b"\x8a\x00"

Frames = list[list[bytes]]


@dataclass(frozen=True, slots=True)
class Measured:
    """What a server did with the heartbeats it was sent."""

    heartbeats: int
    wall_seconds: float
    cpu_seconds: float
    own_cpu_seconds: float
    """Of its first process alone."""

    @property
    def microseconds(self) -> float:
        """CPU time of the server for each heartbeat."""
        return self.cpu_seconds / self.heartbeats * 1e6


def main() -> int:
    """Measure both servers and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=5, help="of each server in turns; the median counts")
    parser.add_argument("--idle-seconds", type=float, default=30.0, help="0 leaves out the idle registry")
    parser.add_argument("--gateways", type=int, default=0, help="compare so many with one process")
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    parser.add_argument("--bare-server", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare_server:
        asyncio.run(_bare_server())
        return 0
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:  # noqa: PLR2004 - one for each side
        print("two cores are needed: one for the registry, one for the sender")
        return 1
    allow_sockets(2 * arguments.nodes)
    signal.alarm(LONGEST_RUN_SECONDS)
    os.sched_setaffinity(0, {cores[1]})
    if arguments.gateways:
        return 0 if _compare_gateways(arguments) or not arguments.check else 1
    reached = True
    for workload in WORKLOADS:
        ratio = _compare(workload, arguments, core=cores[0])
        reached = reached and (ratio <= MOST_OF_BARE or workload is WORKLOADS[-1])
    if arguments.idle_seconds:
        reached = _idle(arguments.idle_seconds, core=cores[0]) and reached
    return 0 if reached or not arguments.check else 1


def _compare(workload: Workload, arguments: argparse.Namespace, *, core: int) -> float:
    """Measure the registry and the bare server in turns; returns the ratio of their CPU time."""
    frames = [workload.heartbeats_of(node) for node in range(arguments.nodes)]
    ours, bare = [], []
    with _running(_BARE, core) as theirs, _running(_registry(), core) as registry:
        bare_fleet = Fleet(theirs, _connected(arguments.nodes, theirs.node_port), frames)
        fleet = Fleet(registry, _registered(workload, arguments.nodes, registry.node_port), frames)
        for one in (bare_fleet, fleet):
            one.measure(waves=WARM_UP_WAVES)
        for _ in range(arguments.rounds):
            bare.append(bare_fleet.measure(seconds=arguments.seconds))
            ours.append(fleet.measure(seconds=arguments.seconds))
        _check_statuses(registry, arguments.nodes)
    ratio = _median(ours) / _median(bare)
    load = " ".join(f"{one:.1f}" for one in os.getloadavg())
    print(
        f"{workload.name}: {arguments.nodes} nodes, {len(frames[0][0])} bytes a frame, load {load}\n"
        f"  bare websockets  {_in_words(bare)}\n  registry         {_in_words(ours)}\n"
        f"  ratio {ratio:.2f} of the bare server's CPU time (target {MOST_OF_BARE}), median of {len(ours)}",
        flush=True,
    )
    return ratio


def _compare_gateways(arguments: argparse.Namespace) -> bool:
    """Measure a registry with gateways and one of one process in turns."""
    workload = WORKLOADS[1]
    frames = [workload.heartbeats_of(node) for node in range(arguments.nodes)]
    spread, alone = [], []
    with (
        _running(_registry(), None) as one,
        _running([*_registry(), "--gateways", str(arguments.gateways)], None) as many,
    ):
        fleets = [
            Fleet(server, _registered(workload, arguments.nodes, server.node_port), frames, voices=VOICES)
            for server in (one, many)
        ]
        for fleet in fleets:
            fleet.measure(waves=WARM_UP_WAVES)
        for _ in range(arguments.rounds):
            alone.append(fleets[0].measure(seconds=arguments.seconds))
            spread.append(fleets[1].measure(seconds=arguments.seconds))
        for server in (one, many):
            _check_statuses(server, arguments.nodes)
    cost = _median(spread) / _median(alone)
    leader = median(round_.own_cpu_seconds / round_.heartbeats * 1e6 for round_ in spread)
    walls = [
        median(round_.heartbeats / round_.wall_seconds for round_ in rounds) for rounds in (alone, spread)
    ]
    wall = walls[1] / walls[0]
    on_two, on_four = (min(cores / cost, _median(alone) / leader) for cores in (2, 4))
    print(
        f"{workload.name}: {arguments.nodes} nodes, {arguments.gateways} gateways, "
        f"load {os.getloadavg()[0]:.1f}\n"
        f"  one process  {_in_words(alone)}\n  gateways     {_in_words(spread)}\n"
        f"  CPU time {cost:.2f} of one process's (target {MOST_OF_ONE_PROCESS}), the leader alone "
        f"{leader:.1f} µs (target {MOST_OF_THE_LEADER:g}); {wall:.2f} of its heartbeats a second beside the "
        f"sender (target {LEAST_WALL})\n"
        f"  on cores of its own, by these CPU times: {on_two:.2f} of its heartbeats a second on two, "
        f"{on_four:.2f} on four (target {LEAST_ON_FOUR})"
    )
    return (
        cost <= MOST_OF_ONE_PROCESS
        and leader <= MOST_OF_THE_LEADER
        and wall >= LEAST_WALL
        and on_four >= LEAST_ON_FOUR
    )


def _idle(seconds: float, *, core: int) -> bool:
    """Measure an idle registry: empty, and with nodes at their usual interval; and the bare server."""
    workload = WORKLOADS[1]
    frames = [workload.heartbeats_of(node) for node in range(IDLE_NODES)]
    with _running(_BARE, core) as bare:
        fleet = Fleet(bare, _connected(IDLE_NODES, bare.node_port), frames)
        fleet.measure(waves=WARM_UP_WAVES)
        least = _idle_share(bare, fleet, seconds)
    with _running(_registry(), core) as registry:
        empty = _idle_share(registry, Fleet(registry, [], []), seconds)
        fleet = Fleet(registry, _registered(workload, IDLE_NODES, registry.node_port), frames)
        fleet.measure(waves=WARM_UP_WAVES)
        idle = _idle_share(registry, fleet, seconds)
        _check_statuses(registry, IDLE_NODES)
    print(
        f"idle: empty {empty:.2%} of a core (target {MOST_EMPTY:.1%}); {IDLE_NODES} nodes, a heartbeat every "
        f"{IDLE_INTERVAL_SECONDS:g} s: {idle:.2%} (target {MOST_IDLE:.0%}); the bare server takes {least:.2%}"
    )
    return empty <= MOST_EMPTY and idle <= MOST_IDLE


def _idle_share(server: "Server", fleet: "Fleet", seconds: float) -> float:
    fleet.trickle(IDLE_INTERVAL_SECONDS)  # what the warm-up left to do, as the word that a node is ready
    began, before = time.monotonic(), server.cpu_seconds
    fleet.trickle(seconds)
    return (server.cpu_seconds - before) / (time.monotonic() - began)


def _median(rounds: list[Measured]) -> float:
    return median(one.microseconds for one in rounds)


def _in_words(rounds: list[Measured]) -> str:
    each = _median(rounds)
    wall = median(one.heartbeats / one.wall_seconds for one in rounds)
    spread = " ".join(f"{one.microseconds:.1f}" for one in sorted(rounds, key=lambda one: one.microseconds))
    return f"{each:5.1f} µs each, {1e6 / each:7,.0f} per core-second, {wall:7,.0f}/s of wall time ({spread})"


def _registered(workload: Workload, nodes: int, port: int) -> list[socket.socket]:
    """Connect and register part by part: a registry does not wait for long between the two."""
    sockets: list[socket.socket] = []
    while len(sockets) < nodes:
        part = _connected(min(REGISTERED_AT_ONCE, nodes - len(sockets)), port)
        for node, one in enumerate(part, start=len(sockets)):
            one.sendall(frame(workload.registration_of(node)))
        for one in part:
            await_bytes(one, b"node_register_ack")
        sockets += part
    return sockets


def _check_statuses(registry: "Server", nodes: int) -> None:
    with urllib.request.urlopen(f"http://{registry.operator_listen}/v1/nodes", timeout=30) as answer:
        statuses = Counter(node["status"] for node in json.load(answer)["nodes"])
    if statuses != {"ready": nodes}:
        raise SystemExit(f"not every node is ready, so these are no healthy heartbeats: {dict(statuses)}")


class Fleet:
    """The sending side: connected nodes, in chunks, each with the heartbeats it sends in turn."""

    def __init__(
        self, server: "Server", sockets: list[socket.socket], frames: Frames, *, voices: int = 1
    ) -> None:
        """The last sockets of a chunk, so many, speak for all: one where one process serves them."""
        size = max(1, len(sockets) // CHUNKS)
        self._nodes = [(one, cycle(heartbeats)) for one, heartbeats in zip(sockets, frames, strict=True)]
        self._server, self._voices = server, voices
        self._chunks = [self._nodes[at : at + size] for at in range(0, len(self._nodes), size)]
        self._flying: set[int] = set()

    def measure(self, *, seconds: float = 0.0, waves: int = 1) -> Measured:
        """Send wave after wave; the measured time begins and ends when everything sent was taken in."""
        self._settle()
        own_before = self._server.own_cpu_seconds
        began, cpu_before, sent = time.monotonic(), self._server.cpu_seconds, 0
        while sent < waves or time.monotonic() - began < seconds:
            self._wave()
            sent += 1
        self._settle()
        wall, cpu = time.monotonic() - began, self._server.cpu_seconds - cpu_before
        own = self._server.own_cpu_seconds - own_before
        return Measured(sent * len(self._nodes), wall, cpu, own)

    def trickle(self, seconds: float) -> None:
        """Let each node send a heartbeat at its interval, evenly spread, for so long."""
        begin, sent = time.monotonic(), 0
        while (passed := time.monotonic() - begin) < seconds:
            while self._nodes and sent < passed * len(self._nodes) / IDLE_INTERVAL_SECONDS:
                one, heartbeats = self._nodes[sent % len(self._nodes)]
                one.sendall(next(heartbeats))
                sent += 1
            time.sleep(0.005)

    def _wave(self) -> None:
        """Send one heartbeat from every node, each chunk as soon as its last heartbeats were taken in."""
        for number, chunk in enumerate(self._chunks):
            self._land(number)
            for one, heartbeats in chunk:
                one.sendall(next(heartbeats))
            for one, _ in chunk[-self._voices :]:
                one.sendall(PING)
            self._flying.add(number)

    def _settle(self) -> None:
        """Wait until everything sent was taken in."""
        for number in range(len(self._chunks)):
            self._land(number)

    def _land(self, number: int) -> None:
        """Sockets are taken in the order in which they had data: a process's last pong speaks for all."""
        if number in self._flying:
            self._flying.discard(number)
            for one, _ in self._chunks[number][-self._voices :]:
                await_bytes(one, PONG)


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs."""

    pid: int
    node_listen: str
    operator_listen: str

    @property
    def node_port(self) -> int:
        """Where nodes connect."""
        return int(self.node_listen.rsplit(":", 1)[1])

    @property
    def cpu_seconds(self) -> float:
        """The CPU time so far of all its processes, threads included."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return self.own_cpu_seconds + sum(map(_cpu_seconds, map(int, children)))

    @property
    def own_cpu_seconds(self) -> float:
        """That of the process that was started."""
        return _cpu_seconds(self.pid)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


_BARE = [sys.executable, __file__, "--bare-server"]


def _registry() -> list[str]:
    command = [str(Path(sys.executable).with_name("gpu-agent")), "registry", "serve"]
    command += ["--auth", "off", "--store", "memory"]
    return [
        *command,
        "--node-listen",
        "127.0.0.1:0",
        "--operator-listen",
        "127.0.0.1:0",
        "--log-level",
        "info",
    ]


@contextmanager
def _running(command: list[str], core: int | None) -> Iterator[Server]:
    """Run a server, on one core if that is given, until the block ends; it says where it listens."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        cores = set(range(os.cpu_count() or 1)) if core is None else {core}
        os.sched_setaffinity(process.pid, cores)
        assert process.stderr is not None  # noqa: S101 - it was asked for
        for line in process.stderr:
            said = json.loads(line) if line.startswith("{") else {}
            if said.get("event") == "registry_listening":
                break
        else:
            raise SystemExit(f"{command[0]} ended with {process.wait()} before it listened")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield Server(process.pid, said["node_listen"], said.get("operator_listen", ""))
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
        await_bytes(one, b"\r\n\r\n")
        one.settimeout(None)  # a timeout would cost a system call for each frame: `main` bounds the run
    return sockets


if __name__ == "__main__":
    sys.exit(main())
