"""A registry under very many nodes: all come, stay, are lost and noticed, and come back after a restart.

    python benchmarks/fleet_load.py [--nodes 10000] [--minutes 10] [--restart-only] [--check]

Starts `gpu-agent registry serve`, with tokens and SQLite as it does by default, and processes full of
nodes (`benchmarks/load/`), each node a real WebSocket that keeps to the agent's rhythm and backoff.
Then:

(a) all nodes register and become ready;
(b) they send heartbeats for the given time: no one may be judged wrongly;
(c) a tenth is lost without a goodbye, half of it with its process (SIGKILL), half by falling silent
    on open sockets: each must be noticed within its timeout and a second, and no one else touched;
(d) all are brought back and stay until an agent would begin its backoff again, then the registry is killed
    with SIGKILL and started again: all must be ready within 30 seconds.

The loop's lag is the registry's own measure (`performance`), memory and CPU time are the kernel's.
Everything runs on this machine and disturbs what is measured: watch the load, which is printed.
`--check` ends with 1 when anything is missed. Linux only.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # run as a file, it finds its parts all the same

from benchmarks.load.node import STABLE_SECONDS  # noqa: E402
from benchmarks.load.processes import Generators, RegistryProcess  # noqa: E402
from benchmarks.load.verdicts import Table  # noqa: E402

MEASURED_EVERY_SECONDS, QUICK_MEASURED_EVERY_SECONDS = 10.0, 2.0
QUICK = [
    "--heartbeat-interval-seconds=1",
    "--warmup-heartbeat-interval-seconds=0.5",
    "--heartbeat-timeout-seconds=4",
]
READY_AGAIN_SECONDS = 30.0
LAG_P99_MS, QUICK_LAG_P99_MS = 50.0, 500.0
"""A quick run is a test, and shares its machine with other tests."""

STARTUP_SECONDS = 5.0
"""As the agent's jitter: machines that start together do not call together."""

LOST_SHARE = 0.1
NOTICED_SECONDS = 1.0
FILES_BESIDES_NODES = 300


