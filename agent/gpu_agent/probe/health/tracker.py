"""Each GPU's health over time: successive readings in, the same readings with health out.

It remembers what one reading cannot know: since when something is wrong, which GPUs vanished, how long
nothing was read; `history` remembers the events and counters of each GPU. Time is handed in.

A cause that cleared still counts until so many clean readings (probation) have passed, unless it only meant
that nothing was known. The first reading ever is trusted at once.
"""

from collections.abc import Iterable
from typing import Literal

from gpu_agent.probe.health.history import GpuHistory
from gpu_agent.probe.health.reasons import REASONS, health_from, reason
from gpu_agent.probe.stand_in import UNIDENTIFIED
from gpu_agent.records import dataclass, field_names, replace
from gpu_agent.wire.inventory import Gpu, GpuReport, Health, HealthReason, Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class MissedReading:
    """No reading: the driver or a collector let the deadline pass, or it failed."""

    reason: Literal["nvml_hung", "nvml_child_died", "collector_hung", "collector_failed"]
    since: float
    """Monotonic seconds: when the first request was sent that has had no answer."""
    detail: str


@dataclass(frozen=True, slots=True)
class _ActiveReason:
    """A reason that still counts, and how many readings in a row no longer gave it."""

    reason: HealthReason
    clean: int = 0


