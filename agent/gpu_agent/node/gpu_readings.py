"""GPU readings beside NVML's: the collectors, and what the log says of readings and of GPU health.

Each collector runs in a thread of its own with a health tracker of its own. One that hangs keeps one thread
and its last good reading for a while, and is not asked again before it answers. One that fails says why.
The prober waits for none of them past the deadline.
"""

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

from gpu_agent.node.settings import AgentSettings
from gpu_agent.probe.collectors.runner import (
    CollectorFailure,
    CollectorRunner,
    find_collectors,
    silent_sentence,
)
from gpu_agent.probe.health.reasons import REASONS, meaning
from gpu_agent.probe.health.tracker import HealthTracker, MissedReading
from gpu_agent.runtime.logs import Logger
from gpu_agent.runtime.tasks import Tasks, in_thread
from gpu_agent.wire.inventory import Gpu, GpuReport, Health, Outcome

# The daemon's collectors: asked beside NVML, each in a thread of its own, with a memory of its own.
#
# One that hangs has one thread, keeps its last good reading for a while, and is not asked again before
# it answers; one that fails says why. None is waited for past the deadline, and none hurts another.
# Reads nothing itself, and knows no collector by name.


DEADLINE_SECONDS, STALE_AFTER_SECONDS = 5.0, 60.0
_COLLECTOR_LOG = Logger("node.collectors")


def open_collectors(settings: AgentSettings) -> "Collectors":
    """Open those that the owner wants; a machine that does not exist has nothing to collect from."""
    options = settings.probe_options
    chosen = () if settings.simulate is not None else find_collectors(options.collectors)
    return Collectors(
        (CollectorRunner(one, options.surroundings) for one in chosen),
        deadline_seconds=settings.deadline_seconds,
        stale_after_seconds=settings.nvml_stale_after_seconds,
    )


class Collectors:
    """Several collectors, asked together. All methods belong to one event loop."""

    def __init__(
        self,
        attempts: Iterable[CollectorRunner],
        *,
        deadline_seconds: float = DEADLINE_SECONDS,
        stale_after_seconds: float = STALE_AFTER_SECONDS,
    ) -> None:
        self._deadline_seconds = deadline_seconds
        self._asked = [_Collector(one, HealthTracker(stale_after_seconds)) for one in attempts]
        self._reports: dict[str, GpuReport] = {}
        self._begun_at = 0.0

    def begin(self, tasks: Tasks) -> None:
        """Ask those that owe no answer; `tasks` is where their threads are waited for."""
        self._begun_at = time.monotonic()
        for one in self._asked:
            one.ask(tasks, self._deadline_seconds)

    async def reports(self) -> Mapping[str, GpuReport]:
        """Each collector's report, when all have answered or the deadline, counted from `begin`, is over."""
        owed = [one.task for one in self._asked if one.task is not None]
        if owed:
            left = self._begun_at + self._deadline_seconds - time.monotonic()
            await asyncio.wait(owed, timeout=max(0.0, left))
        self._reports = {one.name: one.report(self._deadline_seconds) for one in self._asked}
        return self._reports

    def age_seconds(self) -> float | None:
        """Age of the newest good reading of a collector that has GPUs; None when there is none."""
        return min(self._ages(), default=None)

    def _ages(self) -> Iterator[float]:
        for one in self._asked:
            report, age = self._reports.get(one.name), one.health.age_seconds(time.monotonic())
            if report is not None and report.gpus and age is not None:
                yield age


