"""The daemon's way of reading over minutes: one NVML child, asked again and again, compared each time.

Besides the figures: the child must stay the same process, open no more and more files, not grow, miss no
reading, and report the Xids that the kernel's log has, no more and no fewer.
"""

import asyncio
import json
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil

from gpu_agent.probe.health.tracker import MissedReading
from gpu_agent.probe.nvml.client import NvmlClient
from gpu_agent.probe.snapshot import Sources, take, to_document
from tests.gpu.comparison import FIELDS, Comparison, compare
from tests.gpu.nvidia_smi import look

EVERY_SECONDS = 5.0
LEAST_READINGS = 3
MAX_GROWTH_MB = 8.0
MAX_MORE_FILES = 4
_MIB = 1 << 20
_XID = re.compile(r"NVRM: Xid \(PCI:(?P<bus_id>[0-9a-fA-F:]+)[^)]*\): (?P<number>\d+)")
_XID_EVENT = "xid_"


@dataclass
class LongRun:
    """What happened in a run."""

    comparisons: list[Comparison] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    readings: int = 0
    slowest_ms: float = 0.0
    document: dict[str, Any] = field(default_factory=dict)
    """The last one."""


@dataclass(frozen=True, slots=True)
class _Child:
    pid: int
    files: int
    memory_mb: float


async def run(minutes: float, *, every_seconds: float = EVERY_SECONDS) -> LongRun:
    """Read for so long, and compare each reading."""
    client, result, sources = NvmlClient(), LongRun(), Sources()
    logged, reported = _logged_xids(), Counter[tuple[str, int]]()
    children: list[_Child] = []
    end = time.monotonic() + minutes * 60
    try:
        while len(children) < LEAST_READINGS or time.monotonic() < end:
            before = look(FIELDS)
            report = await client.read()
            after = look(FIELDS)
            if isinstance(report, MissedReading):
                result.problems.append(f"a reading was missed: {report}")
                continue
            if not result.readings:
                print(
                    f"\nlong run for {minutes:g} min: the first reading has {len(report.gpus)} GPUs",
                    flush=True,
                )
            result.readings += 1
            result.slowest_ms = max(result.slowest_ms, report.took_ms)
            result.document = json.loads(json.dumps(to_document(take(report, sources))))
            result.comparisons += compare(result.document, before, after)
            reported.update(_reported_xids(result.document))
            children.append(_child())
            await asyncio.sleep(min(every_seconds, minutes * 60 / LEAST_READINGS))
    finally:
        await client.close()
    result.problems += _child_problems(children)
    result.comparisons += _compare_xids(logged, reported)
    return result


def _child() -> _Child:
    (process,) = psutil.Process().children()
    return _Child(process.pid, process.num_fds(), process.memory_info().rss / _MIB)


def _child_problems(children: list[_Child]) -> Iterator[str]:
    first, last = children[min(1, len(children) - 1)], children[-1]
    if len({child.pid for child in children}) > 1:
        yield f"the child was started again: {sorted({child.pid for child in children})}"
    elif last.files > first.files + MAX_MORE_FILES:
        yield f"the child's open files grew from {first.files} to {last.files}"
    elif last.memory_mb > first.memory_mb + MAX_GROWTH_MB:
        yield f"the child grew from {first.memory_mb:.0f} to {last.memory_mb:.0f} MiB"


def _reported_xids(document: dict[str, Any]) -> Counter[tuple[str, int]]:
    found: Counter[tuple[str, int]] = Counter()
    for gpu in document["gpus"]:
        for event, count in gpu["events"].items():
            if event.startswith(_XID_EVENT) and gpu["pci_bus_id"]:
                found[_short(gpu["pci_bus_id"]), int(event.removeprefix(_XID_EVENT))] += count
    return found


def _logged_xids() -> Counter[tuple[str, int]] | None:
    """Count the Xids in the kernel's log by GPU and number; None where it may not be read."""
    try:
        done = subprocess.run(["dmesg"], capture_output=True, text=True, timeout=60, check=False)
    except OSError:
        return None
    if done.returncode:
        return None
    found = _XID.finditer(done.stdout)
    return Counter((_short(xid["bus_id"]), int(xid["number"])) for xid in found)


def _short(bus_id: str) -> str:
    """`00000000:1A:00.0` and `0000:1a:00` are one address: `0:1a:00`."""
    domain, bus, device = bus_id.lower().partition(".")[0].split(":")
    return f"{int(domain, 16):x}:{bus}:{device}"


def _compare_xids(
    logged: Counter[tuple[str, int]] | None, reported: Counter[tuple[str, int]]
) -> Iterator[Comparison]:
    now = _logged_xids()
    if logged is None or now is None:
        return
    theirs = dict(now - logged)
    yield Comparison(
        fact="Xids in the kernel's log",
        uuid="all GPUs",
        ours=dict(reported),
        theirs=(theirs, theirs),
        agrees=dict(reported) == theirs,
    )
