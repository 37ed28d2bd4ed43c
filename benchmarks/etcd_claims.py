"""How fast schedulers claim where the registry stores in etcd, also while etcd's leader dies.

    python benchmarks/etcd_claims.py [--nodes 200] [--seconds 8] [--rate 200] [--check]

Starts three members of etcd on loopback, all on one disk, and `gpu-agent registry serve`, once with SQLite
and once with etcd. In turn: 32 connections claim and release as fast as they can; then claims come at a fixed
rate, whether the one before is answered or not, and each is released once it is answered. With etcd the
latter once more, and halfway the member that leads is killed; a claim that is refused is asked for again.

Everything shares the processors and the disk of this machine: three machines have three disks, and a network
between them. `--check` ends with 1 when a target is missed. Linux only; apt-get install -y etcd-server.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # it is run as a file

from benchmarks.claims_http import (
    CONNECTIONS,
    OPTIONS,
    Client,
    NoSuccessError,
    Server,
    claim_request,
    release_request,
)
from benchmarks.load.processes import Generators, RegistryProcess
from benchmarks.load.quantile import quantile
from tests.store.etcd_cluster import cluster

LEAST_CLAIMS = 500.0
MOST_P99_MS = 100.0
ROUNDS = 3
RETRY_SECONDS = 0.2
MOST_RETRIES = 100
POOL = 200
"""Connections; the registry's limit is 320."""


def main() -> int:
    """Measure and compare with the targets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each round")
    parser.add_argument("--rate", type=float, default=200.0, help="claims a second")
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, load before {' '.join(f'{one:.1f}' for one in os.getloadavg())}")
    with _registry(arguments.nodes, "sqlite") as registry:
        _measure("SQLite", registry, arguments)
    with cluster(3) as etcd:
        members = ",".join(f"{host}:{port}" for host, port in etcd.access.endpoints)
        with _registry(arguments.nodes, f"etcd://{members}/bench") as registry:
            met = _measure("etcd, 3 members", registry, arguments)
            latencies = asyncio.run(_at_rate(registry.operator_port, arguments, etcd.leader().kill))
            print(f"etcd, its leader killed meanwhile: the longest claim takes {max(latencies):.2f} s")
    return 0 if met or not arguments.check else 1


@contextmanager
def _registry(nodes: int, store: str) -> Iterator[RegistryProcess]:
    with (
        tempfile.TemporaryDirectory() as state_dir,
        RegistryProcess(
            [*OPTIONS, "--store", store], state_dir=Path(state_dir), measured_every_seconds=60.0
        ) as registry,
        Generators(registry, gpus=8, startup_seconds=max(2.0, nodes / 60)) as generators,
    ):
        generators.start(nodes)
        generators.await_ready(nodes, within_seconds=600)
        yield registry


def _measure(name: str, registry: RegistryProcess, arguments: argparse.Namespace) -> bool:
    server = Server(registry.pid, registry.operator_port)
    rounds = [server.measure(arguments.seconds) for _ in range(ROUNDS)]
    pairs, of_cpu = (median(one[place] for one in rounds) for place in (0, 1))
    latencies = asyncio.run(_at_rate(registry.operator_port, arguments, None))
    p50, p99 = (quantile(latencies, share) * 1e3 for share in (0.5, 0.99))
    print(
        f"{name}: {2 * pairs:,.0f} claims and releases/s from {CONNECTIONS} connections (target "
        f"{LEAST_CLAIMS:.0f}), {2 * of_cpu:,.0f} for each second of the registry's CPU; at "
        f"{arguments.rate:.0f} claims/s p50 {p50:.1f} ms, p99 {p99:.1f} ms (target {MOST_P99_MS:.0f} ms)"
    )
    return 2 * pairs >= LEAST_CLAIMS and p99 <= MOST_P99_MS


async def _at_rate(
    port: int, arguments: argparse.Namespace, halfway: Callable[[], None] | None
) -> list[float]:
    """Claim at a fixed rate; returns how long each claim took."""
    loop = asyncio.get_running_loop()
    idle: asyncio.Queue[Client] = asyncio.Queue()
    for _ in range(POOL):
        idle.put_nowait((await loop.create_connection(Client, "127.0.0.1", port))[1])
    seconds: list[float] = []

    async def one(number: int) -> None:
        began = time.perf_counter()
        client = await idle.get()
        claim, release = (write(f"rate-{began}-{number}") for write in (claim_request, release_request))
        for _ in range(MOST_RETRIES):
            if await _succeeds(client, claim):
                break
            await asyncio.sleep(RETRY_SECONDS)
        seconds.append(time.perf_counter() - began)
        await _succeeds(client, release)
        idle.put_nowait(client)

    began, count = time.monotonic(), int(arguments.seconds * arguments.rate)
    async with asyncio.TaskGroup() as tasks:
        for number in range(count):
            await asyncio.sleep(max(0.0, began + number / arguments.rate - time.monotonic()))
            tasks.create_task(one(number))
            if number == count // 2 and halfway is not None:
                threading.Thread(target=halfway).start()
    while not idle.empty():
        idle.get_nowait().close()
    return seconds


async def _succeeds(client: Client, request: bytes) -> bool:
    with suppress(NoSuccessError):
        await client.ask(request)
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
