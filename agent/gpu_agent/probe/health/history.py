"""What only successive readings show of one GPU: errors that grow, slowdowns that last, events not over yet.

Readings and their time go in, the causes that are active at that moment come out. Health and probation are
the tracker's. Time is handed in.

The driver gives an event, such as an Xid, once, and its cause goes on. Where only a reset clears the cause, a
reset must be seen: the count of energy used since the driver was loaded fell, and the next reading shows it
growing from there; one value alone may be wrong. For a GPU that does not count energy, its return after it
was gone, or a fall of its error count, is taken as a reset.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gpu_agent.probe.health.reasons import REASONS, Clears, reason
from gpu_agent.wire.inventory import Gpu, HealthReason

QUIET_SECONDS = 600.0
"""An event that needs no reset is over when it did not come again for so long."""
SLOWDOWN_SECONDS = 60.0
"""A slowdown that lasts this long is a cause; shorter ones are normal for a busy GPU."""

SLOWDOWNS = {
    "hw_thermal_slowdown": "hw_thermal_slowdown",
    "sw_thermal_slowdown": "sw_thermal_slowdown",
    "hw_power_brake_slowdown": "power_brake_slowdown",
    "hw_slowdown": "hw_slowdown",
}
"""Throttle reason → reason code."""
_WHY_HARDWARE_SLOWS = frozenset({"hw_thermal_slowdown", "power_brake_slowdown"})
"""While one of these counts, `hw_slowdown` says nothing more."""

LOADED_PERCENT = 50.0
"""The PCIe link is judged while the GPU is used so much: without load it sleeps."""
_PCIE = "pcie_link_slow"

_FALLEN = 0.9
"""An energy count below this share of the last one may mean a reset; a smaller fall may be noise."""
_GONE = frozenset({"gpu_lost", "gpu_reset_required", "gpu_silent"})


@dataclass(frozen=True, slots=True)
class _Event:
    """A cause that came as an event: when it came last, how often in all, and which programs were running."""

    at: float
    count: int
    pids: frozenset[int] | None


@dataclass(slots=True)
class _Slowdown:
    """One throttle reason, in monotonic seconds: seen from, and last seen at."""

    since: float
    at: float


@dataclass(frozen=True, slots=True)
class _Fall:
    """An energy count that fell: to what, and when in monotonic seconds."""

    energy_mj: int
    at: float


class GpuHistory:
    """One GPU's past, as far as it still counts."""

    def __init__(self) -> None:
        self._events: dict[str, _Event] = {}
        self._slowdowns: dict[str, _Slowdown] = {}
        self._counters: dict[str, int] = {}
        self._most_nvlinks = 0
        self._nvlinks_missing = 0
        self._gone = False
        self._fall: _Fall | None = None

    def causes(self, gpu: Gpu, *, now_wall: float, now_mono: float) -> tuple[HealthReason, ...]:
        """Observe a reading, and return the causes that it does not give itself."""
        was_reset = self._clear_by_reset(gpu, now_mono)
        events = {code: count for code, count in gpu.events.items() if code in REASONS}
        if self._fall is None:  # else wait: it is not known yet from where these counts go on
            grown = {
                "ecc_uncorrected": self._ecc_growth(gpu, was_reset=was_reset),
                "nvlink_errors": self._nvlink_growth(gpu),
            }
            events |= {code: count for code, count in grown.items() if count}
            self._counters.update(_counters(gpu))
        self._add_events(events, gpu, now_mono)
        self._clear_by_time(gpu, now_mono)
        self._observe_slowdowns(gpu, now_mono)
        self._observe_nvlinks(gpu)
        return (
            *self._event_reasons(),
            *self._slowdown_reasons(now_wall, now_mono),
            *self._nvlink_reasons(),
        )

    def _clear_by_reset(self, gpu: Gpu, now_mono: float) -> bool:
        """Clear the events before a reset, or those that the GPU's return clears; True after a reset."""
        returned = self._gone and _is_read(gpu)
        self._gone = _is_gone(gpu) or (self._gone and not returned)
        was_reset = self._was_reset(gpu, now_mono, returned=returned)
        if was_reset or returned:
            self._slowdowns.pop(_PCIE, None)  # its link was trained again
        if was_reset:
            reset_at = self._fall.at if self._fall else now_mono
            self._events = {code: event for code, event in self._events.items() if event.at >= reset_at}
            self._fall = None
        elif returned:
            self._events = {
                code: event
                for code, event in self._events.items()
                if REASONS[code].clears is not Clears.RETURN
            }
        return was_reset

    def _was_reset(self, gpu: Gpu, now_mono: float, *, returned: bool) -> bool:
        energy, errors = self._counters.get("energy_mj"), self._counters.get("ecc_uncorrected")
        if energy is not None and gpu.energy_mj is not None:
            return self._restarted_from_zero(energy, gpu.energy_mj, now_mono=now_mono)
        self._fall = None
        fell = errors is not None and gpu.ecc_uncorrected is not None and gpu.ecc_uncorrected < errors
        return fell or returned

    def _restarted_from_zero(self, before_mj: int, energy_mj: int, *, now_mono: float) -> bool:
        """Whether the energy count restarted: it fell, and now grows from there."""
        if self._fall is not None and self._fall.energy_mj < energy_mj < before_mj:
            return True
        if self._fall is None or energy_mj != self._fall.energy_mj:
            self._fall = _Fall(energy_mj, now_mono) if energy_mj < before_mj * _FALLEN else None
        return False

    def _ecc_growth(self, gpu: Gpu, *, was_reset: bool) -> int:
        """Count the errors since the last count. The first count ever is no growth."""
        before, now = self._counters.get("ecc_uncorrected"), gpu.ecc_uncorrected
        if before is None or now is None:
            return 0
        return now if was_reset or now < before else now - before

    def _nvlink_growth(self, gpu: Gpu) -> int:
        """Count likewise; a count that fell is no growth, since links recover after each reset."""
        before, now = self._counters.get("nvlink_errors"), gpu.nvlink_errors
        return 0 if before is None or now is None else max(0, now - before)

    def _add_events(self, events: Mapping[str, int], gpu: Gpu, now_mono: float) -> None:
        pids = _pids(gpu)
        for code, count in events.items():
            before = self._events.get(code)
            self._events[code] = _Event(now_mono, count + (before.count if before else 0), pids)

    def _clear_by_time(self, gpu: Gpu, now_mono: float) -> None:
        """Clear the events that did not come again for long, or hit programs that have ended."""
        running = _pids(gpu)
        self._events = {
            code: event
            for code, event in self._events.items()
            if not _is_over(event, REASONS[code].clears, running, now_mono=now_mono)
        }

    def _observe_slowdowns(self, gpu: Gpu, now_mono: float) -> None:
        """Take in what slows the GPU down; what is unknown stays as it was, and no time is counted."""
        seen: list[str] = []
        unread: list[str] = []
        if gpu.throttle_reasons is None:
            unread += SLOWDOWNS.values()
        else:
            seen += [code for name, code in SLOWDOWNS.items() if name in gpu.throttle_reasons]
        is_slow = _pcie_is_slow(gpu)
        if is_slow is None:
            unread.append(_PCIE)
        elif is_slow:
            seen.append(_PCIE)
        slowdowns = {code: self._slowdowns[code] for code in unread if code in self._slowdowns}
        for code in seen:
            before = self._slowdowns.get(code)
            unbroken = before is not None and now_mono - before.at <= SLOWDOWN_SECONDS
            slowdowns[code] = _Slowdown(before.since if before and unbroken else now_mono, now_mono)
        self._slowdowns = slowdowns

    def _observe_nvlinks(self, gpu: Gpu) -> None:
        """Take in which links are missing: those that were up before, and in a fabric all that are down."""
        if gpu.mig_enabled:  # the driver may turn its links off, and no program on a MIG device uses them
            self._nvlinks_missing = 0
            return
        if gpu.nvlinks_up is None:
            return
        self._most_nvlinks = max(self._most_nvlinks, gpu.nvlinks_up)
        self._nvlinks_missing = self._most_nvlinks - gpu.nvlinks_up
        if gpu.fabric_faults is not None and "fabric_incomplete" not in gpu.fabric_faults:
            self._nvlinks_missing = max(self._nvlinks_missing, gpu.nvlinks_down or 0)

    def _event_reasons(self) -> Iterable[HealthReason]:
        for code, event in self._events.items():
            times = f" ({event.count} times)" if event.count > 1 else ""
            yield reason(code, detail=f"{REASONS[code].detail}{times}")

    def _slowdown_reasons(self, now_wall: float, now_mono: float) -> Iterable[HealthReason]:
        lasting = {
            code: slowdown
            for code, slowdown in self._slowdowns.items()
            if slowdown.at - slowdown.since > SLOWDOWN_SECONDS
        }
        for code, slowdown in lasting.items():
            if code != "hw_slowdown" or not _WHY_HARDWARE_SLOWS & lasting.keys():
                yield reason(code, since=now_wall - (now_mono - slowdown.since))

    def _nvlink_reasons(self) -> Iterable[HealthReason]:
        if self._nvlinks_missing:
            code = "nvlink_down"
            yield reason(code, detail=f"{REASONS[code].detail}: {self._nvlinks_missing}")


