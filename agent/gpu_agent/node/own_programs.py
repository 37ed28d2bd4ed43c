"""Processes on the GPUs that the owner calls his own by the name of their program, and what they start.

It looks names up in `/proc` with a deadline, and touches no process. One that cannot be seen stays as it is.
"""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from gpu_agent.probe.processes import lineage, program
from gpu_agent.runtime.tasks import in_thread
from gpu_agent.wire.inventory import Gpu, GpuProcess, GpuReport

LOOK_SECONDS = 1.0
_LONGEST = 15
"""Bytes of a program's name that the kernel keeps: so it may end within a letter."""


async def named_own(report: GpuReport, programs: Collection[str]) -> GpuReport:
    """Tell which processes are the owner's own by their names; as they were, where `/proc` is too slow."""
    if not programs or not any(gpu.processes for gpu in report.gpus):
        return report
    try:
        return await in_thread("programs", lambda: look(report, programs), deadline_seconds=LOOK_SECONDS)
    except TimeoutError:
        return report


def look(report: GpuReport, programs: Collection[str], root: Path = Path("/")) -> GpuReport:
    """Look once."""
    names = {name.encode()[:_LONGEST].decode("utf-8", "replace") for name in programs}
    return replace(report, gpus=tuple(_told(gpu, names, root) for gpu in report.gpus))


def _told(gpu: Gpu, names: Collection[str], root: Path) -> Gpu:
    if not gpu.processes:
        return gpu
    return replace(gpu, processes=tuple(_named(one, names, root) for one in gpu.processes))


def _named(one: GpuProcess, names: Collection[str], root: Path) -> GpuProcess:
    own = any(program(each.pid, root) in names for each in lineage(one.pid, root))
    return replace(one, ours=True) if own else one
