"""A registry under attack, in every way that `benchmarks/load/attacks.py` knows, at once.

    python benchmarks/hostile_nodes.py [--seconds 60] [--nodes 50] [--attack NAME …] [--auth] [--check]

Honest nodes send heartbeats while the attackers do their worst from the same address: no status of theirs may
change, the registry's memory stays below 300 MiB, its loop comes back to everybody, each kind of offence
is logged once a minute, and in the end every file is given back. Without `--auth` no token is
asked for, the worst that can be. `--check` ends with 1 when anything is missed. Linux only.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # run as a file, it finds its parts all the same

from benchmarks.load.attacks import ALL  # noqa: E402
from benchmarks.load.processes import Generators, RegistryProcess  # noqa: E402
from benchmarks.load.verdicts import Table  # noqa: E402

MOST_MEMORY_MB = 300.0
LONGEST_LAG_MS = 1000.0
RHYTHM = [
    "--heartbeat-interval-seconds=2",
    "--warmup-heartbeat-interval-seconds=1",
    "--heartbeat-timeout-seconds=6",
]
CLEARED_SECONDS = 20.0
WINDOW_SECONDS = 60.0


def main() -> int:
    """Let them attack, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--nodes", type=int, default=50, help="honest ones")
    parser.add_argument("--scale", type=float, default=1.0, help="how many of the connections of each attack")
    parser.add_argument("--attack", nargs="*", choices=sorted(ALL), help="only these")
    parser.add_argument("--auth", action="store_true", help="ask for tokens")
    parser.add_argument("--check", action="store_true", help="exit 1 when anything is missed")
    arguments = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    table = Table()
    options = RHYTHM if arguments.auth else [*RHYTHM, "--auth", "off"]
    with (
        tempfile.TemporaryDirectory() as state_dir,
        RegistryProcess(options, state_dir=Path(state_dir), measured_every_seconds=2.0) as registry,
        Generators(registry, gpus=2, startup_seconds=1.0) as honest,
    ):
        honest.start(arguments.nodes)
        honest.await_ready(arguments.nodes, within_seconds=60)
        _attack(arguments, registry, honest=honest, table=table)
    print("all targets met" if table.met else "some targets were MISSED")
    return 0 if table.met or not arguments.check else 1


def _attack(
    arguments: argparse.Namespace, registry: RegistryProcess, *, honest: Generators, table: Table
) -> None:
    victims = honest.listed()
    registry.log.forget()
    files, cpu, began = registry.open_files, registry.cpu_seconds, time.monotonic()
    order = {
        "port": registry.node_port,
        "seconds": arguments.seconds,
        "scale": arguments.scale,
        "victims": sorted(victims)[:10],
        **({"attacks": arguments.attack} if arguments.attack else {}),
    }
    table.begin(f"under attack for {arguments.seconds:.0f} s")
    attackers = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.load.hostile", json.dumps(order)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    most_files = 0
    while attackers.poll() is None:
        most_files = max(most_files, registry.open_files)
        time.sleep(0.2)
    assert attackers.stdout is not None  # noqa: S101 - it was asked for
    for what, count in json.loads(attackers.stdout.read()).items():
        table.fact(what, f"{count}")
    changed = {change.node_id for change in registry.log.changes} & victims.keys()
    table.check("no honest node's status changed", not changed, f"{len(changed)}" if changed else "")
    peak = registry.peak_mb
    table.check(f"memory below {MOST_MEMORY_MB:.0f} MiB", peak < MOST_MEMORY_MB, f"{peak:.0f} MiB at most")
    p50, p99, longest = registry.log.lag()
    lag = f"p50 {p50:.0f} ms, p99 {p99:.0f} ms in the worst period, {longest:.0f} ms at most"
    table.check(f"lag below {LONGEST_LAG_MS:.0f} ms", longest < LONGEST_LAG_MS, lag)
    elapsed = time.monotonic() - began
    table.fact("the registry's CPU", f"{(registry.cpu_seconds - cpu) / elapsed * 100:.0f} % of a core")
    windows = 1 + int(elapsed / WINDOW_SECONDS)
    loud = {what: count for what, count in _logged(registry).items() if count > windows}
    table.check("each kind of offence is logged once a minute", not loud, f"{loud}" if loud else "")
    deadline = time.monotonic() + CLEARED_SECONDS
    while registry.open_files > files and time.monotonic() < deadline:
        time.sleep(0.2)
    left = registry.open_files - files
    table.check("every file was given back", left <= 0, f"{most_files} at most, {max(0, left)} left")


def _logged(registry: RegistryProcess) -> Counter[str]:
    return Counter(
        f"{said['event']} {said.get('code', said.get('status', ''))}" for said in registry.log.offences
    )


if __name__ == "__main__":
    sys.exit(main())
