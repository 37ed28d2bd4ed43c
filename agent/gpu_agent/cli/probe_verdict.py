"""The probe's verdict in words: whether this machine could register, else why not and what to do."""

from gpu_agent.probe.snapshot import COULD_REGISTER, able_to_serve, exit_code
from gpu_agent.wire.inventory import Gpu, GpuReport, Inventory, Outcome

_NEXT_STEP = "see what `nvidia-smi -q -d MEMORY` says, and update the driver"


def verdict(inventory: Inventory) -> str:
    """Say it in one sentence, agreeing with the exit code."""
    report = inventory.gpu
    if exit_code(inventory) == COULD_REGISTER:
        return f"Could register: {_counted(report)}."
    return f"Could not register: {_why_not(report)}"


def _counted(report: GpuReport) -> str:
    words = f"{len(able_to_serve(report))} of {len(report.gpus)} GPUs are usable"
    unsized = _of_unknown_memory(report)
    return f"{words}; the memory of {len(unsized)} is unknown{_reason(unsized)}" if unsized else words


def _why_not(report: GpuReport) -> str:
    if report.detail:
        return report.detail
    if report.outcome is Outcome.OK and not report.gpus:
        return "the driver answers, but it sees no GPU."
    unsized = _of_unknown_memory(report)
    if unsized:
        return f"the memory of the usable GPUs is unknown{_reason(unsized)}; {_NEXT_STEP}."
    return "no GPU is usable; see its health above."


def _of_unknown_memory(report: GpuReport) -> tuple[Gpu, ...]:
    return tuple(gpu for gpu in report.usable if not gpu.memory_mb)


def _reason(gpus: tuple[Gpu, ...]) -> str:
    reasons = dict.fromkeys(gpu.unknowns["memory_mb"] for gpu in gpus if "memory_mb" in gpu.unknowns)
    return f" ({', '.join(reasons)})" if reasons else ""