def _is_gone(gpu: Gpu) -> bool:
    return any(given.code in _GONE for given in gpu.reasons)


def _is_read(gpu: Gpu) -> bool:
    """Whether the driver read this GPU at all: one that it does not open proves nothing."""
    return not any(given.code in _GONE or given.code == "gpu_inaccessible" for given in gpu.reasons)


def _counters(gpu: Gpu) -> dict[str, int]:
    """The counters: they only grow, until the GPU is reset or its driver reloaded."""
    known = {
        "ecc_uncorrected": gpu.ecc_uncorrected,
        "energy_mj": gpu.energy_mj,
        "nvlink_errors": gpu.nvlink_errors,
    }
    return {name: count for name, count in known.items() if count is not None}


def _pcie_is_slow(gpu: Gpu) -> bool | None:
    """Whether the PCIe link is below what card and slot allow; None without load, when the link sleeps."""
    if gpu.utilization_percent is None or gpu.utilization_percent < LOADED_PERCENT:
        return None
    pairs = (gpu.pcie_generation, gpu.pcie_generation_max), (gpu.pcie_width, gpu.pcie_width_max)
    known = [now < most for now, most in pairs if now is not None and most is not None]
    return any(known) if known else None


def _pids(gpu: Gpu) -> frozenset[int] | None:
    return None if gpu.processes is None else frozenset(process.pid for process in gpu.processes)


def _is_over(event: _Event, clears: Clears, running: frozenset[int] | None, *, now_mono: float) -> bool:
    if clears not in (Clears.PROGRAMS, Clears.QUIET):
        return False
    if now_mono - event.at >= QUIET_SECONDS:
        return True
    if clears is Clears.QUIET or not event.pids or running is None:
        return False  # it hit no programs, or it is unknown which
    return event.pids.isdisjoint(running)
