"""Thousands of misbehaving drivers, and what the probe makes of each.

Most cases go through one child that stays; every so often one goes the whole way, through the
daemon's probe and the command's. Nothing may raise, print a traceback, or take longer than its
deadline, and each answer must hold what `verdict` asks. Run it as `make drivers CASES=6000`; a case that
fails ends it with its seed. The same first seed plays the same cases, since each child remembers.
"""

import argparse
import asyncio
import os
import random
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from gpu_agent.probe.health.tracker import HealthTracker, MissedReading
from gpu_agent.probe.nvml.client import ChildPolicy, NvmlClient
from gpu_agent.probe.nvml.process import CHILD_COMMAND, close_stdin, send_request, start_child
from gpu_agent.probe.nvml.report import parse_answer, read_once
from gpu_agent.wire.inventory import GpuReport, Outcome
from tests.nvml_fake.control import FakeNvml, built_library
from tests.nvml_fake.random_machines import Machine, machine
from tests.nvml_fake.verdict import judge

DEADLINE_SECONDS = 0.6
"""Of the whole way; a child that is started must come up within it on a busy machine."""
SLACK_SECONDS = 2.0
"""What a busy machine may add to a deadline before it counts as missed."""
ANSWER_SECONDS = 20.0
"""A child that may not hang and takes longer is stuck by itself."""
HANG_SECONDS = 0.05
WHOLE_WAY_EVERY = 40
KEPT_FOR = 8
SCHEMA_EVERY = 10
SURROUNDINGS_CHANGE = 0.1
OLDER = (
    *("nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetFieldValues"),
    *("nvmlDeviceGetComputeRunningProcesses_v2", "nvmlDeviceGetCurrentClocksEventReasons"),
    *("nvmlDeviceGetMigMode", "nvmlSystemGetCudaDriverVersion_v2", "nvmlEventSetWait_v2"),
    *("nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetRemappedRows"),
    *("nvmlDeviceGetGpuFabricInfoV", "nvmlDeviceGetGpuFabricInfo", "nvmlDeviceGetSramEccErrorStatus"),
)
VISIBLE = (None, None, "", "0", "1,0", "GPU-0", "MIG-", "0,0", "-1", "nonsense", "9" * 40)


class BrokenPromiseError(AssertionError):
    """The probe did what it must never do."""


@dataclass(slots=True)
class Tally:
    """What a campaign came to."""

    cases: int = 0
    whole_way: int = 0
    ended: int = 0
    hung: int = 0
    gpus: int = 0
    slowest_ms: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.cases} drivers ({self.whole_way} of them through the whole probe): {self.gpus} GPUs "
            f"read, {self.ended} deaths and {self.hung} hangs survived, "
            f"slowest answer {self.slowest_ms:.0f} ms"
        )


