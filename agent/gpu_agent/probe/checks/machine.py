"""The admission checks of this machine, each run to its end: blocks, and is called in a thread.

`GpuCheck` runs what checks one GPU. `check_simulated` stands in for a machine that does not exist: its GPUs
fail where their schedule has a fault.
"""

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from gpu_agent.probe.checks.judgement import (
    ASLEEP,
    DOES_NOT_APPLY,
    Expected,
    Result,
    judge_child,
    judge_hook,
    judge_reading,
    same_of_both,
    will_never_be_read,
)
from gpu_agent.probe.checks.process import CheckProcesses, Ended, Unfinished
from gpu_agent.wire.inventory import Gpu, GpuReport

CHILD_COMMAND: tuple[str, ...] = (sys.executable, "-P", "-m", "gpu_agent.probe.checks.child")

_GT_S_OF_GENERATION = {1: 2.5, 2: 5.0, 3: 8.0, 4: 16.0, 5: 32.0, 6: 64.0}
_SHARE_OF_THE_LINK = 0.82
_BITS_IN_A_BYTE = 8

RunChild = Callable[[Gpu, str | None, threading.Event], Ended | Unfinished]
"""Runs the child for a GPU; the text says why nothing may be copied, None where it may."""


def real_child(processes: CheckProcesses, *, seconds: float, sys_dir: Path) -> RunChild:
    """Return what checks a GPU of this machine."""

    def run(gpu: Gpu, why_no_copies: str | None, stop: threading.Event) -> Ended | Unfinished:
        asked = {
            "uuid": gpu.uuid,
            "pci_bus_id": gpu.pci_bus_id,
            "sys_dir": str(sys_dir),
            "copies": why_no_copies is None,
            "why_no_copies": why_no_copies,
            "process_name": processes.name,
        }
        return processes.run((*CHILD_COMMAND, json.dumps(asked)), deadline_seconds=seconds, stop=stop)

    return run


def simulated_child(gpu: Gpu, why_no_copies: str | None, _stop: threading.Event) -> Ended | Unfinished:
    """Answer for a simulated GPU by its reading: one with a fault fails, and a narrow link is slow."""
    link = {
        "width": gpu.pcie_width,
        "max_width": gpu.pcie_width_max,
        "speed": _GT_S_OF_GENERATION.get(gpu.pcie_generation or 0),
        "max_speed": _GT_S_OF_GENERATION.get(gpu.pcie_generation_max or 0),
        "under_load": True,
    }
    rate = (gpu.pcie_width or 0) * (link["speed"] or 0) / _BITS_IN_A_BYTE * _SHARE_OF_THE_LINK
    copies: dict[str, object] = {"to_gb_s": round(rate, 1), "from_gb_s": round(rate, 1)}
    if why_no_copies is not None:
        copies = {"not_run": why_no_copies}
    elif gpu.reasons:
        copies = {"problem": f"the GPU has a fault: {', '.join(one.code for one in gpu.reasons)}"}
    return Ended(returncode=0, output=json.dumps({"link": link, "copies": copies}))


def check_gpu(
    gpu: Gpu, *, run: RunChild, expected: Expected, why_no_copies: str | None, stop: threading.Event
) -> list[Result]:
    """Check one GPU that is not in use; one that sleeps is woken by the copies alone."""
    read = list(judge_reading(gpu, expected))
    if not gpu.health.usable:
        why = ", ".join(one.code for one in gpu.reasons)
        detail = f"the GPU is {gpu.health}: {why}"
        return [*read, *same_of_both(gpu, ok=False, detail=detail)]
    never = _why_never_copied(gpu)
    if never is not None:
        why_no_copies = f"{DOES_NOT_APPLY}: {never}"
    elif gpu.processes is None and not gpu.asleep:
        why_no_copies = why_no_copies or "it is not known whether a process uses it"
    if gpu.asleep and never is not None:
        return [*read, *same_of_both(gpu, ok=True, detail=ASLEEP)]
    if gpu.asleep and why_no_copies is not None:
        return [*read, *same_of_both(gpu, ok=None, detail=f"the GPU sleeps, and {why_no_copies}")]
    return [*read, *judge_child(gpu, run(gpu, why_no_copies, stop), expected)]


def run_hook(processes: CheckProcesses, expected: Expected, stop: threading.Event) -> Result:
    """Run the owner's command."""
    ended = processes.run(expected.hook, deadline_seconds=expected.hook_seconds, stop=stop)
    return judge_hook(ended, expected)


def why_not_checked(gpu: Gpu, report: GpuReport) -> str | None:
    """Say why a GPU must not be checked now, as far as a reading shows; None where it may be."""
    related = [one for one in report.gpus if gpu.uuid in (one.uuid, one.parent_uuid)]
    pids = {process.pid for one in related for process in one.processes or ()}
    return f"{len(pids)} process{'es use' if len(pids) > 1 else ' uses'} it" if pids else None


def why_no_hook(report: GpuReport) -> str | None:
    """Name a GPU that keeps the hook from running, and say why; None where none does."""
    for gpu in report.checked:
        why = why_not_checked(gpu, report)
        if why is not None:
            return f"GPU {gpu.uuid if gpu.index is None else gpu.index} is in use: {why}"
    return None


def _why_never_copied(gpu: Gpu) -> str | None:
    if gpu.vendor != "nvidia":
        return "only GPUs of NVIDIA are measured"
    if gpu.mig_enabled:
        return "its MIG devices are not measured"
    if gpu.processes is None and not gpu.asleep and "processes" in gpu.unknowns:
        return "the driver does not list its processes" if will_never_be_read(gpu, "processes") else None
    return None
