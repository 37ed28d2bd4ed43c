"""How long `gpu-agent probe --json` takes with 8 fake GPUs, against `nvitop -1` in the same run.

    python benchmarks/probe_wall.py [--pairs 15] [--check]

Both talk to the same fake NVML library; runs alternate, so that the machine's moods hit both alike. The
figure is the median of the ratios pair by pair. `--check` exits 1 when it is over the target.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.nvml_fake.control import FakeNvml

TARGET_RATIO = 1.5
BINARIES = Path(sys.executable).parent


def wall_ms(command: list[str], environment: dict[str, str]) -> float:
    """Run a command to its end and say how long it took."""
    started = time.perf_counter()
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - started) * 1000


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=15, help="how many pairs of runs")
    parser.add_argument("--check", action="store_true", help="exit 1 when the target is missed")
    arguments = parser.parse_args()
    ours = [str(BINARIES / "gpu-agent"), "probe", "--json"]
    baseline = [str(BINARIES / "nvitop"), "-1"]
    with tempfile.TemporaryDirectory() as temporary:
        fake = FakeNvml(Path(temporary), gpus=8)
        fake.unset("log")
        environment = {**os.environ, **fake.environment(), "HOME": temporary}
        wall_ms(ours, environment)
        wall_ms(baseline, environment)
        pairs = [(wall_ms(ours, environment), wall_ms(baseline, environment)) for _ in range(arguments.pairs)]
    ratio = statistics.median(mine / other for mine, other in pairs)
    print(f"gpu-agent probe --json, 8 GPUs  median {statistics.median(mine for mine, _ in pairs):6.1f} ms")
    print(f"baseline: nvitop -1             median {statistics.median(other for _, other in pairs):6.1f} ms")
    print(f"ratio, median of pairs          {ratio:.2f} (target <= {TARGET_RATIO})")
    return int(arguments.check and ratio > TARGET_RATIO)


if __name__ == "__main__":
    sys.exit(main())
