"""The NVIDIA driver's error numbers (Xids): which of them speak of the GPU's health, and the next step.

One table, from the column *Resolution Bucket (Immediate Action)* of NVIDIA's catalogue of Xids
(https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html), in the edition that lists Xids 1 to
172. That page bears no date; it was last compared with this table on 2026-11-30. Where the catalogue names a
workflow (48, 74, 144 to 150) the action is the one that the workflow ends in. 167 and 169 have no action
there; they concern the whole GPU, and a reset ends both.

A number that is not in the table, or that an application causes by itself, is reported and never changes
health. Xids 63 and 154 announce what the next reading shows, so the reading counts and they do not. When a
cause ends is `reasons`' matter.
"""

from enum import StrEnum

from gpu_agent.records import dataclass
from gpu_agent.wire.inventory import Health


class Action(StrEnum):
    """What helps, from the mildest to the hardest."""

    NONE = "none"
    RESTART_APP = "restart app"
    RESET_GPU = "reset GPU"
    REBOOT = "reboot"
    CHECK_MACHINE = "check the machine"


@dataclass(frozen=True, slots=True)
class Xid:
    """One row: what the number does to health (None: nothing, ever), a sentence, and what helps."""

    health: Health | None
    detail: str
    action: Action


XIDS: dict[int, Xid] = {
    46: Xid(Health.DEGRADED, "the GPU stopped processing (Xid 46)", Action.RESET_GPU),
    48: Xid(Health.DEGRADED, "an ECC error could not be corrected (Xid 48)", Action.RESET_GPU),
    54: Xid(Health.DEGRADED, "auxiliary power is not connected to the GPU (Xid 54)", Action.CHECK_MACHINE),
    62: Xid(Health.DEGRADED, "the GPU's power controller halted (Xid 62, PMU)", Action.RESET_GPU),
    64: Xid(Health.DEGRADED, "faulty memory cannot be replaced at a reset (Xid 64)", Action.RESET_GPU),
    74: Xid(Health.DEGRADED, "a link to another GPU failed (Xid 74, NVLink)", Action.RESET_GPU),
    79: Xid(Health.LOST, "the GPU has fallen off the bus (Xid 79)", Action.REBOOT),
    92: Xid(Health.DEGRADED, "corrected ECC errors come at a high rate (Xid 92)", Action.NONE),
    94: Xid(Health.DEGRADED, "an ECC error hit one program and was contained (Xid 94)", Action.RESTART_APP),
    95: Xid(Health.LOST, "an ECC error was not contained: any data may be wrong (Xid 95)", Action.RESET_GPU),
    109: Xid(Health.DEGRADED, "a program's work could not be switched in time (Xid 109)", Action.RESET_GPU),
    110: Xid(Health.DEGRADED, "a security fault occurred (Xid 110)", Action.RESET_GPU),
    119: Xid(Health.LOST, "the GPU's system processor does not answer (Xid 119, GSP)", Action.RESET_GPU),
    120: Xid(Health.LOST, "the GPU's system processor failed (Xid 120, GSP)", Action.RESET_GPU),
    136: Xid(Health.DEGRADED, "the training of a link failed (Xid 136, NVLink)", Action.RESET_GPU),
    140: Xid(Health.LOST, "an ECC error escaped the driver's recovery (Xid 140)", Action.RESET_GPU),
    143: Xid(Health.LOST, "the GPU could not be initialized (Xid 143)", Action.RESET_GPU),
    144: Xid(Health.DEGRADED, "a link to another GPU failed (Xid 144, NVLink SAW)", Action.RESET_GPU),
    145: Xid(Health.DEGRADED, "a link to another GPU failed (Xid 145, NVLink RLW)", Action.RESET_GPU),
    146: Xid(Health.DEGRADED, "a link to another GPU failed (Xid 146, NVLink TLW)", Action.RESET_GPU),
    147: Xid(Health.DEGRADED, "a link to another GPU failed (Xid 147, NVLink TREX)", Action.RESET_GPU),
    148: Xid(Health.DEGRADED, "a link to another GPU failed (Xid 148, NVLink NVLPW)", Action.RESET_GPU),
    149: Xid(Health.DEGRADED, "a link to another GPU failed (Xid 149, NVLink NETIR)", Action.RESET_GPU),
    150: Xid(Health.DEGRADED, "a link to another GPU failed (Xid 150, NVLink MSE)", Action.RESET_GPU),
    151: Xid(Health.DEGRADED, "the rotation of an encryption key failed (Xid 151)", Action.REBOOT),
    155: Xid(Health.DEGRADED, "a link to another GPU went down (Xid 155, NVLink)", Action.RESET_GPU),
    156: Xid(Health.DEGRADED, "a faulty part of the GPU waits to be retired (Xid 156)", Action.RESET_GPU),
    158: Xid(Health.LOST, "the GPU did not answer the driver in time (Xid 158)", Action.RESET_GPU),
    167: Xid(Health.DEGRADED, "a transfer over PCIe timed out (Xid 167)", Action.RESET_GPU),
    169: Xid(Health.DEGRADED, "the GPU's security controller halted (Xid 169, SEC2)", Action.RESET_GPU),
    8: Xid(None, "the GPU stopped processing a program's work", Action.RESTART_APP),
    11: Xid(None, "a program sent an invalid stream of commands", Action.RESTART_APP),
    13: Xid(None, "a program made the GPU's engine fail", Action.RESTART_APP),
    25: Xid(None, "a program sent an invalid or illegal command", Action.RESTART_APP),
    31: Xid(None, "a program touched memory that is not its own", Action.RESTART_APP),
    32: Xid(None, "a program's stream of commands was corrupt", Action.RESTART_APP),
    39: Xid(None, "a program made a copy engine fail", Action.RESTART_APP),
    40: Xid(None, "a program made a copy engine fail", Action.RESTART_APP),
    41: Xid(None, "a program made a copy engine fail", Action.RESTART_APP),
    43: Xid(None, "a program's work was stopped for its own fault", Action.RESTART_APP),
    45: Xid(None, "work was cleared away after a program ended or failed", Action.NONE),
    60: Xid(None, "a program made the video processor fail", Action.RESTART_APP),
    63: Xid(None, "faulty memory waits to be replaced: the pending row remap counts", Action.NONE),
    68: Xid(None, "a program made the video decoder fail", Action.RESTART_APP),
    69: Xid(None, "a program used the graphics engine wrongly", Action.RESTART_APP),
    70: Xid(None, "a program made a copy engine fail", Action.RESTART_APP),
    71: Xid(None, "a program made a copy engine fail", Action.RESTART_APP),
    80: Xid(None, "a program sent corrupt data to the GPU", Action.RESTART_APP),
    154: Xid(None, "the driver's recovery action changed: the action counts", Action.NONE),
}  # fmt: skip


def xid_code(xid: int) -> str:
    """Name an Xid as reasons and the log do."""
    return f"{_PREFIX}{xid}"


def xid_of_code(code: str) -> Xid | None:
    """The row of a code made by `xid_code`; None where the number is not in the table."""
    number = code.removeprefix(_PREFIX)
    return XIDS.get(int(number)) if number.isdecimal() else None


_PREFIX = "xid_"