class HealthTracker:
    """Turns successive readings into reports whose health has a memory."""

    def __init__(self, stale_after_seconds: float = 60.0, *, clean_readings_needed: int = 3) -> None:
        self._stale_after_seconds = stale_after_seconds
        self._clean_readings_needed = clean_readings_needed
        self._known: dict[str, Gpu] = {}
        self._active: dict[str, dict[str, _ActiveReason]] = {}
        self._histories: dict[str, GpuHistory] = {}
        self._last_good: GpuReport | None = None
        self._last_good_at: float | None = None

    def observe(self, result: GpuReport | MissedReading, *, now_wall: float, now_mono: float) -> GpuReport:
        """Observe the result of a reading at this moment, and return it with each GPU's health.

        `now_wall` is Unix time and becomes the `since` of reasons; `now_mono`, monotonic seconds, measures
        ages.
        """
        if isinstance(result, MissedReading):
            return self._missed(result, now_wall=now_wall, now_mono=now_mono)
        if result.outcome is not Outcome.OK:
            self._drop(_OF_THE_DRIVER - {result.outcome.value})
            why = [reason(result.outcome.value, detail=result.detail)]
            return replace(result, gpus=self._all_known(why, now_wall))
        self._last_good_at = now_mono - result.age_seconds
        self._last_good = self._good(result, now_wall, now_mono)
        return self._last_good

    def age_seconds(self, now_mono: float) -> float | None:
        """Age of the last good reading; None when there never was one."""
        return None if self._last_good_at is None else max(0.0, now_mono - self._last_good_at)

    def _good(self, result: GpuReport, now_wall: float, now_mono: float) -> GpuReport:
        read = self._identified(result.gpus)
        listed = {gpu.uuid for gpu in read}
        vanished = [gpu for uuid, gpu in self._known.items() if uuid not in listed]
        lost = [
            replace(_without_figures(gpu), reasons=(reason("gpu_lost", detail=_VANISHED),))
            for gpu in vanished
            if gpu.parent_uuid is None
        ]
        for gpu in vanished:
            if gpu.parent_uuid is not None:  # a MIG device goes when its GPU is partitioned again
                self._known.pop(gpu.uuid)
                self._active.pop(gpu.uuid, None)
                self._histories.pop(gpu.uuid, None)
        self._known.update((gpu.uuid, gpu) for gpu in read if not gpu.uuid.startswith(UNIDENTIFIED))
        judged = [self._judged(gpu, now_wall, now_mono) for gpu in (*read, *lost)]
        return replace(result, gpus=_in_order(_with_reasons_of_parents(judged)))

    def _identified(self, gpus: tuple[Gpu, ...]) -> list[Gpu]:
        """Give an unidentified GPU the identity that was last read at its index."""
        listed = {gpu.uuid for gpu in gpus}
        absent = {
            gpu.index: gpu
            for uuid, gpu in self._known.items()
            if uuid not in listed and gpu.parent_uuid is None  # MIG devices have their GPU's index
        }
        return [
            replace(_without_figures(absent[gpu.index]), reasons=gpu.reasons, events=gpu.events)
            if gpu.uuid.startswith(UNIDENTIFIED) and gpu.index in absent
            else gpu
            for gpu in gpus
        ]

    def _judged(self, gpu: Gpu, now_wall: float, now_mono: float) -> Gpu:
        """Add the reasons that are still active to those of this reading, each with its first moment."""
        active = self._active.get(gpu.uuid, {})
        if gpu.asleep and not gpu.events:
            return self._suspended(gpu, active)
        history = self._histories.setdefault(gpu.uuid, GpuHistory())
        causes = history.causes(gpu, now_wall=now_wall, now_mono=now_mono)
        given = {one.code: one for one in (*gpu.reasons, *causes)}
        after = {
            code: _ActiveReason(old.reason, old.clean + 1) if _covers(gpu, code) else old
            for code, old in active.items()
            if code not in given and self._on_probation(gpu, old)
        }
        for code, one in given.items():
            since = active[code].reason.since if code in active else one.since
            after[code] = _ActiveReason(replace(one, since=now_wall if since is None else since))
        self._active[gpu.uuid] = after
        reasons = tuple(self._with_progress(each) for each in after.values())
        return replace(gpu, health=health_from(reasons), reasons=reasons)

    def _suspended(self, gpu: Gpu, active: dict[str, _ActiveReason]) -> Gpu:
        """Leave health as it was: a suspended GPU was not read, so no cause clears and no count goes on."""
        proven = (each for code, each in active.items() if REASONS[code].health is not Health.UNKNOWN)
        reasons = tuple(self._with_progress(each) for each in proven)
        return replace(gpu, health=health_from(reasons), reasons=reasons)

    def _on_probation(self, gpu: Gpu, active: _ActiveReason) -> bool:
        """Whether a reason that this reading did not give still counts."""
        code = active.reason.code
        if REASONS[code].health is Health.UNKNOWN:
            return code in _FIELD_OF and not _covers(gpu, code)
        return not _covers(gpu, code) or active.clean + 1 < self._clean_readings_needed

    def _with_progress(self, active: _ActiveReason) -> HealthReason:
        if active.clean == 0:
            return active.reason
        progress = f"cleared, {active.clean} of {self._clean_readings_needed} clean readings"
        return replace(active.reason, detail=f"{active.reason.detail} ({progress})")

    def _missed(self, missed: MissedReading, *, now_wall: float, now_mono: float) -> GpuReport:
        age = self.age_seconds(now_mono)
        if self._last_good is not None and age is not None and age <= self._stale_after_seconds:
            return self._last_good
        self._drop(_MISSED - {missed.reason})
        since = now_wall - (now_mono - missed.since)
        why = [reason(missed.reason, detail=missed.detail, since=since)]
        return GpuReport(
            outcome=Outcome.DRIVER_BROKEN,
            detail=missed.detail,
            gpus=self._all_known(why, now_wall),
            driver_version=self._last_good.driver_version if self._last_good else None,
            cuda_version=self._last_good.cuda_version if self._last_good else None,
        )

    def _drop(self, refuted: Iterable[str]) -> None:
        """Drop what earlier attempts to read showed, and the last one refutes."""
        for active in self._active.values():
            for code in refuted:
                active.pop(code, None)

    def _all_known(self, why: list[HealthReason], now_wall: float) -> tuple[Gpu, ...]:
        """List every known GPU, without figures, with these reasons beside those it had."""
        unread = [self._unread(gpu, why, now_wall) for gpu in self._known.values()]
        return _in_order(_with_reasons_of_parents(unread))

    def _unread(self, gpu: Gpu, why: list[HealthReason], now_wall: float) -> Gpu:
        """Add reasons that concern every GPU; nothing was read, so no cause clears and no count goes on."""
        active = self._active.setdefault(gpu.uuid, {})
        for each in why:
            first = active[each.code].reason.since if each.code in active else each.since
            active[each.code] = _ActiveReason(replace(each, since=now_wall if first is None else first))
        reasons = tuple(self._with_progress(each) for each in active.values())
        return replace(_without_figures(gpu), health=health_from(reasons), reasons=reasons)


