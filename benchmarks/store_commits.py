"""What storing before sending costs: registrations, claims and commits with SQLite, beside bare SQLite.

    python benchmarks/store_commits.py [--folder DIR] [--nodes N] [--claims N] [--check]

The registry's own fleet, loop, writer and store, without sockets: 10 000 nodes with eight GPUs and ten models
register in one burst, then schedulers claim slots, one after another and 64 at once. Printed per second and
as latency from question to answer, with how late the event loop was meanwhile (a timer of 5 ms shows it).

The named baseline, in the same run and folder: Python's `sqlite3` writing the same documents as text that is
ready, with the same settings (WAL, synchronous=FULL), one document a commit. `--check` exits 1 when a claim
that is asked for alone takes, at the median, more than a millisecond longer than one such commit.
"""

import argparse
import asyncio
import gc
import platform
import sqlite3
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # it is run as a file

from benchmarks.load.lag import TICK_SECONDS, Lag
from benchmarks.load.quantile import quantile
from benchmarks.load.registry_with_store import Registry
from gpu_agent.registry.events import HeartbeatReceived, RegistrationReceived
from gpu_agent.server.collector import COLLECTOR_THRESHOLDS
from gpu_agent.wire.heartbeat import Heartbeat, Usage
from gpu_agent.wire.messages import (
    GpuDeclaration,
    Hardware,
    InstalledModel,
    NodeRegister,
)

TOGETHER = 64
EXTRA_TARGET_SECONDS = 0.001
FILLER_BYTES = 16 * 1024 * 1024
BARE_SETTINGS = ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL")


def declaration(number: int) -> NodeRegister:
    """Declare a machine with eight GPUs and ten models."""
    gpus = tuple(
        GpuDeclaration(
            name="NVIDIA H100 80GB HBM3",
            memory_gb=80,
            uuid=f"GPU-{number:08x}-0000-0000-0000-{place:012x}",
            vendor="nvidia",
            index=place,
            memory_mb=81559,
        )
        for place in range(8)
    )
    models = tuple(
        InstalledModel(model_id=f"model-{number % 50 + place:03}", version="1") for place in range(10)
    )
    return NodeRegister(
        version="1.0.0",
        capability_schema_version="1.1",
        node_id=f"node-{number:05}",
        platform="linux",
        hardware=Hardware(cpu_cores=128, memory_gb=1024, gpus=gpus),
        installed_models=models,
        max_concurrent_jobs=64,
    )


async def registrations(registry: Registry, nodes: int) -> tuple[float, Lag]:
    """Let all nodes register in one burst; returns the seconds until the last was acknowledged."""
    events = [
        RegistrationReceived(number, declaration(number), "", address="10.0.0.1")
        for number in range(1, nodes + 1)
    ]
    async with Lag() as lag:
        await asyncio.sleep(10 * TICK_SECONDS)
        began = time.perf_counter()
        for event in events:
            registry.do(event)
            await asyncio.sleep(0)  # frames arrive one by one, and others have their turn
        while not await registry.loop.settled():
            pass
        took = time.perf_counter() - began
    if registry.executor.acks != nodes:
        raise SystemExit(f"{registry.executor.acks} of {nodes} nodes were acknowledged")
    return took, lag


async def become_ready(registry: Registry, nodes: int) -> None:
    """Let all nodes send heartbeats until they are ready."""
    usage = Usage(cpu_percent=5.0, mem_percent=5.0)
    for _ in range(3):
        for number in range(1, nodes + 1):
            registry.do(HeartbeatReceived(number, Heartbeat(f"node-{number:05}", usage)))
            await asyncio.sleep(0)
    while not await registry.loop.settled():
        pass


@dataclass
class Answered:
    """How claims were answered."""

    seconds: float
    cpu_seconds: float
    latencies: list[float]
    lag: Lag

    @property
    def rate(self) -> float:
        """Claims per second."""
        return len(self.latencies) / self.seconds

    def __str__(self) -> str:
        """All of it, in words."""
        median, p99 = quantile(self.latencies, 0.5) * 1e3, quantile(self.latencies, 0.99) * 1e3
        return (
            f"{self.rate:.0f}/s, answered in {median:.2f} ms at the median, {p99:.2f} ms at p99; {self.lag}"
        )


