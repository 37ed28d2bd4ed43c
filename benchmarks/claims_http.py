"""How fast schedulers claim over HTTP: latencies on one connection, claims a second from 32.

    python benchmarks/claims_http.py [--nodes 200] [--heartbeats 5000] [--followers 200] [--seconds 4]

Starts `gpu-agent registry serve` with SQLite and lets nodes connect. Measured with `http.client` on one
connection that stays open: select, claim, renewal and release. Then 32 connections claim and release as
fast as they can; beside them, in turns and by the same client, a server whose handlers are empty: they check
and read the request, touch no fleet, no store and no log, and write the same answer. Both servers read and
write HTTP with the same class of connections, uvicorn's with `httptools`; the empty one leaves all routes to
FastAPI, without our hot ones. The ratio says how claims compare with a web framework that does nothing. Then
the same with a fleet whose nodes send heartbeats, once each has sent some at its usual interval, and with
clients that follow the events.

Other work on the machine makes the figures worse: watch the load. `--check` ends with 1 when a target is
missed. Linux only.
"""

import argparse
import asyncio
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # it is run as a file

from benchmarks.load.processes import Generators, RegistryProcess
from benchmarks.load.quantile import quantile
from gpu_agent.registry.actions import Refusal
from gpu_agent.registry.dispatch.exclusions import NoAvailableNode
from gpu_agent.registry.events import ANYBODY, Requester
from gpu_agent.registry.job import Job
from gpu_agent.runtime.address import Address
from gpu_agent.server.api.app import ApiServer
from gpu_agent.server.service import RegistryService, ServiceSettings
from gpu_agent.store.memory import MemoryStore
from gpu_agent.wire.api import ClaimNode, ClaimView, Selection

SELECT_MS, CLAIM_MS = 2.0, 4.0
LEAST_RATIO = 0.6
MOST_FOLLOWERS_COST = 0.2
CONNECTIONS = 32
ROUNDS = 3
"""Both servers are measured so often, in turns; the median counts."""
SETTLED_SECONDS = 20.0
"""After the registration of a large fleet: longer than the interval of its heartbeats."""
OPTIONS = ["--auth", "off", "--max-cpu-percent", "100", "--max-memory-percent", "100"]


def main() -> int:
    """Measure and compare with the targets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--heartbeats", type=int, default=5000, help="nodes of the large fleet")
    parser.add_argument("--followers", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each round")
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    parser.add_argument("--serve-empty", type=int, metavar="PORT", help=argparse.SUPPRESS)
    parser.add_argument("--pairs", type=int, metavar="PORT", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve_empty is not None:
        asyncio.run(_serve_empty(arguments.serve_empty))
        return 0
    if arguments.pairs is not None:
        print(asyncio.run(_pairs(arguments.pairs, arguments.seconds)))
        return 0
    load = " ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"{os.cpu_count()} cores, load before {load}")
    results = [_latencies_and_rates(arguments)]
    if arguments.heartbeats:
        results.append(_with_heartbeats(arguments))
    return 0 if all(results) or not arguments.check else 1


def _latencies_and_rates(arguments: argparse.Namespace) -> bool:
    with _registry(arguments.nodes) as registry, _empty_server() as empty:
        real = Server(registry.pid, registry.operator_port)
        met = _latencies(real.port)
        met &= _rates(real, empty, seconds=arguments.seconds, what="quiet fleet")
        if arguments.followers:
            met &= _followers(real, arguments.followers, seconds=arguments.seconds)
    return met


def _with_heartbeats(arguments: argparse.Namespace) -> bool:
    with _registry(arguments.heartbeats) as registry, _empty_server() as empty:
        threading.Event().wait(SETTLED_SECONDS)
        what = f"{arguments.heartbeats} nodes send heartbeats"
        real = Server(registry.pid, registry.operator_port)
        return _rates(real, empty, seconds=arguments.seconds, what=what)


@contextmanager
def _registry(nodes: int) -> Iterator[RegistryProcess]:
    with (
        tempfile.TemporaryDirectory() as state_dir,
        RegistryProcess(OPTIONS, state_dir=Path(state_dir), measured_every_seconds=60.0) as registry,
        Generators(registry, gpus=8, startup_seconds=max(2.0, nodes / 60)) as generators,
    ):
        generators.start(nodes)
        generators.await_ready(nodes, within_seconds=600)
        yield registry


def _latencies(port: int) -> bool:
    """Measure each request on one connection with `http.client`."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    headers = {"Content-Type": "application/json"}
    seconds: dict[str, list[float]] = {"select": [], "claim": [], "renew": [], "release": []}

    def timed(name: str, method: str, path: str, *, body: dict[str, object] | None = None) -> None:
        began = time.perf_counter()
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        content = answer.read()
        seconds[name].append(time.perf_counter() - began)
        if answer.status not in (200, 204):
            raise SystemExit(f"{method} {path}: {answer.status} {content[:300]!r}")

    for number in range(400):
        job = {"job_id": f"job-{number}", "gpu_count": 1}
        timed("select", "POST", "/v1/dispatch/select", body=job)
        timed("claim", "POST", "/v1/claims", body=job)
        timed("renew", "POST", f"/v1/claims/job-{number}/renew", body={})
        timed("release", "DELETE", f"/v1/claims/job-{number}")
    connection.close()
    met = True
    for name, sample in seconds.items():
        p50, p99 = (quantile(sample, share) * 1e3 for share in (0.5, 0.99))
        target = {"select": SELECT_MS, "claim": CLAIM_MS}.get(name)
        met &= target is None or p50 <= target
        print(
            f"{name:8} p50 {p50:6.2f} ms  p99 {p99:6.2f} ms" + (f"  (target {target} ms)" if target else "")
        )
    return met


