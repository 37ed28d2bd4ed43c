"""Why a GPU is not `ok`: every reason code, what it does to health, and the next step.

One table, extended by a row. It observes nothing and remembers nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from gpu_agent.wire.inventory import Health, HealthReason


@dataclass(frozen=True, slots=True)
class ReasonEntry:
    """One row: the health that a reason leads to, a sentence, and what to do."""

    health: Health
    detail: str
    action: str


REASONS: dict[str, ReasonEntry] = {
    "gpu_lost": ReasonEntry(
        Health.LOST, "the GPU no longer answers or is no longer listed", "reboot; if it returns, reseat it"
    ),
    "gpu_reset_required": ReasonEntry(Health.LOST, "the GPU refuses work until it is reset", "reset GPU"),
    "gpu_inaccessible": ReasonEntry(
        Health.UNKNOWN, "the driver lists the GPU and will not open it", "check access to /dev/nvidia*"
    ),
    "row_remap_pending": ReasonEntry(
        Health.DEGRADED, "memory rows wait to be remapped at the next reset", "reset GPU"
    ),
    "row_remap_failed": ReasonEntry(
        Health.DEGRADED, "the GPU ran out of spare memory rows", "replace the GPU"
    ),
    "retired_pages_pending": ReasonEntry(
        Health.DEGRADED, "memory pages wait to be retired at the next reset", "reset GPU"
    ),
    "nvml_hung": ReasonEntry(
        Health.UNKNOWN,
        "the NVIDIA driver does not answer",
        "see `dmesg` for Xid or NVRM messages; reboot if it stays",
    ),
    "nvml_child_died": ReasonEntry(
        Health.UNKNOWN, "the process that asks the driver keeps dying", "run `gpu-agent probe` to see why"
    ),
    "driver_broken": ReasonEntry(
        Health.UNKNOWN, "the NVIDIA driver does not work", "run `gpu-agent probe` to see why"
    ),
    "no_driver": ReasonEntry(Health.UNKNOWN, "the NVIDIA driver is gone", "install the driver again"),
}

_SEVERITY = (Health.OK, Health.DEGRADED, Health.UNKNOWN, Health.LOST)


def reason(code: str, *, detail: str | None = None, since: float | None = None) -> HealthReason:
    """Make a reason of a code that the table knows; `detail` takes the place of the table's sentence."""
    entry = REASONS[code]
    return HealthReason(code=code, detail=detail or entry.detail, action=entry.action, since=since)


def health_from(reasons: Iterable[HealthReason]) -> Health:
    """Name the worst health that these reasons lead to; none leads to `ok`."""
    found = (REASONS[each.code].health for each in reasons)
    return max(found, key=_SEVERITY.index, default=Health.OK)