def main() -> int:
    """Run all phases and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=10.0, help="length of phase (b)")
    parser.add_argument("--gpus", type=int, default=8, help="figures in each heartbeat")
    parser.add_argument("--processes", type=int, default=2, help="of nodes, besides the one that is killed")
    parser.add_argument("--restart-only", action="store_true", help="leave out phases (b) and (c)")
    parser.add_argument("--quick", action="store_true", help="a heartbeat every second, give up after four")
    parser.add_argument("--check", action="store_true", help="exit 1 when anything is missed")
    arguments = parser.parse_args()
    _allow_sockets(arguments.nodes)
    load = " ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"{arguments.nodes} nodes, {arguments.gpus} GPUs each, {os.cpu_count()} cores, load before {load}")
    table = Table()
    options, every = (
        (QUICK, QUICK_MEASURED_EVERY_SECONDS) if arguments.quick else ([], MEASURED_EVERY_SECONDS)
    )
    with (
        tempfile.TemporaryDirectory() as state_dir,
        RegistryProcess(options, state_dir=Path(state_dir), measured_every_seconds=every) as registry,
    ):
        _run(arguments, registry, table)
    print("all targets met" if table.met else "some targets were MISSED")
    return 0 if table.met or not arguments.check else 1


def _run(arguments: argparse.Namespace, registry: RegistryProcess, table: Table) -> None:
    doomed = max(1, round(arguments.nodes * LOST_SHARE / 2))
    empty_mb = registry.resident_mb
    startup_seconds = 1.0 if arguments.quick else STARTUP_SECONDS
    with Generators(registry, gpus=arguments.gpus, startup_seconds=startup_seconds) as generators:
        shares = _shares(arguments.nodes - doomed, arguments.processes)
        _all_come(registry, generators, table, nodes=[*shares, doomed], empty_mb=empty_mb)
        if not arguments.restart_only:
            lag_ms = QUICK_LAG_P99_MS if arguments.quick else LAG_P99_MS
            _all_stay(registry, table, seconds=arguments.minutes * 60, lag_ms=lag_ms)
            _some_are_lost(registry, generators, table, doomed=doomed)
        _the_registry_is_lost(registry, generators, table, nodes=arguments.nodes, quick=arguments.quick)
        table.fact("what the nodes met", generators.happened())


def _all_come(
    registry: RegistryProcess, generators: Generators, table: Table, *, nodes: list[int], empty_mb: float
) -> None:
    table.begin("(a) all come")
    for count in nodes:
        generators.start(count)
    took = generators.await_ready(sum(nodes), within_seconds=300)
    table.fact("all ready", f"{took:.1f} s after the first was started")
    table.fact("the registry's memory", f"{empty_mb:.0f} MiB empty, {registry.resident_mb:.0f} MiB with all")
    per_node_kb = (registry.resident_mb - empty_mb) * 1024 / sum(nodes)
    table.fact("memory a node", f"{per_node_kb:.1f} KiB, connection and record")
    _lag(registry, table)


def _all_stay(registry: RegistryProcess, table: Table, *, seconds: float, lag_ms: float) -> None:
    table.begin(f"(b) they send heartbeats for {seconds:.0f} s")
    registry.log.forget()
    cpu, began = registry.cpu_seconds, time.monotonic()
    time.sleep(seconds)
    elapsed = time.monotonic() - began
    changes = registry.log.changes
    table.check("no status changed", not changes, f"{len(changes)} changes" if changes else "")
    cut = registry.log.count("node_disconnected")
    table.check("no connection lost", not cut, f"{cut}" if cut else "")
    _lag(registry, table, at_most_ms=lag_ms)
    core = (registry.cpu_seconds - cpu) / elapsed
    heartbeats = registry.log.beats_per_second
    table.fact("the registry's CPU", f"{core * 100:.1f} % of a core at {heartbeats:.0f} heartbeats/s")
    table.fact("the registry's memory", f"{registry.resident_mb:.0f} MiB, {registry.peak_mb:.0f} at most")


def _some_are_lost(registry: RegistryProcess, generators: Generators, table: Table, *, doomed: int) -> None:
    table.begin(f"(c) {doomed} are killed, {doomed} fall silent")
    registry.log.forget()
    killed = generators.kill_last()
    silent = generators.silence(doomed)
    lost = killed | silent
    registry.log.await_gone(lost, within_seconds=3 * max(lost.values()))
    noticed, changed = registry.log.silent_seconds, {one.node_id for one in registry.log.changes}
    table.check("all were noticed", lost.keys() <= changed, f"{len(lost.keys() & changed)} of {len(lost)}")
    worst = max((noticed[node] - lost[node] for node in lost.keys() & noticed.keys()), default=0.0)
    table.check("within timeout + 1 s", worst <= NOTICED_SECONDS, f"{worst:.2f} s after it at worst")
    others = changed - lost.keys()
    table.check("no one else was touched", not others, f"{len(others)}" if others else "")
    _lag(registry, table)
    generators.start(doomed)
    generators.revive()


def _the_registry_is_lost(
    registry: RegistryProcess, generators: Generators, table: Table, *, nodes: int, quick: bool
) -> None:
    within_seconds, stay_seconds = (60.0, 0.0) if quick else (READY_AGAIN_SECONDS, STABLE_SECONDS + 1)
    table.begin("(d) all are back, the registry is killed and started again")
    generators.await_ready(nodes, within_seconds=300)
    time.sleep(stay_seconds)
    registry.kill()
    began = time.monotonic()
    registry.start()
    listening, cpu = time.monotonic() - began, registry.cpu_seconds
    generators.await_unready()
    generators.await_ready(nodes, within_seconds=300)
    took = time.monotonic() - began
    what = f"all ready again within {within_seconds:g} s"
    table.check(what, took <= within_seconds, f"{took:.1f} s after the kill")
    log = registry.log
    table.fact("it listened after", f"{listening:.1f} s")
    first, last = log.first_registered_at - began, log.last_registered_at - began
    table.fact("the nodes registered", f"{first:.1f} s to {last:.1f} s after the kill")
    table.fact(
        "its CPU time", f"{cpu:.1f} s until it listened, {registry.cpu_seconds - cpu:.1f} s after that"
    )
    table.fact("the registry's memory", f"{registry.resident_mb:.0f} MiB, {registry.peak_mb:.0f} at most")
    _lag(registry, table)


def _lag(registry: RegistryProcess, table: Table, *, at_most_ms: float | None = None) -> None:
    p50, p99, longest = registry.log.lag()
    figures = f"p50 {p50:.1f} ms, p99 {p99:.1f} ms in the worst period, {longest:.0f} ms at most"
    if at_most_ms is None:
        table.fact("the loop's lag", figures)
    else:
        table.check(f"the loop's lag, p99 ≤ {at_most_ms:.0f} ms", p99 <= at_most_ms, figures)


def _shares(nodes: int, processes: int) -> list[int]:
    return [nodes // processes + (1 if one < nodes % processes else 0) for one in range(processes)]


def _allow_sockets(nodes: int) -> None:
    """Each process needs one file a node; those that are started inherit the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = nodes + FILES_BESIDES_NODES
    if hard != resource.RLIM_INFINITY and wanted > hard:
        raise SystemExit(f"{nodes} nodes need {wanted} open files, {hard} are allowed: raise `ulimit -n`")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
