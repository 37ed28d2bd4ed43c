"""The probe's verdict in words: whether this machine could register and with what, else why not."""

from collections import Counter

from gpu_agent.cli.probe.gpu_sheet import gib, short
from gpu_agent.cli.probe.models import can_serve
from gpu_agent.probe.snapshot import COULD_REGISTER, able_to_serve, exit_code
from gpu_agent.wire.inventory import Gpu, GpuReport, Inventory, Outcome

MEMORY_STEP = "see what `nvidia-smi -q -d MEMORY` says, and update the driver"
"""What to do about a GPU whose memory is unknown."""


def verdict(inventory: Inventory) -> str:
    """Say it in one sentence, agreeing with the exit code."""
    report = inventory.gpu
    if exit_code(inventory) == COULD_REGISTER:
        return f"Could register: {_counted(report)}."
    return f"Could not register: {_why_not(report)}"


def declared(inventory: Inventory) -> str:
    """Say what would be registered, in one line."""
    able = able_to_serve(inventory.gpu)
    names = Counter(short(gpu.name) for gpu in able)
    gpus = ", ".join(f"{count}x {name}" for name, count in names.items())
    memory = gib(sum(gpu.memory_mb or 0 for gpu in able))
    ready = sum(map(can_serve, inventory.models))
    models = f"{ready} ready {'model' if ready == 1 else 'models'}"
    return f"It would offer {gpus} with {memory} GiB in all, and {models}."


def _counted(report: GpuReport) -> str:
    parents = {gpu.parent_uuid for gpu in report.gpus}
    places = [gpu for gpu in report.gpus if gpu.uuid not in parents]
    words = f"{len(able_to_serve(report))} of {len(places)} GPUs are usable"
    unsized = _of_unknown_memory(report)
    return f"{words}; the memory of {len(unsized)} is unknown{_reason(unsized)}" if unsized else words


def _why_not(report: GpuReport) -> str:
    if report.detail:
        return report.detail
    if report.outcome is Outcome.OK and not report.gpus:
        return "the driver answers, but it sees no GPU."
    unsized = _of_unknown_memory(report)
    if unsized:
        return f"the memory of the usable GPUs is unknown{_reason(unsized)}; {MEMORY_STEP}."
    return "no GPU is usable; see its health above."


def _of_unknown_memory(report: GpuReport) -> tuple[Gpu, ...]:
    return tuple(gpu for gpu in report.usable if not gpu.memory_mb)


def _reason(gpus: tuple[Gpu, ...]) -> str:
    reasons = dict.fromkeys(gpu.unknowns["memory_mb"] for gpu in gpus if "memory_mb" in gpu.unknowns)
    return f" ({', '.join(reasons)})" if reasons else ""
