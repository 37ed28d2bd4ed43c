"""What an idle agent costs: memory (PSS) of parent and child together, and CPU time, at 15 s heartbeats.

    python benchmarks/idle.py [--seconds 60] [--check]

Two agents run side by side against one real registry: one simulates 8 GPUs, one reads 8 GPUs of the
fake NVML library through the true child process. The baseline of the same run is a Python process
that has merely imported what the agent is built on (asyncio, pydantic, websockets) and waits.
Linux only. `--check` exits 1 when a stated target is missed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.nvml_fake.control import FakeNvml
from tests.programs import Agent, Registry

PSS_TARGET_MIB = 40.0
CPU_TARGET_PERCENT = 0.1
SETTLE_SECONDS = 20.0
BARE = (
    "import asyncio, pydantic, websockets.asyncio.client as w\n"
    "class M(pydantic.BaseModel):\n    x: int\n"
    "w.connect\ninput()"
)
TICKS = os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(member for child in children for member in family(int(child)))]


def pss_mib(pid: int) -> float:
    """Proportional memory of one process."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no Pss in the smaps of {pid}")


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="how long CPU time is counted")
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    arguments = parser.parse_args()
    missed = False
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        fake = FakeNvml(folder, gpus=8)
        fake.unset("log")
        with (
            subprocess.Popen(
                [sys.executable, "-c", BARE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            ) as bare,
            Registry("--allow-simulated") as registry,
            Agent(registry.node_url, folder / "simulated", simulate="8xH100-80GB") as simulated,
            Agent(registry.node_url, folder / "nvml", simulate=None, environment=fake.environment()) as nvml,
        ):
            registry.await_ready(2, within_seconds=30)
            time.sleep(SETTLE_SECONDS)
            baseline = pss_mib(bare.pid)
            print(f"baseline: bare Python with the agent's libraries  {baseline:6.1f} MiB PSS")
            agents = {"agent, 8 simulated GPUs": simulated.pid, "agent, 8 GPUs through NVML": nvml.pid}
            before = {name: sum(map(cpu_seconds, family(pid))) for name, pid in agents.items()}
            time.sleep(arguments.seconds)
            for name, pid in agents.items():
                members = family(pid)
                memory = sum(map(pss_mib, members))
                cpu = 100 * (sum(map(cpu_seconds, members)) - before[name]) / arguments.seconds
                missed |= memory > PSS_TARGET_MIB or cpu > CPU_TARGET_PERCENT
                print(
                    f"{name:<28} {memory:6.1f} MiB PSS in {len(members)} process(es) "
                    f"(target {PSS_TARGET_MIB:.0f}; {memory / baseline:.2f} x baseline), "
                    f"{cpu:.2f} % of a core (target {CPU_TARGET_PERCENT})"
                )
            bare.kill()
    return int(arguments.check and missed)


if __name__ == "__main__":
    sys.exit(main())
