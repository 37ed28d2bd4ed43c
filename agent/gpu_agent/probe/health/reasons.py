"""Why a GPU is not `ok`: every reason code, what it does to health, and the next step.

One table, extended by a row. Codes go to the wire and into logs: they never change. The next step stands
there in short (`reset GPU`), for programs; `how_to` says to people how it is done.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum

from gpu_agent.probe.health.xids import XIDS, Action, Xid, xid_code, xid_of_code
from gpu_agent.records import dataclass
from gpu_agent.wire.inventory import Gpu, Health, HealthReason


class Clears(StrEnum):
    """When a cause counts as ended. Clean readings are needed as well, except where nothing was known."""

    READING = "reading"
    """Every reading gives it, or not."""
    RESET = "reset"
    """An event: it ends when the GPU was reset or its driver reloaded."""
    RETURN = "return"
    """An event that takes the GPU away: it ends when the GPU answers again, or at a reset."""
    PROGRAMS = "programs"
    """An event that hit programs: it ends when they are gone, a while after it, or at a reset."""
    QUIET = "quiet"
    """An event that may return: it ends a while after the last one, or at a reset."""


@dataclass(frozen=True, slots=True)
class ReasonEntry:
    """One row: the health that a reason leads to, a sentence, what to do, and what ends it."""

    health: Health
    detail: str
    action: str
    clears: Clears = Clears.READING


REASONS: dict[str, ReasonEntry] = {
    "gpu_lost": ReasonEntry(
        Health.LOST, "the GPU no longer answers or is no longer listed", "reboot; if it returns, reseat it"
    ),
    "gpu_reset_required": ReasonEntry(Health.LOST, "the GPU refuses work until it is reset", "reset GPU"),
    "gpu_silent": ReasonEntry(
        Health.LOST,
        "the GPU's system processor failed, so the agent no longer queries it: that would hang",
        "reset GPU, with the agent stopped",
    ),
    "gpu_inaccessible": ReasonEntry(
        Health.UNKNOWN, "the driver lists the GPU and does not open it", "check access to /dev/nvidia*"
    ),
    "compute_mode_prohibited": ReasonEntry(
        Health.UNKNOWN,
        "its compute mode is *prohibited*, so no program can use it",
        "allow programs with `nvidia-smi -c DEFAULT`",
    ),
    "mig_without_slices": ReasonEntry(
        Health.UNKNOWN,
        "MIG is on and the GPU has no MIG devices, so no program can use it",
        "create MIG devices with `nvidia-smi mig -cgi`, or turn MIG off",
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
    "ecc_uncorrected": ReasonEntry(
        Health.DEGRADED,
        "ECC errors that could not be corrected came up",
        "restart the programs that use the GPU; reset GPU if it happens again",
        Clears.PROGRAMS,
    ),
    "sram_ecc_threshold": ReasonEntry(
        Health.DEGRADED,
        "ECC errors of the GPU's SRAM exceed the limit of NVIDIA's field diagnostic",
        "run NVIDIA's field diagnostic; replace the GPU if it fails",
    ),
    "hw_thermal_slowdown": ReasonEntry(
        Health.DEGRADED,
        "the GPU is so hot that its hardware slows it down",
        "check its fans, its airflow and the room's temperature",
    ),
    "sw_thermal_slowdown": ReasonEntry(
        Health.DEGRADED,
        "the GPU or its memory is so hot that the driver slows it down",
        "check its fans, its airflow and the room's temperature",
    ),
    "power_brake_slowdown": ReasonEntry(
        Health.DEGRADED,
        "the machine's power brake slows the GPU down",
        "check the machine's power supplies and the rack's power limit",
    ),
    "hw_slowdown": ReasonEntry(
        Health.DEGRADED,
        "the GPU's hardware slows it down, and does not say why",
        "check its power cables, its fans and the room's temperature",
    ),
    "pcie_link_slow": ReasonEntry(
        Health.DEGRADED,
        "under load the PCIe link is narrower or slower than the card and its slot allow",
        "reseat the GPU; check its riser and the slot's settings in the BIOS",
    ),
    "nvlink_down": ReasonEntry(
        Health.DEGRADED,
        "links to other GPUs are down (NVLink)",
        "see `nvidia-smi nvlink -s`; check the machine's bridges or NVSwitches",
    ),
    "nvlink_errors": ReasonEntry(
        Health.DEGRADED,
        "links to other GPUs repeat or recover transfers (NVLink)",
        "see `nvidia-smi nvlink -e`; check the machine if they go on",
        Clears.QUIET,
    ),
    "recovery_reset": ReasonEntry(Health.LOST, "the driver asks for a reset of the GPU", "reset GPU"),
    "recovery_bus_reset": ReasonEntry(
        Health.LOST, "the driver asks for a reset of the GPU's PCIe bus", "reset its PCIe bus, or reboot"
    ),
    "recovery_reboot": ReasonEntry(Health.LOST, "the driver asks for a reboot of the machine", "reboot"),
    "recovery_drain_p2p": ReasonEntry(
        Health.DEGRADED,
        "the driver asks for an end to traffic between this GPU and others: it serves jobs of one GPU only",
        "end the jobs that use several GPUs",
    ),
    "recovery_drain_and_reset": ReasonEntry(
        Health.DEGRADED,
        "the driver asks for a reset of the GPU once its jobs have ended",
        "drain the node, then reset GPU",
    ),
    "recovery_imex": ReasonEntry(
        Health.DEGRADED,
        "the driver asks for a recovery of the IMEX domain",
        "restart nvidia-imex on the domain's machines",
    ),
    "recovery_other": ReasonEntry(
        Health.DEGRADED,
        "the driver asks for an action that this release does not know",
        "see `nvidia-smi -q` under GPU Recovery Action",
    ),
    "nvml_hung": ReasonEntry(
        Health.UNKNOWN,
        "the NVIDIA driver does not answer",
        "see `dmesg` for Xid or NVRM messages; reboot if it stays",
    ),
    "nvml_child_died": ReasonEntry(
        Health.UNKNOWN, "the process that queries the driver keeps dying", "run `gpu-agent probe` to see why"
    ),
    "driver_broken": ReasonEntry(
        Health.UNKNOWN, "the NVIDIA driver does not work", "run `gpu-agent probe` to see why"
    ),
    "no_driver": ReasonEntry(Health.UNKNOWN, "the NVIDIA driver is gone", "install the driver again"),
    "collector_hung": ReasonEntry(
        Health.UNKNOWN, "the collector that reads the GPU does not answer", "see `dmesg`; reboot if it stays"
    ),
    "collector_failed": ReasonEntry(
        Health.UNKNOWN, "the collector that reads the GPU fails", "run `gpu-agent probe` to see why"
    ),
    "collector_degraded": ReasonEntry(
        Health.DEGRADED, "the collector that reads the GPU found a fault", "see the tools of the GPU's vendor"
    ),
    "collector_unsure": ReasonEntry(
        Health.UNKNOWN, "the collector cannot say how the GPU is", "see the tools of the GPU's vendor"
    ),
}

_OF_THE_FABRIC = {
    "fabric_incomplete": (
        "the GPU has not joined the NVSwitch fabric",
        "check that nvidia-fabricmanager runs",
    ),
    "fabric_failed": (
        "the GPU failed to join the NVSwitch fabric",
        "see the log of nvidia-fabricmanager, and restart it",
    ),
    "fabric_route_unhealthy": (
        "a route of the NVSwitch fabric is unhealthy",
        "check the NVSwitches: see the log of nvidia-fabricmanager",
    ),
    "fabric_route_recovery": (
        "routes of the NVSwitch fabric are recovering",
        "wait; see the log of nvidia-fabricmanager if it stays",
    ),
    "fabric_access_timeout": (
        "the GPU recovers from timeouts in the NVSwitch fabric",
        "wait; see the log of nvidia-fabricmanager if it stays",
    ),
    "fabric_degraded_bandwidth": (
        "the NVSwitch fabric has less bandwidth than it should",
        "check the NVSwitches: see the log of nvidia-fabricmanager",
    ),
    "fabric_no_partition": (
        "the GPU belongs to no partition of the NVSwitch fabric",
        "assign it to a partition in the fabric manager",
    ),
    "fabric_misconfigured": (
        "the NVSwitch fabric is configured wrongly for the GPU",
        "see the log of nvidia-fabricmanager",
    ),
}
"""Reason code → what is wrong with the GPU's place in the NVSwitch fabric, and the next step."""

