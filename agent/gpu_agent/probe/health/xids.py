"""The NVIDIA driver's error numbers (Xids): which of them speak of the GPU's health, and the next step.

One table, from NVIDIA's catalogue of Xids (https://docs.nvidia.com/deploy/xid-errors/). A number that is not
in the table, or that an application causes by itself, is reported and never changes health. When a cause ends
is `reasons`' matter.
"""

from dataclasses import dataclass
from enum import StrEnum

from gpu_agent.wire.inventory import Health


class Action(StrEnum):
    """What helps, from the mildest to the hardest."""

    NONE = "none"
    RESTART_APP = "restart app"
    RESET_GPU = "reset GPU"
    REBOOT = "reboot"


@dataclass(frozen=True, slots=True)
class Xid:
    """One row: what the number does to health (None: nothing, ever), a sentence, and what helps."""

    health: Health | None
    detail: str
    action: Action


XIDS: dict[int, Xid] = {
    13: Xid(None, "a program made the GPU's engine fail", Action.RESTART_APP),
    31: Xid(None, "a program touched memory that is not its own", Action.RESTART_APP),
    43: Xid(None, "a program's work was stopped for its own fault", Action.RESTART_APP),
    45: Xid(None, "work was cleared away after a program ended or failed", Action.NONE),
    48: Xid(Health.DEGRADED, "an ECC error could not be corrected (Xid 48)", Action.RESET_GPU),
    63: Xid(Health.DEGRADED, "faulty memory waits to be replaced at a reset (Xid 63)", Action.RESET_GPU),
    64: Xid(Health.DEGRADED, "faulty memory cannot be replaced at a reset (Xid 64)", Action.RESET_GPU),
    68: Xid(None, "a program made the video decoder fail", Action.RESTART_APP),
    74: Xid(Health.DEGRADED, "a link to another GPU failed (Xid 74, NVLink)", Action.RESET_GPU),
    79: Xid(Health.LOST, "the GPU has fallen off the bus (Xid 79)", Action.REBOOT),
    92: Xid(Health.DEGRADED, "corrected ECC errors come at a high rate (Xid 92)", Action.NONE),
    94: Xid(Health.DEGRADED, "an ECC error hit one program and was contained (Xid 94)", Action.RESTART_APP),
    95: Xid(Health.LOST, "an ECC error was not contained: any data may be wrong (Xid 95)", Action.RESET_GPU),
    109: Xid(None, "a program's work took too long to be switched", Action.RESTART_APP),
    119: Xid(Health.LOST, "the GPU's system processor does not answer (Xid 119, GSP)", Action.RESET_GPU),
    120: Xid(Health.LOST, "the GPU's system processor failed (Xid 120, GSP)", Action.RESET_GPU),
}  # fmt: skip


def xid_code(xid: int) -> str:
    """Name an Xid as reasons and the log do."""
    return f"{_PREFIX}{xid}"


def xid_of_code(code: str) -> Xid | None:
    """The row of a code made by `xid_code`; None where the number is not in the table."""
    number = code.removeprefix(_PREFIX)
    return XIDS.get(int(number)) if number.isdecimal() else None


_PREFIX = "xid_"