_OF_THE_DRIVER = frozenset({"nvml_hung", "nvml_child_died", "driver_broken", "no_driver"})
"""Reasons of which the last answer gives the only true one."""
_MISSED = frozenset({"nvml_hung", "nvml_child_died", "collector_hung", "collector_failed"})
"""Reasons of which the last attempt gives the only true one: what has died does not hang."""
_UNREAD = frozenset({"gpu_lost", "gpu_reset_required", "gpu_silent", "gpu_inaccessible"})
_FIELD_OF = {
    **dict.fromkeys(("row_remap_pending", "row_remap_failed", "retired_pages_pending"), "retirement_pending"),
    **dict.fromkeys((code for code in REASONS if code.startswith("recovery_")), "recovery_action"),
    **dict.fromkeys((code for code in REASONS if code.startswith("fabric_")), "fabric_faults"),
    "sram_ecc_threshold": "sram_threshold_exceeded",
    "compute_mode_prohibited": "compute_mode",
}
"""Reason → the field that gives it.

Where several share one, `unknowns` names the reason that was not read.
"""
_VANISHED = "the driver no longer lists the GPU"


def _covers(gpu: Gpu, code: str) -> bool:
    """Whether this reading would have given the reason: a reading clears only what it covers."""
    if any(given.code in _UNREAD for given in gpu.reasons):
        return False
    if code in gpu.unknowns:
        return False
    return code not in _FIELD_OF or getattr(gpu, _FIELD_OF[code]) is not None


def _without_figures(gpu: Gpu) -> Gpu:
    """The identity of a GPU, without its figures and reasons."""
    return Gpu(
        uuid=gpu.uuid,
        name=gpu.name,
        index=gpu.index,
        vendor=gpu.vendor,
        memory_mb=gpu.memory_mb,
        memory_kind=gpu.memory_kind,
        compute_capability=gpu.compute_capability,
        pci_bus_id=gpu.pci_bus_id,
        mig_enabled=gpu.mig_enabled,
        parent_uuid=gpu.parent_uuid,
        gpu_instance=gpu.gpu_instance,
    )


def _with_reasons_of_parents(gpus: list[Gpu]) -> Iterable[Gpu]:
    """Add each GPU's reasons to its MIG devices: a fault of the GPU is a fault of its MIG devices."""
    reasons_of = {gpu.uuid: gpu.reasons for gpu in gpus}
    for gpu in gpus:
        own = {each.code for each in gpu.reasons}
        above = [each for each in reasons_of.get(gpu.parent_uuid or "", ()) if each.code not in own]
        reasons = (*gpu.reasons, *above)
        yield replace(gpu, reasons=reasons, health=health_from(reasons)) if above else gpu


def _in_order(gpus: Iterable[Gpu]) -> tuple[Gpu, ...]:
    return tuple(sorted(gpus, key=lambda gpu: (gpu.index is None, gpu.index or 0, gpu.uuid)))


# ---- while polling is off

_POLLING_IS_OFF = "polling of GPUs is off (poll_gpus): read only on request"
_CONSTANT = frozenset(
    {"uuid", "name", "index", "vendor", "memory_mb", "memory_kind", "compute_capability", "pci_bus_id"}
    | {
        "mig_enabled",
        "parent_uuid",
        "gpu_instance",
        "visible",
        "asleep",
        "health",
        "reasons",
        "events",
        "unknowns",
    }
)
_POLLED_FIELDS = tuple(name for name in field_names(Gpu) if name not in _CONSTANT)


def strip_figures(report: GpuReport) -> GpuReport:
    """The report between two readings on request: identity and health stay, figures are unknown."""
    return replace(report, gpus=tuple(_unpolled(gpu) for gpu in report.gpus))


def _unpolled(gpu: Gpu) -> Gpu:
    constant = Gpu(**{name: getattr(gpu, name) for name in _CONSTANT - {"events", "unknowns"}})
    unknowns = {name: why for name, why in gpu.unknowns.items() if name in _CONSTANT}
    return replace(constant, unknowns={**unknowns, **dict.fromkeys(_POLLED_FIELDS, _POLLING_IS_OFF)})