class Campaign:
    """One child after the other over machines that change under it."""

    def __init__(self, folder: Path) -> None:
        self.tally = Tally()
        self._root = folder / "root"
        self._root.mkdir()
        self._fakes = [
            FakeNvml(_made(folder / name), library=built_library(*without))
            for name, without in (("new", ()), ("old", OLDER))
        ]
        self._fake = self._fakes[0]
        self._errors = (folder / "errors").open("w+b")
        self._child: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._tracker = HealthTracker()
        self._loop = asyncio.Runner()
        self._probe: NvmlClient | None = None
        self._last_id = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for fake in self._fakes:
            fake.become(("count 0",))
        if self._probe is not None:
            self._loop.run(self._probe.close())
        self._loop.close()
        self._end_child()
        self._errors.close()

    def play(self, seed: int) -> None:
        """One case; raises `BrokenPromiseError` with its seed."""
        dice = random.Random(seed)
        try:
            self._play(dice, machine(dice), seed)
        except Exception as error:
            raise BrokenPromiseError(f"seed {seed}: {type(error).__name__}: {error}") from error

    def _play(self, dice: random.Random, drawn: Machine, seed: int) -> None:
        self.tally.cases += 1
        self._surroundings(dice)
        child = self._child or self._start(dice)
        self._fake.become(drawn.lines)
        if seed % WHOLE_WAY_EVERY == 0:
            self.tally.whole_way += 1
            self._through_the_command()
            self._through_the_daemon()
        self._through_the_child(child, dice, drawn, seed=seed)
        said = self._said()
        if b"Traceback" in said:
            raise BrokenPromiseError(said.decode("utf-8", "replace"))

    def _through_the_child(
        self, child: subprocess.Popen[bytes], dice: random.Random, drawn: Machine, *, seed: int
    ) -> None:
        self._last_id += 1
        began = time.monotonic()
        more = {
            "reopen": dice.random() < 1 / 3,
            "events": dice.random() < 2 / 3,
            "whole": dice.random() < 1 / 5,
        }
        send_request(child, self._last_id, more)
        line = self._line(child, HANG_SECONDS if drawn.may_hang else ANSWER_SECONDS)
        if line is None and drawn.may_hang:
            self.tally.hung += 1
            self._fake.become(line for line in drawn.lines if not line.startswith("hang "))
            line = self._line(child, ANSWER_SECONDS)
        if line is None:
            raise BrokenPromiseError("the child neither answers nor ends")
        if not line:
            self._end_child()
            if not drawn.may_end:
                said = self._said()
                raise BrokenPromiseError(
                    f"the child ended ({child.returncode}), and no call ends it: {said!r}"
                )
            self.tally.ended += 1
            return
        self.tally.slowest_ms = max(self.tally.slowest_ms, (time.monotonic() - began) * 1000)
        answer = parse_answer(line)
        if answer is None or answer.id != self._last_id:
            raise BrokenPromiseError(f"no answer: {line!r}")
        self.tally.gpus += len(answer.report.gpus)
        if seed % KEPT_FOR == 0:
            self._tracker = HealthTracker()  # it knows every GPU that it ever saw
        judge(answer.report, self._tracker, now=float(seed), by_schema=seed % SCHEMA_EVERY == 0)

    def _through_the_command(self) -> None:
        began = time.monotonic()
        report = read_once(start_child(env=self._fake.environment()), DEADLINE_SECONDS)
        self._in_time(began)
        judge(report, HealthTracker(), now=began)

    def _through_the_daemon(self) -> None:
        if self._probe is None:
            policy = ChildPolicy(
                restart_seconds=0.0,
                restart_ceiling_seconds=0.0,
                end_hung_after_seconds=1.0,
                end_starting_after_seconds=1.0,
            )
            self._probe = NvmlClient(
                deadline_seconds=DEADLINE_SECONDS, env=self._fakes[0].environment(), policy=policy
            )
        tracker = HealthTracker()
        for _ in range(2):
            began = time.monotonic()
            result = self._loop.run(self._probe.read())
            self._in_time(began)
            if isinstance(result, GpuReport):
                judge(result, tracker, now=began)
            else:
                assert isinstance(result, MissedReading)
                assert result.detail
                missed = tracker.observe(result, now_wall=began, now_mono=began)
                vouched_for = tracker.age_seconds(began) is not None
                assert vouched_for or missed.outcome is not Outcome.OK

    def _in_time(self, began: float) -> None:
        took = time.monotonic() - began
        if took > DEADLINE_SECONDS + SLACK_SECONDS:
            raise BrokenPromiseError(f"took {took:.2f} s, and its deadline is {DEADLINE_SECONDS} s")

    def _start(self, dice: random.Random) -> subprocess.Popen[bytes]:
        self._fake = dice.choice(self._fakes)
        environment = self._fake.environment()
        if (listed := dice.choice(VISIBLE)) is not None:
            environment["CUDA_VISIBLE_DEVICES"] = listed
        self._child = subprocess.Popen(
            (*CHILD_COMMAND, str(self._root)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
        )
        return self._child

    def _end_child(self) -> None:
        child, self._child, self._unread = self._child, None, b""
        if child is not None:
            close_stdin(child)
            child.wait(ANSWER_SECONDS)
            if child.stdout is not None:
                child.stdout.close()

    def _line(self, child: subprocess.Popen[bytes], seconds: float) -> bytes | None:
        """The line with the answer, b"" at the end of the child, None when nothing comes in time."""
        assert child.stdout is not None
        pipe = child.stdout.fileno()
        while True:
            line, ended, rest = self._unread.partition(b"\n")
            if ended:
                self._unread = rest
                if not line.startswith(b'{"events":'):
                    return line
                continue
            if not select.select([pipe], [], [], seconds)[0]:
                return None
            came = os.read(pipe, 1 << 16)
            if not came:
                self._unread = b""
                return b""
            self._unread += came

    def _said(self) -> bytes:
        """What children said on stderr since the last look."""
        said = os.pread(self._errors.fileno(), 1 << 20, 0)
        self._errors.truncate(0)
        return said

    def _surroundings(self, dice: random.Random) -> None:
        """Now and then, change what the kernel reports of power, memory, the module and the device nodes."""
        if dice.random() > SURROUNDINGS_CHANGE:
            return
        for index in range(8):
            status = dice.choice(("active\n", "active\n", "suspended\n", ""))
            self._tell(f"sys/bus/pci/devices/0000:{0x1A + index:02x}:00.0/power/runtime_status", status)
        memory = dice.choice(("MemTotal: 1048576 kB\nMemAvailable: 524288 kB\n", "MemTotal: x kB\n", ""))
        self._tell("proc/meminfo", memory)
        minor = dice.choice(("Device Minor: \t 0\n", "Device Minor: \t 1\n", "Device Minor:\n", "\xff"))
        self._tell("proc/driver/nvidia/gpus/0000:1a:00.0/information", minor)
        self._tell("dev/nvidia0", "")
        for path in ("proc/driver/nvidia/version", "dev/nvidiactl", "dev/nvidia1", ".dockerenv"):
            if dice.random() < 1 / 2:
                self._tell(path, "")
            else:
                (self._root / path).unlink(missing_ok=True)

    def _tell(self, path: str, text: str) -> None:
        file = self._root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="latin-1")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def run(folder: Path, seeds: Iterable[int], *, every: int = 0) -> Tally:
    """Play all seeds; prints the tally after each `every` cases."""
    with Campaign(folder) as campaign:
        for seed in seeds:
            campaign.play(seed)
            if every and campaign.tally.cases % every == 0:
                print(campaign.tally, flush=True)
        return campaign.tally


def main() -> int:
    """Play the requested number of cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=6_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tally = run(folder, range(options.seed, options.seed + options.cases), every=1_000)
    print(f"{tally}; {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