def _rates(real: "Server", empty: "Server", *, seconds: float, what: str) -> bool:
    ours, theirs = [], []
    for _ in range(ROUNDS):
        ours.append(real.measure(seconds))
        theirs.append(empty.measure(seconds))
    ratio, of_cpu = _ratios(ours, theirs)
    print(
        f"claim + release, {CONNECTIONS} connections, {what}: {_in_words(ours)}; empty handlers "
        f"{_in_words(theirs)}; ratio {ratio:.2f} of wall time (target {LEAST_RATIO}), {of_cpu:.2f} of CPU"
    )
    return ratio >= LEAST_RATIO


def _followers(server: "Server", count: int, *, seconds: float) -> bool:
    alone, followed = [], []
    for _ in range(ROUNDS):
        alone.append(server.measure(seconds))
        with _following(server.port, count):
            followed.append(server.measure(seconds))
    ratio, of_cpu = _ratios(followed, alone)
    print(
        f"{count} followers: {_in_words(alone)} alone, {_in_words(followed)} followed; cost "
        f"{1 - ratio:.0%} of wall time (target {MOST_FOLLOWERS_COST:.0%}), {1 - of_cpu:.0%} of CPU"
    )
    return 1 - ratio <= MOST_FOLLOWERS_COST


Measured = tuple[float, float]
"""Pairs of claim and release: for each second, and for each second of the server's CPU time."""


