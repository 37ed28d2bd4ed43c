"""What only a row of readings shows of one GPU: errors that grow, slowness that lasts, events not over yet.

Readings and their time go in, the causes that stand at that moment come out. It gives no health and
grants no probation: `health` does. It reads no clock.

An event, such as an Xid, is told once and its cause goes on. Where a reset ends it, one must be seen:
the count of the energy used since the driver was loaded fell, and the next reading shows that it grows
from there; one figure alone may be a lie. Of a GPU that does not count it, a return from being gone, or
a fall of its count of errors, is believed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gpu_agent.probe.health.reasons import REASONS, Clears, reason
from gpu_agent.wire.inventory import Gpu, HealthReason

QUIET_SECONDS = 600.0
"""An event that no reset has to end is over when it did not return for so long."""
SLOWDOWN_SECONDS = 60.0
"""Slowness that is held this long is a cause; what is shorter, every busy GPU has."""

_SLOWDOWNS = {
    "hw_thermal_slowdown": "hw_thermal_slowdown",
    "sw_thermal_slowdown": "sw_thermal_slowdown",
    "hw_power_brake_slowdown": "power_brake_slowdown",
}
"""Throttle reason → reason code."""

_FALLEN = 0.9
"""A count of energy below this share of what it was may have begun anew; less of a fall may be noise."""
_GONE = frozenset({"gpu_lost", "gpu_reset_required", "gpu_silent"})


@dataclass(frozen=True, slots=True)
class _Event:
    """A cause that was told as an event: when it came last, how often in all, and who was there."""

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
    """A count of energy that fell: to what, and when in monotonic seconds."""

    energy_mj: int
    at: float


class GpuHistory:
    """One GPU's past, as far as it still counts."""

    def __init__(self) -> None:
        self._events: dict[str, _Event] = {}
        self._slowdowns: dict[str, _Slowdown] = {}
        self._counters: dict[str, int] = {}
        self._gone = False
        self._fall: _Fall | None = None

    def causes(self, gpu: Gpu, *, now_wall: float, now_mono: float) -> tuple[HealthReason, ...]:
        """Take in a reading and name the causes that it does not name itself."""
        was_reset = self._forget_what_ended(gpu, now_mono)
        grown = 0
        if self._fall is None:  # else it waits: nobody knows yet from where these counts go on
            grown = self._ecc_growth(gpu, was_reset=was_reset)
            self._counters.update(_counters(gpu))
        happened = {code: count for code, count in gpu.events.items() if code in REASONS}
        if grown:
            happened["ecc_uncorrected"] = grown
        self._note(happened, gpu, now_mono)
        self._let_go(gpu, now_mono)
        self._watch_slowdowns(gpu, now_mono)
        return (*self._events_told(), *self._slowdowns_told(now_wall, now_mono))

    def _forget_what_ended(self, gpu: Gpu, now_mono: float) -> bool:
        """Let go of all events before a reset that is seen, and say so; of some where a GPU only returned."""
        returned = self._gone and _is_read(gpu)
        self._gone = _is_gone(gpu) or (self._gone and not returned)
        was_reset = self._was_reset(gpu, now_mono, returned=returned)
        if was_reset:
            reset_at = self._fall.at if self._fall else now_mono
            self._events = {code: event for code, event in self._events.items() if event.at >= reset_at}
            self._fall = None
        elif returned:
            kept = {c: event for c, event in self._events.items() if REASONS[c].clears is not Clears.RETURN}
            self._events = kept
        return was_reset

    def _was_reset(self, gpu: Gpu, now_mono: float, *, returned: bool) -> bool:
        energy, errors = self._counters.get("energy_mj"), self._counters.get("ecc_uncorrected")
        if energy is not None and gpu.energy_mj is not None:
            return self._began_anew(energy, gpu.energy_mj, now_mono=now_mono)
        self._fall = None
        fell = errors is not None and gpu.ecc_uncorrected is not None and gpu.ecc_uncorrected < errors
        return fell or returned

    def _began_anew(self, before_mj: int, energy_mj: int, *, now_mono: float) -> bool:
        """Believe that the count began anew when it grows from where it fell to."""
        if self._fall is not None and self._fall.energy_mj < energy_mj < before_mj:
            return True
        if self._fall is None or energy_mj != self._fall.energy_mj:
            self._fall = _Fall(energy_mj, now_mono) if energy_mj < before_mj * _FALLEN else None
        return False

    def _ecc_growth(self, gpu: Gpu, *, was_reset: bool) -> int:
        """Count the errors since the last count. The first count ever is nobody's growth."""
        before, now = self._counters.get("ecc_uncorrected"), gpu.ecc_uncorrected
        if before is None or now is None:
            return 0
        return now if was_reset or now < before else now - before

    def _note(self, happened: Mapping[str, int], gpu: Gpu, now_mono: float) -> None:
        pids = _pids(gpu)
        for code, count in happened.items():
            before = self._events.get(code)
            self._events[code] = _Event(now_mono, count + (before.count if before else 0), pids)

    def _let_go(self, gpu: Gpu, now_mono: float) -> None:
        """Forget the events that did not return for long, or hit programs that are gone."""
        running = _pids(gpu)
        self._events = {
            code: event
            for code, event in self._events.items()
            if not _over(event, REASONS[code].clears, running, now_mono=now_mono)
        }

    def _watch_slowdowns(self, gpu: Gpu, now_mono: float) -> None:
        if gpu.throttle_reasons is None:
            return  # nothing was said about it: what stood stands, and no time is counted
        seen = [code for sign, code in _SLOWDOWNS.items() if sign in gpu.throttle_reasons]
        kept = {}
        for code in seen:
            before = self._slowdowns.get(code)
            unbroken = before is not None and now_mono - before.at <= SLOWDOWN_SECONDS
            kept[code] = _Slowdown(before.since if before and unbroken else now_mono, now_mono)
        self._slowdowns = kept

    def _events_told(self) -> Iterable[HealthReason]:
        for code, event in self._events.items():
            times = f" ({event.count} times)" if event.count > 1 else ""
            yield reason(code, detail=f"{REASONS[code].detail}{times}")

    def _slowdowns_told(self, now_wall: float, now_mono: float) -> Iterable[HealthReason]:
        for code, slowdown in self._slowdowns.items():
            held = slowdown.at - slowdown.since
            if held > SLOWDOWN_SECONDS:
                yield reason(code, since=now_wall - (now_mono - slowdown.since))


def _is_gone(gpu: Gpu) -> bool:
    return any(given.code in _GONE for given in gpu.reasons)


def _is_read(gpu: Gpu) -> bool:
    """Whether the driver answered for this GPU at all: one that it will not open proves nothing."""
    return not any(given.code in _GONE or given.code == "gpu_inaccessible" for given in gpu.reasons)


def _counters(gpu: Gpu) -> dict[str, int]:
    """Give what only grows, until the GPU is reset or its driver loaded anew."""
    known = {"ecc_uncorrected": gpu.ecc_uncorrected, "energy_mj": gpu.energy_mj}
    return {name: count for name, count in known.items() if count is not None}


def _pids(gpu: Gpu) -> frozenset[int] | None:
    return None if gpu.processes is None else frozenset(process.pid for process in gpu.processes)


def _over(event: _Event, clears: Clears, running: frozenset[int] | None, *, now_mono: float) -> bool:
    if clears not in (Clears.PROGRAMS, Clears.QUIET):
        return False
    if now_mono - event.at >= QUIET_SECONDS:
        return True
    if clears is Clears.QUIET or not event.pids or running is None:
        return False  # it hit no programs, or nobody knows which
    return event.pids.isdisjoint(running)
