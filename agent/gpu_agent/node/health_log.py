"""What the log says of the GPUs' health: each change of it once, and what the driver told as events.

It judges nothing: health is `probe.health`'s to say. An event that comes again and again is told once
a minute for each GPU, with how often it came.
"""

from dataclasses import dataclass

from gpu_agent.probe.reasons import REASONS, meaning
from gpu_agent.runtime.logs import EventLog
from gpu_agent.wire.inventory import Gpu, GpuReport, Health

AGAIN_SECONDS = 60.0

_LOG = EventLog("node.health")


@dataclass(slots=True)
class _Waiting:
    """How often an event came since it was last told, and when (monotonic seconds) it may be told again."""

    index: int | None
    not_before: float
    count: int = 0


class HealthLog:
    """Compares each report with the one before."""

    def __init__(self) -> None:
        self._health: dict[str, Health] = {}
        self._events: dict[tuple[str, str], _Waiting] = {}
        self._unheard: dict[str, str] = {}

    def note(self, report: GpuReport, *, heard: bool, now: float) -> None:
        """Log what is new. `now`: monotonic seconds. `heard`: reading and events are fresh."""
        for gpu in report.gpus:
            self._note_health(gpu)
            if heard:
                self._count_events(gpu, now)
                self._note_unheard(gpu)
        self._health = {gpu.uuid: gpu.health for gpu in report.gpus}
        self._tell_events(now)

    def _note_health(self, gpu: Gpu) -> None:
        before = self._health.get(gpu.uuid)
        if gpu.health is (before or Health.OK):
            return
        fields: dict[str, object] = {
            "uuid": gpu.uuid,
            "index": gpu.index,
            "from": before and before.value,
            "to": gpu.health.value,
            "reasons": [each.code for each in gpu.reasons],
            "detail": "; ".join(each.detail for each in gpu.reasons),
            "action": "; ".join(dict.fromkeys(each.action for each in gpu.reasons if each.action)),
        }
        if gpu.health is Health.OK:
            _LOG.info("gpu_health_changed", **fields)
        else:
            _LOG.warning("gpu_health_changed", **fields)

    def _count_events(self, gpu: Gpu, now: float) -> None:
        for code, count in gpu.events.items():
            waiting = self._events.setdefault((gpu.uuid, code), _Waiting(gpu.index, now))
            waiting.count += count

    def _note_unheard(self, gpu: Gpu) -> None:
        """Say once that a GPU's driver tells of no events: what is not heard does not count."""
        why = gpu.unknowns.get("events")
        if why is None and gpu.health is Health.OK and not gpu.asleep:
            self._unheard.pop(gpu.uuid, None)
        elif why is not None and self._unheard.get(gpu.uuid) != why:
            _LOG.info("gpu_events_unheard", uuid=gpu.uuid, index=gpu.index, reason=why)
            self._unheard[gpu.uuid] = why

    def _tell_events(self, now: float) -> None:
        for (uuid, code), waiting in tuple(self._events.items()):
            if now < waiting.not_before:
                continue
            if not waiting.count:
                del self._events[uuid, code]  # quiet for a minute: the next one is told at once
                continue
            _LOG.warning(
                "gpu_event",
                uuid=uuid,
                index=waiting.index,
                code=code,
                count=waiting.count,
                counts=code in REASONS,
                meaning=meaning(code),
            )
            waiting.not_before, waiting.count = now + AGAIN_SECONDS, 0
