"""The daemon's collectors: asked beside NVML, each in a thread of its own, with a memory of its own.

One that hangs has one thread, keeps its last good reading for a while, and is not asked again before
it answers; one that fails says why. None is waited for past the deadline, and none hurts another.
Reads nothing itself, and knows no collector by name.
"""

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial

from gpu_agent.node.health_log import HealthLog
from gpu_agent.node.settings import AgentSettings
from gpu_agent.probe.attempt import Attempt, Failed, silent_sentence
from gpu_agent.probe.collectors import installed
from gpu_agent.probe.health import HealthKeeper, Missed
from gpu_agent.runtime.logs import EventLog
from gpu_agent.runtime.tasks import Tasks, in_thread
from gpu_agent.wire.inventory import GpuReport, Outcome

DEADLINE_SECONDS, STALE_AFTER_SECONDS = 5.0, 60.0
_LOG = EventLog("node.collecting")


def collectors_of(settings: AgentSettings) -> "Collecting":
    """Open those that the owner wants; a machine that does not exist has nothing to collect from."""
    options = settings.probe_options
    chosen = () if settings.simulate is not None else installed(options.collectors)
    return Collecting(
        (Attempt(one, options.surroundings) for one in chosen),
        deadline_seconds=settings.deadline_seconds,
        stale_after_seconds=settings.nvml_stale_after_seconds,
    )


class Collecting:
    """Several collectors, asked together. All methods belong to one event loop."""

    def __init__(
        self,
        attempts: Iterable[Attempt],
        *,
        deadline_seconds: float = DEADLINE_SECONDS,
        stale_after_seconds: float = STALE_AFTER_SECONDS,
    ) -> None:
        self._deadline_seconds = deadline_seconds
        self._asked = [_Asked(one, HealthKeeper(stale_after_seconds)) for one in attempts]
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


class _Asked:
    """One collector, the answer that it owes, and what is remembered of it."""

    def __init__(self, attempt: Attempt, health: HealthKeeper) -> None:
        self.name = attempt.name
        self.health = health
        self.task: asyncio.Task[GpuReport | Failed] | None = None
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

    def _result(self, deadline_seconds: float) -> GpuReport | Missed:
        since = self._asked_at if self._missing_since is None else self._missing_since
        if self.task is None or not self.task.done():
            return Missed(
                reason="collector_hung", since=since, detail=silent_sentence(self.name, deadline_seconds)
            )
        answer, self.task = self.task.result(), None
        if isinstance(answer, Failed):
            return Missed(reason="collector_failed", since=since, detail=answer.detail)
        waited = time.monotonic() - self._asked_at
        return replace(answer, age_seconds=waited if waited > deadline_seconds else 0.0)

    def _note(self, result: GpuReport | Missed) -> None:
        """Log what it found when that changes, that it went silent or failed, once, and that it is back."""
        if not isinstance(result, Missed):
            if self._missing_since is not None:
                _LOG.info("collector_recovered", collector=self.name)
            self._missing_since = None
            self._note_found(result)
        elif self._missing_since is None:
            self._missing_since = result.since
            _LOG.warning("collector_missed", collector=self.name, reason=result.reason, detail=result.detail)

    def _note_found(self, report: GpuReport) -> None:
        found = (report.outcome, len(report.gpus))
        if found != self._found:
            self._found = found
            _LOG.info(
                "collector_probed",
                collector=self.name,
                outcome=report.outcome.value,
                detail=report.detail,
                gpu_count=len(report.gpus),
            )