async def claims(registry: Registry, count: int, *, together: int) -> Answered:
    """Claim slots, so many callers at once."""
    latencies: list[float] = []

    async def ask(times: int) -> None:
        latencies.extend([await registry.claim() for _ in range(times)])

    async with Lag() as lag:
        await asyncio.sleep(10 * TICK_SECONDS)
        began, cpu = time.perf_counter(), time.process_time()
        async with asyncio.TaskGroup() as group:
            for _ in range(together):
                group.create_task(ask(count // together))
        return Answered(time.perf_counter() - began, time.process_time() - cpu, latencies, lag)


def documents(path: Path, kind: str, count: int) -> list[tuple[str, str, str]]:
    """Return what the registry has stored, as bare SQLite is to write it."""
    with closing(sqlite3.connect(path)) as database:
        rows: list[tuple[str, str, str]] = database.execute(
            "SELECT kind, key, document FROM documents WHERE kind = ? LIMIT ?", (kind, count)
        ).fetchall()
    return rows


def bare(folder: Path, rows: Sequence[tuple[str, str, str]], *, at_once: int) -> list[float]:
    """Write documents with bare SQLite, so many a commit; returns the seconds of each commit."""
    path = folder / f"bare-{time.monotonic_ns()}.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        for setting in BARE_SETTINGS:
            database.execute(setting)
        columns = "kind TEXT, key TEXT, document TEXT, PRIMARY KEY (kind, key)"
        database.execute(f"CREATE TABLE documents ({columns})")
        database.execute("CREATE TABLE filler (filler BLOB)")
        database.execute("INSERT INTO filler VALUES (zeroblob(?))", (FILLER_BYTES,))
        database.execute("PRAGMA wal_checkpoint(RESTART)")  # a log of its full size, as after some time
        seconds = []
        for first in range(0, len(rows), at_once):
            began = time.perf_counter()
            database.execute("BEGIN IMMEDIATE")
            database.executemany(
                "INSERT OR REPLACE INTO documents VALUES (?, ?, ?)", rows[first : first + at_once]
            )
            database.execute("COMMIT")
            seconds.append(time.perf_counter() - began)
    return seconds


async def measure(folder: Path, nodes: int, count: int) -> list[str]:
    """Print all figures; returns the targets that were missed."""
    path = folder / "registry.db"
    registry = Registry(path)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)  # as the registry sets it
    cpu = time.process_time()
    took, lag = await registrations(registry, nodes)
    cpu = time.process_time() - cpu
    await become_ready(registry, nodes)
    alone = await claims(registry, count, together=1)
    many = await claims(registry, count * 4, together=TOGETHER)
    await registry.writer.close(within_seconds=10)

    node_rows = documents(path, "node", nodes)
    size = sum(len(document) for _, _, document in node_rows) / len(node_rows) / 1024
    print(f"{nodes} registrations in one burst, {size:.1f} KiB each: {took:.1f} s, {nodes / took:.0f}/s")
    print(f"  {cpu / nodes * 1e6:.0f} µs of CPU each, in all; {lag}")
    bare_figure("nodes", bare(folder, node_rows[:count], at_once=1))
    print(f"{count} claims one after another: {alone}")
    print(f"{count * 4} claims, {TOGETHER} at once: {many}")
    one = bare_figure("claims", bare(folder, documents(path, "claim", count), at_once=1))
    median = quantile(alone.latencies, 0.5)
    print(f"  a claim alone takes {median / one:.1f} times as long as one bare commit, at the median")
    print(f"  {TOGETHER} at once get {many.rate * one:.1f} times the claims that one bare commit each allows")
    met = median - one <= EXTRA_TARGET_SECONDS
    return [] if met else [f"a claim alone within {EXTRA_TARGET_SECONDS * 1e3:g} ms of a bare commit"]


def bare_figure(what: str, seconds: Sequence[float]) -> float:
    """Print the baseline; returns the median of a commit."""
    median, p99 = quantile(seconds, 0.5), quantile(seconds, 0.99)
    print(
        f"  bare SQLite, one of these {what} a commit: {median * 1e3:.2f} ms at the median, "
        f"{p99 * 1e3:.2f} ms at p99, {len(seconds) / sum(seconds):.0f}/s"
    )
    return median


def main() -> int:
    """Measure in one folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="on the disk that is measured (default: a temporary one)")
    parser.add_argument("--nodes", type=int, default=10_000, help="nodes that register")
    parser.add_argument(
        "--claims", type=int, default=1000, help="claims one after another; four times as many at once"
    )
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        print(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, in {folder}")
        misses = asyncio.run(measure(Path(folder), arguments.nodes, arguments.claims))
    for miss in misses:
        print(f"MISSED: {miss}")
    return 1 if misses and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
