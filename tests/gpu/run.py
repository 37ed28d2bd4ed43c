"""The comparison's three parts, and its table."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tests.gpu import long_run
from tests.gpu.comparison import FIELDS, Comparison, compare, compare_first_memory_call
from tests.gpu.nvidia_smi import look, why_absent
from tests.gpu.recording import record_document

IDLE_LOOKS, LOAD_LOOKS = 3, 3
SETTLE_SECONDS = 2.0
"""A GPU's own averages of utilization and power cover up to a second."""
TIMEOUT_SECONDS = 120.0

_FIRST_CALL = """
import json, pynvml
pynvml.nvmlInit()
handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
used = {pynvml.nvmlDeviceGetUUID(h): pynvml.nvmlDeviceGetMemoryInfo(h).used >> 20 for h in handles}
print(json.dumps(used))
"""


def run(*, minutes: float, record: str | None) -> int:
    """Run all parts; returns the exit code."""
    if why := why_absent():
        print(why)
        return 2
    disagrees = _show("as they are", _idle())
    document = _probe()
    for gpu in document["gpus"]:
        if not gpu["parent_uuid"] and not gpu["mig_enabled"]:
            disagrees |= _under_load(gpu["uuid"])
    result = asyncio.run(long_run.run(minutes))
    title = f"long run: {result.readings} readings, the slowest took {result.slowest_ms:.0f} ms"
    disagrees |= _show(title, result.comparisons)
    for problem in result.problems:
        print(f"PROBLEM  {problem}")
    if record is not None:
        print(f"recorded in {record_document(document, record)}")
    return 1 if disagrees or result.problems else 0


def _idle() -> Iterator[Comparison]:
    for _ in range(IDLE_LOOKS):
        yield from _compare_once()
    before = look(FIELDS)
    done = subprocess.run(
        [sys.executable, "-c", _FIRST_CALL],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    if done.returncode:
        print(f"NVML's first memory call failed: {done.stderr.strip().splitlines()[-1]}")
        return
    yield from compare_first_memory_call(json.loads(done.stdout), before, look(FIELDS))


def _under_load(uuid: str) -> bool:
    with _load(uuid) as why_idle:
        if why_idle:
            print(f"\n{uuid} under load: not compared ({why_idle})")
            return False
        time.sleep(SETTLE_SECONDS)
        compared = [one for _ in range(LOAD_LOOKS) for one in _compare_once() if one.uuid == uuid]
    return _show(f"{uuid} under load", compared)


def _compare_once() -> Iterable[Comparison]:
    before = look(FIELDS)
    document = _probe()
    return list(compare(document, before, look(FIELDS)))


def _probe() -> dict[str, Any]:
    command = [sys.executable, "-m", "gpu_agent.cli", "probe", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@contextmanager
def _load(uuid: str) -> Iterator[str]:
    """Keep a GPU busy until the block ends; gives the reason why it is not, or nothing."""
    command = [sys.executable, "-m", "tests.gpu.cuda_load"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": uuid}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline().strip()
        yield "" if said == "busy" else said or "the load ended at once"
        assert process.stdin is not None
        process.stdin.close()


def _show(title: str, comparisons: Iterable[Comparison]) -> bool:
    """Print one line for each fact, and each disagreement; returns whether there is one."""
    by_fact: dict[str, list[Comparison]] = {}
    for one in comparisons:
        by_fact.setdefault(one.fact, []).append(one)
    print(f"\n{title}\n{'fact':34} {'compared':>8} {'differ':>6} {'apart':>8}  probe | nvidia-smi, the last")
    for fact, compared in by_fact.items():
        print(_line(fact, compared))
    wrong = [one for compared in by_fact.values() for one in compared if not one.agrees]
    for one in wrong:
        print(f"DIFFERS  {one}")
    return bool(wrong)


def _line(fact: str, compared: Sequence[Comparison]) -> str:
    last, wrong = compared[-1], sum(not one.agrees for one in compared)
    apart = max(one.apart for one in compared)
    theirs = ", then ".join(dict.fromkeys(_short(one) for one in last.theirs))
    return f"{fact:34} {len(compared):8} {wrong:6} {apart:8.1f}  {_short(last.ours)} | {theirs}"


def _short(value: object) -> str:
    text = str(value)
    if isinstance(value, frozenset):
        text = ", ".join(map(str, sorted(value))) or "none"
    elif isinstance(value, float):
        text = f"{value:g}"
    return text if len(text) <= 40 else f"{text[:37]}…"
