"""How long `gpu-agent probe --json` takes with 8 fake GPUs, against `nvitop -1` and bare pynvml.

    python benchmarks/probe_wall.py [--pairs 15] [--models 1000] [--processes 50 3000] [--nvitop PATH]
                                    [--check]

All talk to the same fake NVML library, and runs alternate, so that the machine's moods hit all alike. nvitop
has an environment of its own, which this script makes and where it installs it, unless `--nvitop` names one.
Bare pynvml (`bare_pynvml.py`) reads what the probe's child reads and prints it.

It is measured with so many more processes on the machine, which sleep; each time on the machine as it is, and
beside a process that keeps one core busy. Ours runs twice: without models, and with a hub cache of a
thousand, which a cold process must read again. A figure is the median of the ratios pair by pair, of wall
time and of processor time. `--check` exits 1 when a ratio of wall times is over its target.
"""

import argparse
import compileall
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import psutil
import pynvml

import gpu_agent
from benchmarks.model_scan import make_cache
from gpu_agent.probe.nvml.forked_child import is_secret
from tests.nvml_fake.control import FakeNvml

TARGETS = {"nvitop": 0.65, "bare pynvml": 1.6}
TARGET_WITH_MODELS = 1.5
"""Of `nvitop -1`."""
NVITOP = "nvitop==1.7.2"
OURS = (str(Path(sys.executable).parent / "gpu-agent"), "probe", "--json")
BARE = (sys.executable, str(Path(__file__).with_name("bare_pynvml.py")))


class Run(NamedTuple):
    """One run of a command, in milliseconds."""

    wall: float
    processor: float


def run(command: Sequence[str], environment: Mapping[str, str]) -> Run:
    """Run a command to its end; processor time is its own and that of its children."""
    nowhere = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (1, 2)]
    started = time.perf_counter()
    pid = os.posix_spawn(command[0], list(command), environment, file_actions=nowhere)
    _, status, used = os.wait4(pid, 0)
    wall = time.perf_counter() - started
    if status:
        raise SystemExit(f"{command} failed with status {status}: its time means nothing")
    return Run(wall * 1000, (used.ru_utime + used.ru_stime) * 1000)


def found(environment: Mapping[str, str]) -> int:
    """How many models the probe finds; also warms the disk's pages."""
    done = subprocess.run(OURS, env=environment, stdout=subprocess.PIPE, check=True)
    return len(json.loads(done.stdout)["models"])


def install_nvitop(folder: Path) -> str:
    """Install nvitop in an environment of its own; returns its program."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([str(folder / "bin" / "pip"), "install", "--quiet", NVITOP], check=True)
    return str(folder / "bin" / "nvitop")


@contextmanager
def processes(command: Sequence[str], count: int) -> Iterator[None]:
    """Have so many more processes meanwhile."""
    program = shutil.which(command[0]) or command[0]
    started = [os.posix_spawn(program, list(command), os.environ) for _ in range(count)]
    try:
        yield
    finally:
        for pid in started:
            os.kill(pid, 9)
            os.waitpid(pid, 0)


def ratio(ours: Sequence[Run], others: Sequence[Run]) -> Run:
    """The median of the ratios pair by pair."""
    pairs = list(zip(ours, others, strict=True))
    return Run(
        statistics.median(one.wall / other.wall for one, other in pairs),
        statistics.median(one.processor / other.processor for one, other in pairs),
    )


def measure(commands: Mapping[str, tuple[Sequence[str], Mapping[str, str]]], pairs: int) -> bool:
    """Measure all commands in turns and print; whether every target is met."""
    rounds = [{name: run(*what) for name, what in commands.items()} for _ in range(pairs)]
    runs = {name: [one[name] for one in rounds] for name in commands}
    for name, all_runs in runs.items():
        wall, processor = (statistics.median(column) for column in zip(*all_runs, strict=True))
        print(f"  {name:<24} median {wall:7.1f} ms, of processors {processor:7.1f} ms")
    *_, with_models = (name for name in commands if name.startswith("probe"))
    compared = [("probe", other, target) for other, target in TARGETS.items()]
    met = True
    for ours, other, target in (*compared, (with_models, "nvitop", TARGET_WITH_MODELS)):
        found = ratio(runs[ours], runs[other])
        met &= found.wall <= target
        print(
            f"  {ours} / {other}: {found.wall:.2f} (target <= {target}), of processors {found.processor:.2f}"
        )
    return met


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=15, help="how many rounds of runs")
    parser.add_argument("--models", type=int, default=1000, help="how many models the cache holds")
    parser.add_argument("--processes", type=int, nargs="+", default=[50, 3000], help="how many sleep beside")
    parser.add_argument("--nvitop", help="the program, in an environment of its own")
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    arguments = parser.parse_args()
    for loaded in (gpu_agent.__file__, psutil.__file__):
        compileall.compile_dir(Path(loaded).parent, quiet=2)  # as pip does when it installs
    compileall.compile_file(pynvml.__file__, quiet=2)  # uv does not
    met = []
    with tempfile.TemporaryDirectory() as temporary:
        nvitop = arguments.nvitop or install_nvitop(Path(temporary) / "environment")
        fake = FakeNvml(Path(temporary), gpus=8)
        fake.unset("log")
        hub = Path(temporary) / "hub"
        make_cache(hub, arguments.models, files_each=20)
        given = {**os.environ, **fake.environment(), "HOME": f"{temporary}/home"}
        without = {name: value for name, value in given.items() if not is_secret(name)}
        stocked = {**without, "HF_HUB_CACHE": str(hub)}
        if (found(without), found(stocked)) != (0, arguments.models):
            raise SystemExit(
                "the probe found other models than there are: its time means nothing. "
                "On a machine that is too busy for its budget, ask for fewer --models"
            )
        commands = {
            "probe": (OURS, without),
            f"probe, {arguments.models} models": (OURS, stocked),
            "bare pynvml": (BARE, without),
            "nvitop": ((nvitop, "-1"), without),
        }
        for what in commands.values():
            run(*what)
        for count in arguments.processes:
            for busy in (0, 1):
                print(f"{count} sleeping processes, {busy} busy")
                with ExitStack() as around:
                    around.enter_context(processes(("sleep", "infinity"), count))
                    around.enter_context(processes((sys.executable, "-c", "while True: pass"), busy))
                    met.append(measure(commands, arguments.pairs))
    return int(arguments.check and not all(met))


if __name__ == "__main__":
    sys.exit(main())