@dataclass(frozen=True, slots=True)
class Server:
    """A process that serves the API."""

    pid: int
    port: int

    def measure(self, seconds: float) -> Measured:
        """Claim and release on all connections for a while, from a process of its own."""
        before = self._cpu_seconds()
        command = [sys.executable, __file__, "--pairs", str(self.port), "--seconds", str(seconds)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rate = float(done.stdout)
        return rate, rate * seconds / (self._cpu_seconds() - before)

    def _cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _ratios(some: list[Measured], others: list[Measured]) -> Measured:
    wall, cpu = (
        median(one[place] for one in some) / median(one[place] for one in others) for place in (0, 1)
    )
    return wall, cpu


def _in_words(measured: list[Measured]) -> str:
    wall, cpu = (median(one[place] for one in measured) for place in (0, 1))
    return f"{wall:,.0f} pairs/s ({cpu:,.0f} for each second of CPU)"


@contextmanager
def _following(port: int, count: int) -> Iterator[None]:
    """Let clients follow the events, and read all of them in a process of their own."""
    program = (
        "import selectors,socket,sys\nport,count=map(int,sys.argv[1:])\nwatched=selectors.DefaultSelector()\n"
        "for _ in range(count):\n"
        "    one=socket.create_connection(('127.0.0.1',port))\n"
        "    one.sendall(b'GET /v1/events HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\n\\r\\n')\n"
        "    one.recv(65536)\n    watched.register(one,selectors.EVENT_READ)\n"
        "print('follows',flush=True)\n"
        "while True:\n    for key,_ in watched.select():\n        key.fileobj.recv(1<<20)\n"
    )
    command = [sys.executable, "-c", program, str(port), str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None  # noqa: S101 - it was asked for
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


async def _pairs(port: int, seconds: float) -> float:
    done, end = 0, time.monotonic() + seconds
    loop = asyncio.get_running_loop()

    async def one(number: int) -> None:
        nonlocal done
        _, client = await loop.create_connection(Client, "127.0.0.1", port)
        turn = 0
        while time.monotonic() < end:
            turn += 1
            job_id = f"bench-{number}-{turn}"
            await client.ask(claim_request(job_id))
            await client.ask(release_request(job_id))
            done += 1
        client.close()

    began = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        for number in range(CONNECTIONS):
            tasks.create_task(one(number))
    return done / (time.monotonic() - began)


class NoSuccessError(Exception):
    """An answer whose status is neither 200 nor 204."""


class Client(asyncio.Protocol):
    """As little client as possible: the same for both servers."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send small requests at once."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - a TCP connection
        self._transport, self._read = transport, b""
        sock: socket.socket = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        """Read one answer."""
        self._read += data
        head, found, body = self._read.partition(b"\r\n\r\n")
        if not found:
            return
        lower = head.lower()
        at = lower.find(b"content-length: ")
        length = 0 if at < 0 else int(lower[at + 16 :].partition(b"\r\n")[0])
        if len(body) >= length:
            self._read = b""
            if head[9:12] in (b"200", b"204"):
                self._answered.set_result(None)
            else:
                self._answered.set_exception(NoSuccessError(f"{head!r} {body[:400]!r}"))

    async def ask(self, request: bytes) -> None:
        """Wait for the answer to a request; raises `NoSuccessError`."""
        self._answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        await self._answered

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()


def claim_request(job_id: str) -> bytes:
    """Write a claim of one GPU."""
    body = b'{"job_id": "' + job_id.encode() + b'", "gpu_count": 1}'
    return (
        b"POST /v1/claims HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Content-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body
    )


def release_request(job_id: str) -> bytes:
    """Write the release of a claim."""
    return f"DELETE /v1/claims/{job_id} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


# The same server with empty handlers


# ruff: noqa: ARG002 - it ignores what it is asked for
class EmptyService(RegistryService):
    """Answers at once, and always the same."""

    async def claim(
        self, job: Job, *, requester: Requester = ANYBODY
    ) -> ClaimView | NoAvailableNode | Refusal:
        """Return the same claim for every job."""
        return CLAIM

    async def release(
        self, job_id: str, claim_id: str | None = None, *, requester: Requester = ANYBODY, reason: str = ""
    ) -> Refusal | None:
        """Release nothing."""
        return None

    def select(self, job: Job) -> Selection | NoAvailableNode:
        """Return the same slot for every job."""
        return SELECTION


NODE = ClaimNode(
    node_id="node-00000000",
    hostname="host",
    gpu_uuids=("GPU-00000000-0000-4c5d-9e6f-0123456789ab",),
    gpu_indices=(0,),
    endpoint=None,
)
CLAIM = ClaimView(
    claim_id="0" * 32,
    job_id="bench-00-0000",
    state="active",
    owner=None,
    nodes=(NODE,),
    node_id=NODE.node_id,
    gpu_uuids=NODE.gpu_uuids,
    endpoint=None,
    granted_at=1_790_000_000.0,
    expires_at=1_790_000_060.0,
    expires_in_seconds=60.0,
    ttl_seconds=60.0,
    gpu_sharing="exclusive",
)
SELECTION = Selection(job_id="bench", nodes=(NODE,), node_id=NODE.node_id, gpu_uuids=NODE.gpu_uuids, score=1)


async def _serve_empty(port: int) -> None:
    settings = ServiceSettings(node_listen=Address("127.0.0.1", 0), auth_on=False)
    service = EmptyService(settings, MemoryStore())
    await service.start()
    address = Address("127.0.0.1", port)
    listener = address.bind()
    print("serves", flush=True)
    await ApiServer(service, listener, address=address, hot=False).serve()


@contextmanager
def _empty_server() -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    command = [sys.executable, __file__, "--serve-empty", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None  # noqa: S101 - it was asked for
        process.stdout.readline()
        _await(lambda: _answers(port))
        try:
            yield Server(process.pid, port)
        finally:
            process.kill()


def _await(look: Callable[[], bool]) -> None:
    for _ in range(100):
        if look():
            return
        threading.Event().wait(0.05)
    raise SystemExit("the empty server does not answer")


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
