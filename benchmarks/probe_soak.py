"""A day of polls in minutes: whether the probe and its child keep what they hold for ever.

    python benchmarks/probe_soak.py [--polls 20000] [--check]

Polls 8 GPUs of the fake NVML library through the daemon's own path (child process, health, document
and heartbeat), without pause: at one poll in 5 s, 20 000 are 28 hours. Three stretches: one child that lives
long, the library opened and closed at every poll because one GPU is lost, and children that crash, exit
or are ended every 100 polls. Open files, threads and memory of both processes are printed as they go: what
each has of its own (anonymous), since its share of common pages grows whenever another program ends.
Linux only. `--check` exits 1 when they are not flat, or the child is larger than its target.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from gpu_agent.probe.health.tracker import HealthTracker, MissedReading
from gpu_agent.probe.nvml.client import ChildPolicy, NvmlClient
from gpu_agent.probe.snapshot import Sources, take, to_document
from gpu_agent.wire.declaration import Owner, declare
from tests.nvml_fake.control import FakeNvml

CHILD_TARGET_MIB = 18.0
CHILD_POLLS = 100
"""The target is for a child that has answered so many polls."""
GROWTH_MIB = 1.0
"""What noise of the allocator may add between the first sample of a stretch and its last."""
SAMPLES = 6
RESTART_EVERY = 100
DEATHS = (("crash", "nvmlDeviceGetPowerUsage", "*"), ("exit", "nvmlDeviceGetPowerUsage", "*", 1), None)
STRETCHES = {"one child": 0.5, "library opened again": 0.2, "children that die": 0.3}
"""What each stretch has of the polls."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a process holds."""

    files: int
    threads: int
    pss_mib: float
    own_mib: float

    @classmethod
    def by(cls, pid: int) -> "Held":
        """Look at a process, as the kernel counts."""
        process = Path(f"/proc/{pid}")
        lines = (process / "smaps_rollup").read_text().splitlines()[1:]
        kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        return cls(
            files=sum(1 for _ in (process / "fd").iterdir()),
            threads=sum(1 for _ in (process / "task").iterdir()),
            pss_mib=kib["Pss"] / 1024,
            own_mib=(kib["Anonymous"] + kib["Swap"]) / 1024,
        )

    def __str__(self) -> str:
        return f"{self.files:3} files {self.threads:2} threads {self.own_mib:6.1f} MiB"


class Soak:
    """One probe over a fake machine, polled again and again."""

    def __init__(self, folder: Path) -> None:
        self.fake = FakeNvml(folder, gpus=8)
        self.fake.unset("log")
        policy = ChildPolicy(restart_seconds=0.0, restart_ceiling_seconds=0.0, reopen_lost_after_seconds=0.0)
        self.probe = NvmlClient(deadline_seconds=20.0, env=self.fake.environment(), policy=policy)
        self.deaths = 0
        self._keeper = HealthTracker()
        self._sources = Sources()

    @property
    def child(self) -> int:
        """The process id of the child that answers now."""
        conversation = self.probe._child  # noqa: SLF001 - no one else needs to know it
        if conversation is None:
            raise RuntimeError("no child is running")
        return conversation.process.pid

    async def poll(self) -> None:
        """One poll, all the way to what is reported."""
        result = await self.probe.read()
        now = time.monotonic()
        report = self._keeper.observe(result, now_wall=time.time(), now_mono=now)
        inventory = take(report, self._sources)
        to_document(inventory)
        declare(inventory, Owner())

    async def end_child(self, how: tuple[object, ...] | None) -> None:
        """Let the child die, and be replaced."""
        self.deaths += 1
        if how is None:
            self.probe._child.process.terminate()  # type: ignore[union-attr]  # noqa: SLF001
        else:
            self.fake.set(*how)
            if not isinstance(await self.probe.read(), MissedReading):
                raise RuntimeError("the child answered, and should have died")
            self.fake.unset(str(how[0]))
        async with asyncio.timeout(20):
            while isinstance(await self.probe.read(), MissedReading):
                pass


async def stretch(soak: Soak, name: str, polls: int) -> list[tuple[Held, Held]]:
    """One stretch; gives what parent and child held at a few moments of it."""
    samples: list[tuple[Held, Held]] = []
    moments = set(range(polls // SAMPLES, polls + 1, max(1, polls // SAMPLES)))
    if name == "library opened again":
        soak.fake.set("error", "nvmlDeviceGetName", 7, "GPU_IS_LOST")
    for number in range(1, polls + 1):
        await soak.poll()
        if name == "children that die" and number % RESTART_EVERY == 0:
            await soak.end_child(DEATHS[number // RESTART_EVERY % len(DEATHS)])
            await settle(soak)
        if number in moments:
            parent, child = Held.by(os.getpid()), Held.by(soak.child)
            samples.append((parent, child))
            print(f"{name:<20} {number:6} polls   parent {parent}   child {child}", flush=True)
    soak.fake.unset("error")
    return samples


async def settle(soak: Soak) -> None:
    """Bring a new child to the age at which every child is measured."""
    for _ in range(3):
        await soak.poll()


def troubles(name: str, samples: Sequence[tuple[Held, Held]]) -> Iterator[str]:
    """Say what grew."""
    for whose, column in zip(("parent", "child"), zip(*samples, strict=True), strict=True):
        for what in ("files", "threads"):
            counts = [getattr(one, what) for one in column]
            if max(counts) - min(counts) > 1:
                yield f"{name}: {what} of the {whose} went from {counts[0]} to {counts[-1]}"
        growth = column[-1].own_mib - column[0].own_mib
        if growth > GROWTH_MIB:
            yield f"{name}: the {whose} grew by {growth:.1f} MiB"


async def run(polls: int) -> list[str]:
    """Soak, and say what is wrong."""
    found: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        soak = Soak(Path(temporary))
        began = time.monotonic()
        for _ in range(CHILD_POLLS):
            await soak.poll()
        young = Held.by(soak.child)
        print(f"child after {CHILD_POLLS} polls: {young.pss_mib:.1f} MiB PSS (target {CHILD_TARGET_MIB:.0f})")
        if young.pss_mib > CHILD_TARGET_MIB:
            found.append(f"the child is larger than {CHILD_TARGET_MIB:.0f} MiB")
        for name, share in STRETCHES.items():
            found += troubles(name, await stretch(soak, name, round(polls * share)))
        took = time.monotonic() - began
        each_ms = 1000 * took / polls
        print(f"{polls} polls, {soak.deaths} deaths of the child, {took:.0f} s, {each_ms:.1f} ms each")
        await soak.probe.close()
    return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--polls", type=int, default=20_000)
    parser.add_argument("--check", action="store_true", help="exit 1 when something grew")
    arguments = parser.parse_args()
    found = asyncio.run(run(arguments.polls))
    print("\n".join(found) if found else "flat: nothing grew")
    return int(arguments.check and bool(found))


if __name__ == "__main__":
    sys.exit(main())
