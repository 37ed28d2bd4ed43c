"""A health tracker with a clock of its own, and readings for it."""

from gpu_agent.probe.health.reasons import health_from, reason
from gpu_agent.probe.health.tracker import HealthTracker, MissedReading
from gpu_agent.wire.inventory import Gpu, GpuReport, Health, Outcome

WALL = 1_800_000_000.0
"""Unix time at monotonic 0 in these tests."""


def gpu(index: int = 0, *codes: str, uuid: str | None = None) -> Gpu:
    reasons = tuple(reason(code) for code in codes)
    return Gpu(
        uuid=uuid or f"GPU-{index}",
        name="H100",
        index=index,
        memory_mb=81559,
        temperature_c=40,
        retirement_pending=bool({"row_remap_pending", "retired_pages_pending"} & set(codes)),
        compute_mode="prohibited" if "compute_mode_prohibited" in codes else "default",
        sram_threshold_exceeded="sram_ecc_threshold" in codes,
        fabric_faults=tuple(code for code in codes if code.startswith("fabric_")),
        recovery_action=next((code for code in codes if code.startswith("recovery_")), "none"),
        health=health_from(reasons),
        reasons=reasons,
    )


def reading(*gpus: Gpu) -> GpuReport:
    return GpuReport(outcome=Outcome.OK, gpus=gpus, driver_version="570.1", cuda_version="12.8")


def hung(since: float) -> MissedReading:
    return MissedReading(reason="nvml_hung", since=since, detail="NVML did not answer: reboot.")


class TrackedGpus:
    """A tracker, and the time of each reading."""

    def __init__(self, stale_after_seconds: float = 60.0) -> None:
        self.tracker = HealthTracker(stale_after_seconds)

    def at(self, now: float, result: GpuReport | MissedReading) -> GpuReport:
        return self.tracker.observe(result, now_wall=WALL + now, now_mono=now)

    def healths(self, now: float, result: GpuReport | MissedReading) -> list[Health]:
        return [each.health for each in self.at(now, result).gpus]


def codes(report: GpuReport, index: int = 0) -> list[str]:
    return [each.code for each in report.gpus[index].reasons]
