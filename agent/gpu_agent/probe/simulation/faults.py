"""Faults of simulated GPUs, shown as a true driver shows them: lost GPUs, heat, Xids and resets.

A fault changes a reading into what NVML would have answered at that moment. What follows over time, such as
`degraded` after a minute of heat, is the health tracker's, as with true GPUs.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from math import isfinite

from gpu_agent.probe.health.reasons import REASONS, Clears, health_from, reason
from gpu_agent.probe.health.xids import xid_code
from gpu_agent.probe.simulation.spec import SimulatedFault
from gpu_agent.wire.inventory import Gpu, HealthReason

_HOT_C = 94.0
_HOT_CLOCK_SHARE = 0.4
_USED_BEFORE_SECONDS = 86_400.0
"""For how long each seems to have run before its last reset."""
_MOST_DISTINGUISHED = 24
"""So many resets to come are distinguished by the energy count before them."""
_MEAN_POWER_SHARE = 0.4


def apply_faults(gpu: Gpu, faults: Iterable[SimulatedFault], *, elapsed: float, sent_until: float) -> Gpu:
    """A reading with the faults that hold at `elapsed` seconds, and the events since `sent_until`."""
    faults = tuple(faults)
    gpu = replace(gpu, energy_mj=_energy_mj(gpu, faults, elapsed))
    for fault in faults:
        if fault.holds_at(elapsed):
            gpu = _apply(gpu, fault, new=fault.begins > sent_until)
    return gpu


def _apply(gpu: Gpu, fault: SimulatedFault, *, new: bool) -> Gpu:
    if fault.name.startswith("xid"):
        return _xid(gpu, xid_code(int(fault.name.removeprefix("xid"))), new=new)
    return _FAULTS[fault.name](gpu)


def _xid(gpu: Gpu, code: str, *, new: bool) -> Gpu:
    """An event of the whole GPU, reported once; what it announces stays until its fault ends."""
    entry = REASONS.get(code)
    if new and gpu.parent_uuid is None:
        gpu = replace(gpu, events={**gpu.events, code: gpu.events.get(code, 0) + 1})
    if entry is not None and entry.clears is Clears.RETURN:
        return _lost(gpu)
    return _ANNOUNCED[code](gpu) if code in _ANNOUNCED else gpu


def _lost(gpu: Gpu) -> Gpu:
    return _unread(gpu, reason("gpu_lost"))


def _unknown(gpu: Gpu) -> Gpu:
    return _unread(gpu, reason("gpu_inaccessible"))


def _unread(gpu: Gpu, why: HealthReason) -> Gpu:
    """Its identity; nothing else was read."""
    bare = Gpu(
        uuid=gpu.uuid,
        name=gpu.name,
        index=gpu.index,
        memory_mb=gpu.memory_mb,
        memory_kind=gpu.memory_kind,
        compute_capability=gpu.compute_capability,
        pci_bus_id=gpu.pci_bus_id,
        mig_enabled=gpu.mig_enabled,
        parent_uuid=gpu.parent_uuid,
        events=gpu.events,
        reasons=gpu.reasons,
    )
    return _with_reason(bare, why)


def _degraded(gpu: Gpu) -> Gpu:
    """Rows that wait to be remapped: the whole GPU's, and the tracker adds the reason to its MIG devices."""
    return _with(gpu, "row_remap_pending", retirement_pending=True)


def _reset_requested(gpu: Gpu) -> Gpu:
    """The driver asks for a reset of the whole GPU."""
    return _with(gpu, "recovery_reset", recovery_action="recovery_reset")


def _hot(gpu: Gpu) -> Gpu:
    """Throttled by its heat: a reason for the tracker once it lasts."""
    if gpu.parent_uuid is not None or gpu.temperature_c is None:
        return gpu
    clock = None if gpu.clock_sm_mhz is None else round(gpu.clock_sm_mhz * _HOT_CLOCK_SHARE)
    return replace(gpu, temperature_c=_HOT_C, clock_sm_mhz=clock, throttle_reasons=("hw_thermal_slowdown",))


def _slowdown(gpu: Gpu) -> Gpu:
    return _with(gpu, throttle_reasons=("hw_slowdown",))


def _ecc(gpu: Gpu) -> Gpu:
    return _with(gpu, ecc_uncorrected=(gpu.ecc_uncorrected or 0) + 1)


def _sram(gpu: Gpu) -> Gpu:
    return _with(gpu, "sram_ecc_threshold", sram_threshold_exceeded=True)


def _prohibited(gpu: Gpu) -> Gpu:
    return _with(gpu, "compute_mode_prohibited", compute_mode="prohibited")


def _fabric(gpu: Gpu) -> Gpu:
    return _with(gpu, "fabric_route_unhealthy", fabric_faults=("fabric_route_unhealthy",))


def _nvlink_down(gpu: Gpu) -> Gpu:
    """Two links go down; seen where they were up before."""
    links = gpu.nvlinks_up or 0
    return _with(gpu, nvlinks_up=max(0, links - 2), nvlinks_down=min(links, 2))


def _nvlink_errors(gpu: Gpu) -> Gpu:
    return _with(gpu, nvlink_errors=(gpu.nvlink_errors or 0) + 1)


def _pcie(gpu: Gpu) -> Gpu:
    """A link of a quarter of its lanes, under the load that it is judged by."""
    lanes = None if gpu.pcie_width_max is None else max(1, gpu.pcie_width_max // 4)
    return _with(gpu, pcie_width=lanes, utilization_percent=90.0)


def _with(gpu: Gpu, code: str | None = None, **figures: object) -> Gpu:
    """Change figures of the whole GPU, and add the reason that they are by themselves."""
    if gpu.parent_uuid is not None:
        return gpu
    changed = replace(gpu, **figures)  # type: ignore[arg-type]  # each caller names fields of its type
    return changed if code is None else _with_reason(changed, reason(code))


def _with_reason(gpu: Gpu, why: HealthReason) -> Gpu:
    given = why.code in {each.code for each in gpu.reasons}
    reasons = gpu.reasons if given else (*gpu.reasons, why)
    return replace(gpu, reasons=reasons, health=health_from(reasons))


def _energy_mj(gpu: Gpu, faults: tuple[SimulatedFault, ...], elapsed: float) -> int | None:
    """What it used since its last reset: where a fault ended, somebody reset it.

    The more resets are to come, the more is counted before them, so that each is seen as a fall of the
    count, however seldom it is read.
    """
    if gpu.power_limit_w is None:
        return None
    resets = {fault.ends for fault in faults if isfinite(fault.ends)}
    past = [reset for reset in resets if reset <= elapsed]
    to_come = min(len(resets) - len(past), _MOST_DISTINGUISHED)
    running = elapsed - max(past, default=0.0) + _USED_BEFORE_SECONDS * ((1 << to_come) - 1)
    return round(running * gpu.power_limit_w * _MEAN_POWER_SHARE * 1000)


_FAULTS: Mapping[str, Callable[[Gpu], Gpu]] = {
    "lost": _lost,
    "unknown": _unknown,
    "degraded": _degraded,
    "hot": _hot,
    "slowdown": _slowdown,
    "ecc": _ecc,
    "sram": _sram,
    "reset": _reset_requested,
    "prohibited": _prohibited,
    "fabric": _fabric,
    "nvlinkdown": _nvlink_down,
    "nvlinkerrors": _nvlink_errors,
    "pcie": _pcie,
}

_ANNOUNCED: Mapping[str, Callable[[Gpu], Gpu]] = {
    xid_code(63): _degraded,
    xid_code(154): _reset_requested,
}
"""What readings show after an Xid that counts for nothing itself."""