REASONS.update(
    (
        code,
        ReasonEntry(Health.DEGRADED, f"{wrong}: it serves jobs of one GPU only", action),
    )
    for code, (wrong, action) in _OF_THE_FABRIC.items()
)

_ENDED_BY = {Action.NONE: Clears.QUIET, Action.RESTART_APP: Clears.PROGRAMS}
"""For other actions: the return of a GPU that is lost until a reboot, else a reset."""


def _ended_by(xid: Xid) -> Clears:
    if xid.health is Health.LOST and xid.action is Action.REBOOT:
        return Clears.RETURN
    return _ENDED_BY.get(xid.action, Clears.RESET)


REASONS.update(
    (xid_code(number), ReasonEntry(xid.health, xid.detail, xid.action.value, _ended_by(xid)))
    for number, xid in XIDS.items()
    if xid.health is not None
)

_SEVERITY = (Health.OK, Health.DEGRADED, Health.UNKNOWN, Health.LOST)


def reason(code: str, *, detail: str | None = None, since: float | None = None) -> HealthReason:
    """Make a reason of a code in the table; `detail` replaces the table's sentence."""
    entry = REASONS[code]
    return HealthReason(code=code, detail=detail or entry.detail, action=entry.action, since=since)


def next_step(codes: Iterable[str], *, name: str, indexes: Iterable[int | None]) -> str | None:
    """Say what to do about the worst of these reasons; None where the table knows nothing to do."""
    known = [REASONS[code] for code in codes if code in REASONS]
    wanted = [one for one in known if one.action != Action.NONE]
    worst = max(wanted, key=lambda one: _SEVERITY.index(one.health), default=None)
    return None if worst is None else how_to(worst.action, name=name, indexes=indexes)