class _Collector:
    """One collector, the answer that it owes, and what is remembered of it."""

    def __init__(self, attempt: CollectorRunner, health: HealthTracker) -> None:
        self.name = attempt.name
        self.health = health
        self.task: asyncio.Task[GpuReport | CollectorFailure] | None = None
        self._attempt = attempt
        self._health_log = HealthLog()
        self._asked_at = 0.0
        self._missing_since: float | None = None
        self._found: tuple[Outcome, int] = (Outcome.OK, 0)

    def ask(self, tasks: Tasks, deadline_seconds: float) -> None:
        if self.task is None:
            self._asked_at = time.monotonic()
            name = f"collector-{self.name}"
            read = partial(self._attempt.read, deadline_seconds)
            self.task = tasks.start(name, in_thread(name, read, deadline_seconds=None))

    def report(self, deadline_seconds: float) -> GpuReport:
        """Say how its GPUs are, from its answer or from its silence."""
        result = self._result(deadline_seconds)
        self._note(result)
        now = time.monotonic()
        report = self.health.observe(result, now_wall=time.time(), now_mono=now)
        self._health_log.note(report, heard=isinstance(result, GpuReport), now=now)
        return report

    def _result(self, deadline_seconds: float) -> GpuReport | MissedReading:
        since = self._asked_at if self._missing_since is None else self._missing_since
        if self.task is None or not self.task.done():
            return MissedReading(
                reason="collector_hung", since=since, detail=silent_sentence(self.name, deadline_seconds)
            )
        answer, self.task = self.task.result(), None
        if isinstance(answer, CollectorFailure):
            return MissedReading(reason="collector_failed", since=since, detail=answer.detail)
        waited = time.monotonic() - self._asked_at
        return replace(answer, age_seconds=waited if waited > deadline_seconds else 0.0)

    def _note(self, result: GpuReport | MissedReading) -> None:
        """Log what it found when that changes, that it went silent or failed, once, and that it is back."""
        if not isinstance(result, MissedReading):
            if self._missing_since is not None:
                _COLLECTOR_LOG.info("collector_recovered", collector=self.name)
            self._missing_since = None
            self._note_found(result)
        elif self._missing_since is None:
            self._missing_since = result.since
            _COLLECTOR_LOG.warning(
                "collector_missed", collector=self.name, reason=result.reason, detail=result.detail
            )

    def _note_found(self, report: GpuReport) -> None:
        found = (report.outcome, len(report.gpus))
        if found != self._found:
            self._found = found
            _COLLECTOR_LOG.info(
                "collector_probed",
                collector=self.name,
                outcome=report.outcome.value,
                detail=report.detail,
                gpu_count=len(report.gpus),
            )


# What changes about reading the GPUs, told in the log once each: that a driver hangs, answers, is there.
#
# It refuses to judge a GPU: what becomes of one stands in the log of its health.


_READING_LOG = Logger("node.prober")


class ReadingLog:
    """Remembers what was told last."""

    def __init__(self) -> None:
        self._outcome: Outcome | None = None
        self._missing: str | None = None

    def note(self, result: GpuReport | MissedReading) -> None:
        """Tell of a reading, if it is other than the one before."""
        if isinstance(result, MissedReading):
            if self._missing is None:
                _READING_LOG.warning("gpu_reading_missed", reason=result.reason, detail=result.detail)
            self._missing = result.reason
            return
        if self._missing is not None:
            _READING_LOG.info("gpu_reading_recovered", reason=self._missing)
            self._missing = None
        if result.outcome is not self._outcome:
            self._outcome = result.outcome
            _READING_LOG.info(
                "gpus_probed", outcome=result.outcome.value, detail=result.detail, gpu_count=len(result.gpus)
            )


# What the log says of the GPUs' health: each change of it once, and what the driver told as events.
#
# It judges nothing: health is `probe.health`'s to say. An event that comes again and again is told once
# a minute for each GPU, with how often it came.


AGAIN_SECONDS = 60.0

_HEALTH_LOG = Logger("node.health")


@dataclass(slots=True)
class _EventCount:
    """How often an event came since it was last told, and when (monotonic seconds) it may be told again."""

    index: int | None
    not_before: float
    count: int = 0


class HealthLog:
    """Compares each report with the one before."""

    def __init__(self) -> None:
        self._health: dict[str, Health] = {}
        self._events: dict[tuple[str, str], _EventCount] = {}
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
            _HEALTH_LOG.info("gpu_health_changed", **fields)
        else:
            _HEALTH_LOG.warning("gpu_health_changed", **fields)

    def _count_events(self, gpu: Gpu, now: float) -> None:
        for code, count in gpu.events.items():
            waiting = self._events.setdefault((gpu.uuid, code), _EventCount(gpu.index, now))
            waiting.count += count

    def _note_unheard(self, gpu: Gpu) -> None:
        """Say once that a GPU's driver tells of no events: what is not heard does not count."""
        why = gpu.unknowns.get("events")
        if why is None and gpu.health is Health.OK and not gpu.asleep:
            self._unheard.pop(gpu.uuid, None)
        elif why is not None and self._unheard.get(gpu.uuid) != why:
            _HEALTH_LOG.info("gpu_events_unavailable", uuid=gpu.uuid, index=gpu.index, reason=why)
            self._unheard[gpu.uuid] = why

    def _tell_events(self, now: float) -> None:
        for (uuid, code), waiting in tuple(self._events.items()):
            if now < waiting.not_before:
                continue
            if not waiting.count:
                del self._events[uuid, code]  # quiet for a minute: the next one is told at once
                continue
            _HEALTH_LOG.warning(
                "gpu_event",
                uuid=uuid,
                index=waiting.index,
                code=code,
                count=waiting.count,
                counts=code in REASONS,
                meaning=meaning(code),
            )
            waiting.not_before, waiting.count = now + AGAIN_SECONDS, 0
