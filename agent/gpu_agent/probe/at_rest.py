"""GPUs that are left alone between two readings that somebody asked for, because polling them is off.

They are shown by who they are and how well they were; what moves from one moment to the next is unknown, and
says so. It judges nothing and keeps nothing.
"""

from dataclasses import fields, replace

from gpu_agent.wire.inventory import Gpu, GpuReport

_WHY = "polling of GPUs is off (poll_gpus): read only when asked"
_STAYS = frozenset(
    {"uuid", "name", "index", "vendor", "memory_mb", "memory_kind", "compute_capability", "pci_bus_id"}
    | {"mig_enabled", "parent_uuid", "visible", "asleep", "health", "reasons", "events", "unknowns"}
)
_MOVES = tuple(field.name for field in fields(Gpu) if field.name not in _STAYS)


def at_rest(report: GpuReport) -> GpuReport:
    """Take the figures out of a report that was read and judged."""
    return replace(report, gpus=tuple(_left_alone(gpu) for gpu in report.gpus))


def _left_alone(gpu: Gpu) -> Gpu:
    unread = Gpu(**{name: getattr(gpu, name) for name in _STAYS - {"events", "unknowns"}})
    unknowns = {name: why for name, why in gpu.unknowns.items() if name in _STAYS}
    return replace(unread, unknowns={**unknowns, **dict.fromkeys(_MOVES, _WHY)})