def how_to(action: str, *, name: str, indexes: Iterable[int | None]) -> str:
    """Say how the next step of a reason is done, for GPUs of this name and of these numbers of the driver."""
    numbers = ",".join(dict.fromkeys("INDEX" if one is None else str(one) for one in indexes))
    tool = (
        "`amd-smi reset --gpureset`" if name.startswith("AMD") else f"`nvidia-smi --gpu-reset -i {numbers}`"
    )
    reset = f"drain the node, stop the agent, run {tool}, then start the agent again"
    return _HOW_TO.get(action, action).replace(_RESET, reset)


def gpu_steps(gpus: Iterable[Gpu]) -> tuple[str, ...]:
    """Say once for all of a machine's GPUs how each next step of their reasons is done.

    A lost GPU often has two reasons, and the next step of one only begins that of the other.
    """
    having: dict[tuple[str, str], list[int | None]] = {}
    for gpu in gpus:
        for each in gpu.reasons:
            if each.action:
                having.setdefault((each.action, gpu.name), []).append(gpu.index)
    said = [how_to(action, name=name, indexes=indexes) for (action, name), indexes in having.items()]
    longer = [one for one in said if not any(other != one and other.startswith(one) for other in said)]
    return tuple(dict.fromkeys(longer))


_RESET = "{reset}"
_HOW_TO: Mapping[str, str] = {
    Action.NONE: "nothing, unless it returns often: then have the GPU examined",
    Action.RESTART_APP: "restart the program that uses the GPU",
    Action.RESET_GPU: _RESET,
    Action.REBOOT: "drain the node, then reboot it",
    Action.CHECK_MACHINE: "drain the node, and check the machine",
    "reboot; if it returns, reseat it": "drain the node, then reboot it; if the GPU stays lost, reseat it",
    "reset GPU, with the agent stopped": _RESET,
    "drain the node, then reset GPU": _RESET,
    "restart the programs that use the GPU; reset GPU if it happens again": (
        f"restart the programs that use the GPU; if it happens again, {_RESET}"
    ),
}
"""Next step in short → how it is done. Others say it themselves.

A reset needs a GPU that no process has open, and the agent has all of them open.
"""


def health_from(reasons: Iterable[HealthReason]) -> Health:
    """The worst health that these reasons lead to; without a reason it is `ok`."""
    found = (REASONS[each.code].health for each in reasons)
    return max(found, key=_SEVERITY.index, default=Health.OK)


def meaning(code: str) -> str:
    """Say what an event of the driver means, whether it counts or not."""
    row = REASONS.get(code) or xid_of_code(code)
    return row.detail if row else "see NVIDIA's catalogue of Xids; it changes nothing about the GPU's health"
