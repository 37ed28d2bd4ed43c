"""What a reading of 8 fake GPUs costs: CPU time of the NVML child and of the parent, and calls to the driver.

    python benchmarks/probe_reading.py [--readings 400] [--rounds 5] [--against OTHER/agent] [--check]

One child is read again and again with its events; `--against` reads a second source tree in turns with this
one, so that the machine's moods hit both alike. Linux only. `--check` exits 1 when this tree's reading
costs more than the target.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from gpu_agent.probe.health.tracker import HealthTracker
from gpu_agent.probe.nvml.report import parse_answer
from tests.nvml_fake.child import ChildUnderTest, child_of
from tests.nvml_fake.control import FakeNvml

GPUS = 8
TARGET_RATIO = 1.25
WARM_UP = 20
"""Readings before the first measured one: the slow values and the unsupported getters are then known."""
COUNTED_READINGS = 20
"""Readings over which calls to the driver are counted: a multiple of what slow values take turns in."""


@dataclass(slots=True)
class Cost:
    """CPU microseconds of each round's mean reading, and driver calls."""

    child_us: list[float] = field(default_factory=list)
    parent_us: list[float] = field(default_factory=list)
    calls: float = 0.0

    def __str__(self) -> str:
        child, parent = statistics.median(self.child_us), statistics.median(self.parent_us)
        return f"child {child:7.0f} us, parent {parent:6.0f} us, {self.calls:6.1f} calls a reading"


def child_cpu_us(pid: int) -> float:
    """CPU time that a process has used, by the kernel's count in nanoseconds."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1000


@contextmanager
def reader(folder: Path, source: str | None) -> Iterator[tuple[FakeNvml, ChildUnderTest]]:
    """A child of this source tree, or of another, over a machine of its own."""
    folder.mkdir()
    fake = FakeNvml(folder, gpus=GPUS)
    environment = fake.environment() | ({} if source is None else {"PYTHONPATH": source})
    with child_of(environment) as child:
        for _ in range(WARM_UP):
            child.read(events=True)
        yield fake, child


def count_calls(fake: FakeNvml, child: ChildUnderTest) -> float:
    """Calls to the driver for one reading, on average."""
    before = len(fake.calls())
    for _ in range(COUNTED_READINGS):
        child.read(events=True)
    calls = (len(fake.calls()) - before) / COUNTED_READINGS
    fake.unset("log")
    return calls


def measure(child: ChildUnderTest, cost: Cost, readings: int) -> None:
    """One round."""
    tracker, parent_ns = HealthTracker(), 0
    before = child_cpu_us(child.process.pid)
    for number in range(readings):
        child.send({"id": number, "request": "read", "events": True})
        line = child.process.stdout.readline()  # type: ignore[union-attr]
        began = time.process_time_ns()
        answer = parse_answer(line)
        if answer is None or len(answer.report.gpus) != GPUS:
            raise RuntimeError(f"no reading of {GPUS} GPUs: {line!r}")
        tracker.observe(answer.report, now_wall=number * 5.0, now_mono=number * 5.0)
        parent_ns += time.process_time_ns() - began
    cost.child_us.append((child_cpu_us(child.process.pid) - before) / readings)
    cost.parent_us.append(parent_ns / 1000 / readings)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--readings", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", help="the agent folder of another source tree")
    parser.add_argument("--check", action="store_true", help="exit 1 when the target is missed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        mine, other = Cost(), Cost()
        with reader(Path(temporary) / "mine", None) as (fake, child):
            mine.calls = count_calls(fake, child)
            if options.against is None:
                for _ in range(options.rounds):
                    measure(child, mine, options.readings)
                print(f"this tree  {mine}")
                return 0
            with reader(Path(temporary) / "other", os.path.abspath(options.against)) as (older, elder):  # noqa: PTH100
                other.calls = count_calls(older, elder)
                for _ in range(options.rounds):
                    measure(child, mine, options.readings)
                    measure(elder, other, options.readings)
    ratio = statistics.median(one / two for one, two in zip(mine.child_us, other.child_us, strict=True))
    print(f"this tree  {mine}\nother tree {other}")
    print(f"ratio of the child's CPU time {ratio:.2f} (target <= {TARGET_RATIO})")
    return int(options.check and ratio > TARGET_RATIO)


if __name__ == "__main__":
    sys.exit(main())
