"""How long `gpu-agent probe --json` takes with 8 fake GPUs, against `nvitop -1` in the same run.

    python benchmarks/probe_wall.py [--pairs 15] [--models 1000] [--check]

Both talk to the same fake NVML library; runs alternate, so that the machine's moods hit both alike. Ours runs
twice: on a machine without models, and with a hub cache of a thousand, which a cold process must read again.
A figure is the median of the ratios pair by pair. `--check` exits 1 when one is over its target.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.model_scan import make_cache
from tests.nvml_fake.control import FakeNvml

TARGET_RATIO = 1.0
TARGET_RATIO_WITH_MODELS = 1.5
BINARIES = Path(sys.executable).parent
OURS = (str(BINARIES / "gpu-agent"), "probe", "--json")
BASELINE = (str(BINARIES / "nvitop"), "-1")


def wall_ms(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """Run a command to its end and say how long it took."""
    started = time.perf_counter()
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - started) * 1000


def found(environment: Mapping[str, str]) -> int:
    """How many models the probe finds; also warms the disk's pages."""
    done = subprocess.run(OURS, env=environment, stdout=subprocess.PIPE, check=True)
    return len(json.loads(done.stdout)["models"])


def report(name: str, times: Sequence[float], baseline: Sequence[float], *, target: float) -> bool:
    """Print one line; whether the target is met."""
    ratio = statistics.median(mine / other for mine, other in zip(times, baseline, strict=True))
    median = statistics.median(times)
    print(
        f"gpu-agent probe --json, {name:<15} median {median:6.1f} ms, ratio {ratio:.2f} (target <= {target})"
    )
    return ratio <= target


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=15, help="how many rounds of runs")
    parser.add_argument("--models", type=int, default=1000, help="how many models the cache holds")
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        fake = FakeNvml(Path(temporary), gpus=8)
        fake.unset("log")
        hub = Path(temporary) / "hub"
        make_cache(hub, arguments.models)
        without = {**os.environ, **fake.environment(), "HOME": f"{temporary}/home"}
        stocked = {**without, "HF_HUB_CACHE": str(hub)}
        if (found(without), found(stocked)) != (0, arguments.models):
            raise SystemExit("the probe found other models than there are: its time means nothing")
        wall_ms(BASELINE, without)
        rounds = [
            (wall_ms(OURS, without), wall_ms(OURS, stocked), wall_ms(BASELINE, without))
            for _ in range(arguments.pairs)
        ]
    bare, full, baseline = (list(times) for times in zip(*rounds, strict=True))
    print(f"baseline: nvitop -1, 8 GPUs            median {statistics.median(baseline):6.1f} ms")
    met = [
        report("no models", bare, baseline, target=TARGET_RATIO),
        report(f"{arguments.models} models", full, baseline, target=TARGET_RATIO_WITH_MODELS),
    ]
    return int(arguments.check and not all(met))


if __name__ == "__main__":
    sys.exit(main())
