"""GPU readings of the agent: NVML's, each collector's beside it, and what the log says of them.

`GpuReader` merges all readings of one probe. Each collector runs in a thread of its own with a health
tracker of its own. One that hangs keeps one thread and its last good reading for a while, and is not asked
again before it answers. One that fails says why. The reader waits for none of them past the deadline.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial

from gpu_agent.node.settings import AgentSettings
from gpu_agent.probe.collectors.runner import (
    CollectorFailure,
    CollectorRunner,
    find_collectors,
    merge_reports,
    silent_sentence,
)
from gpu_agent.probe.health.history import SLOWDOWNS
from gpu_agent.probe.health.reasons import REASONS, meaning
from gpu_agent.probe.health.tracker import HealthTracker, MissedReading, strip_figures
from gpu_agent.probe.nvml.client import ChildPolicy, NvmlClient, Watch
from gpu_agent.probe.nvml.no_answer import hung_sentence
from gpu_agent.records import replace
from gpu_agent.runtime.logs import Logger
from gpu_agent.runtime.tasks import Tasks, in_thread
from gpu_agent.wire.inventory import Gpu, GpuReport, Health, Outcome

ReadGpus = Callable[[], Awaitable[GpuReport | MissedReading]]

RETRY_DRIVER_SECONDS = 30.0
"""Each attempt to find a driver starts a process, which must not cost what reading one does."""
REPEAT_EVENT_SECONDS = 60.0
_CHILD_EXIT_SECONDS = 0.5
"""How long the NVML child may take to end by itself when the agent exits."""

_LOG = Logger("node.gpus")


@dataclass(frozen=True, slots=True)
class GpuSource:
    """The NVIDIA GPUs of this machine, or those of a simulated one."""

    read: ReadGpus
    """It keeps a deadline of its own."""
    watch: Callable[[Watch | None], None] | None = None
    """Sets what happens between the readings from now on; None where nothing can."""
    read_whole_next: Callable[[], None] | None = None
    """Has the next reading read also what changes slowly; None where each one does."""


@asynccontextmanager
async def open_gpus(
    *, simulate: str | None, seed: str, deadline_seconds: float, keep_open: bool = True
) -> AsyncIterator[GpuSource]:
    """Yield this machine's NVIDIA GPUs, or those of a simulated machine.

    `seed` distinguishes simulated machines. Without `keep_open` the driver is closed between two readings,
    which lets a laptop's GPU sleep and makes each reading slower.
    """
    if simulate is not None:
        with closing(_Simulation(simulate, seed=seed, deadline_seconds=deadline_seconds)) as simulation:
            yield GpuSource(simulation.read, simulation.watch)
        return
    client = NvmlClient(
        deadline_seconds=deadline_seconds, policy=ChildPolicy(goodbye_seconds=_CHILD_EXIT_SECONDS)
    )
    watch = (
        client.watch if keep_open and sys.platform != "win32" else None
    )  # its child cannot wait for a pipe
    try:
        read = client.read if keep_open else _close_after(client)
        yield GpuSource(read, watch, client.read_whole_next)
    finally:
        await client.close()


class _Simulation:
    """Simulated GPUs, read and watched like true ones."""

    def __init__(self, spec: str, *, seed: str, deadline_seconds: float) -> None:
        from gpu_agent.probe.simulation.gpus import SimulatedGpus  # noqa: PLC0415 - most machines are real

        self._gpus = SimulatedGpus(spec, seed=seed)
        self._deadline_seconds = deadline_seconds
        self._timer: asyncio.TimerHandle | None = None

    async def read(self) -> GpuReport | MissedReading:
        now = time.time()
        hung = self._gpus.hung_seconds(now)
        if hung is None:
            return self._gpus.read(now)
        since = time.monotonic() - hung
        return MissedReading(reason="nvml_hung", since=since, detail=hung_sentence(self._deadline_seconds))

    def watch(self, watch: Watch | None) -> None:
        self.close()
        seconds = self._gpus.seconds_to_change(time.time())
        if watch is not None and seconds is not None:
            self._timer = asyncio.get_running_loop().call_later(seconds, watch.changed)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def open_collectors(settings: AgentSettings) -> "Collectors":
    """Open the configured collectors; a simulated machine has none."""
    options = settings.probe_options
    chosen = () if settings.simulate is not None else find_collectors(options.collectors)
    return Collectors(
        (CollectorRunner(one, options.surroundings) for one in chosen),
        deadline_seconds=settings.deadline_seconds,
        stale_after_seconds=settings.nvml_stale_after_seconds,
    )


class GpuReader:
    """Reads NVML and the collectors, judges the GPUs' health, and logs what changes."""

    def __init__(
        self,
        nvml: GpuSource,
        collectors: "Collectors",
        *,
        stale_after_seconds: float,
        retry_driver_seconds: float = RETRY_DRIVER_SECONDS,
        poll: bool = True,
    ) -> None:
        """Without `poll`, GPUs are read again only when requested."""
        self._source = nvml
        self._collectors = collectors
        self._retry_driver_seconds = retry_driver_seconds
        self._poll = poll
        self._health = HealthTracker(stale_after_seconds)
        self._health_log = HealthLog()
        self._reading_log = ReadingLog()
        self._unpolled: GpuReport | None = None
        """The GPUs as last read, where they are not polled."""
        self._without_driver: GpuReport | None = None
        """NVML's last answer, if it was that there is no working driver."""
        self._retry_driver_at = 0.0
        self.is_calm = False
        """Whether the last reading shows that nothing goes on which only the next readings would show."""

    @property
    def age_seconds(self) -> float | None:
        """Age of the last good reading; None when there never was one, and where GPUs are not polled."""
        if self._unpolled is not None:
            return None
        ages = (self._health.age_seconds(time.monotonic()), self._collectors.age_seconds())
        return min((age for age in ages if age is not None), default=None)

    @property
    def ages_by_vendor(self) -> Mapping[str, float]:
        """Age of the last good reading of each vendor's GPUs; empty where GPUs are not polled."""
        if self._unpolled is not None:
            return {}
        nvidia = self._health.age_seconds(time.monotonic())
        return {**self._collectors.ages_by_vendor(), **({} if nvidia is None else {"nvidia": nvidia})}

    @property
    def finds_none(self) -> bool:
        """Whether this machine has neither a working NVIDIA driver nor a GPU of a collector."""
        return self._without_driver is not None and self._collectors.age_seconds() is None

    async def read(self, tasks: Tasks, *, requested: bool) -> GpuReport:
        """Read all GPUs.

        `requested`: also those that are not polled, what changes slowly, and a driver that was missing.
        """
        if self._unpolled is not None and not requested:
            return self._unpolled
        if requested and self._source.read_whole_next is not None:
            self._source.read_whole_next()
        self._collectors.begin(tasks, requested=requested)
        reading = await self._nvml(retry=requested)
        gpus = merge_reports(self._judge(reading), await self._collectors.reports())
        good = isinstance(reading, GpuReport) and gpus.outcome is Outcome.OK and bool(gpus.gpus)
        self._unpolled = strip_figures(gpus) if good and not self._poll else None
        self.is_calm = good and not self._collectors.ages_by_vendor() and all(map(_is_calm, gpus.gpus))
        return gpus

    async def _nvml(self, *, retry: bool) -> GpuReport | MissedReading:
        """Read NVML; where there is no driver, only every `retry_driver_seconds`."""
        if self._without_driver is not None and not retry and time.monotonic() < self._retry_driver_at:
            return self._without_driver
        reading = await self._source.read()
        self._reading_log.note(reading)
        no_driver = isinstance(reading, GpuReport) and reading.outcome is not Outcome.OK
        self._without_driver = reading if isinstance(reading, GpuReport) and no_driver else None
        self._retry_driver_at = time.monotonic() + self._retry_driver_seconds
        return reading

    def _judge(self, reading: GpuReport | MissedReading) -> GpuReport:
        now = time.monotonic()
        gpus = self._health.observe(reading, now_wall=time.time(), now_mono=now)
        self._health_log.note(gpus, fresh=isinstance(reading, GpuReport), now=now)
        return gpus


def _is_calm(gpu: Gpu) -> bool:
    """Whether a GPU is well, no program uses it, and nothing slows it down."""
    slowed = SLOWDOWNS.keys() & (gpu.throttle_reasons or ())
    return gpu.health is Health.OK and not gpu.processes and not slowed


class Collectors:
    """Several collectors, read together. All methods belong to one event loop."""

    def __init__(
        self,
        runners: Iterable[CollectorRunner],
        *,
        deadline_seconds: float = 5.0,
        stale_after_seconds: float = 60.0,
    ) -> None:
        self._deadline_seconds = deadline_seconds
        self._collectors = [_Collector(one, HealthTracker(stale_after_seconds)) for one in runners]
        self._reports: dict[str, GpuReport] = {}
        self._began_at = 0.0

    def begin(self, tasks: Tasks, *, requested: bool = False) -> None:
        """Ask each collector that does not still owe an answer; `tasks` waits for their threads.

        One that found nothing is asked again after a while, or where a reading is `requested`.
        """
        self._began_at = time.monotonic()
        for collector in self._collectors:
            if requested or self._began_at >= collector.ask_again_at:
                collector.begin(tasks, self._deadline_seconds)

    async def reports(self) -> Mapping[str, GpuReport]:
        """Return each collector's report, once all have answered or the deadline since `begin` has passed."""
        pending = [one.task for one in self._collectors if one.task is not None]
        if pending:
            left = self._began_at + self._deadline_seconds - time.monotonic()
            await asyncio.wait(pending, timeout=max(0.0, left))
        self._reports = {one.name: one.report(self._deadline_seconds) for one in self._collectors}
        return self._reports

    def age_seconds(self) -> float | None:
        """Age of the newest good reading of a collector that has GPUs; None when there is none."""
        return min(self.ages_by_vendor().values(), default=None)

    def ages_by_vendor(self) -> Mapping[str, float]:
        """Age of the last good reading of each vendor's GPUs; of several collectors the oldest."""
        ages: dict[str, float] = {}
        for one in self._collectors:
            report, age = self._reports.get(one.name), one.health.age_seconds(time.monotonic())
            if report is not None and age is not None:
                for gpu in report.gpus:
                    ages[gpu.vendor] = max(age, ages.get(gpu.vendor, 0.0))
        return ages


class _Collector:
    """One collector, the answer that it owes, and its health tracker."""

    def __init__(self, runner: CollectorRunner, health: HealthTracker) -> None:
        self.name = runner.name
        self.health = health
        self.task: asyncio.Task[GpuReport | CollectorFailure] | None = None
        self.ask_again_at = 0.0
        """When to ask it again, in monotonic seconds: later where it found nothing."""
        self._nothing: GpuReport | None = None
        """Its last answer, where that was that there is no GPU."""
        self._runner = runner
        self._health_log = HealthLog()
        self._began_at = 0.0
        self._missing_since: float | None = None
        self._found: tuple[Outcome, int] = (Outcome.OK, 0)

    def begin(self, tasks: Tasks, deadline_seconds: float) -> None:
        if self.task is None:
            self._began_at = time.monotonic()
            name = f"collector-{self.name}"
            read = partial(self._runner.read, deadline_seconds)
            self.task = tasks.start(name, in_thread(name, read, deadline_seconds=None))

    def report(self, deadline_seconds: float) -> GpuReport:
        """Say how its GPUs are, from its answer or from its silence."""
        if self.task is None and self._nothing is not None:
            return self._nothing
        reading = self._reading(deadline_seconds)
        self._log(reading)
        now = time.monotonic()
        report = self.health.observe(reading, now_wall=time.time(), now_mono=now)
        self._health_log.note(report, fresh=isinstance(reading, GpuReport), now=now)
        found_none = isinstance(reading, GpuReport) and not report.gpus
        self._nothing = report if found_none else None
        self.ask_again_at = now + RETRY_DRIVER_SECONDS if found_none else now
        return report

    def _reading(self, deadline_seconds: float) -> GpuReport | MissedReading:
        since = self._began_at if self._missing_since is None else self._missing_since
        if self.task is None or not self.task.done():
            return MissedReading(
                reason="collector_hung", since=since, detail=silent_sentence(self.name, deadline_seconds)
            )
        answer, self.task = self.task.result(), None
        if isinstance(answer, CollectorFailure):
            return MissedReading(reason="collector_failed", since=since, detail=answer.detail)
        took = time.monotonic() - self._began_at
        return replace(answer, age_seconds=took if took > deadline_seconds else 0.0)

    def _log(self, reading: GpuReport | MissedReading) -> None:
        """Log once that it hangs or fails, once that it recovers, and each change of its GPUs."""
        if not isinstance(reading, MissedReading):
            if self._missing_since is not None:
                _LOG.info("collector_recovered", collector=self.name)
            self._missing_since = None
            self._log_found(reading)
        elif self._missing_since is None:
            self._missing_since = reading.since
            _LOG.warning(
                "collector_missed", collector=self.name, reason=reading.reason, detail=reading.detail
            )

    def _log_found(self, report: GpuReport) -> None:
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


class ReadingLog:
    """Logs what changes about reading NVML: the driver hangs, answers again, is missing."""

    def __init__(self) -> None:
        self._outcome: Outcome | None = None
        self._missing: str | None = None

    def note(self, reading: GpuReport | MissedReading) -> None:
        """Log a reading that differs from the one before."""
        if isinstance(reading, MissedReading):
            if self._missing is None:
                _LOG.warning("gpu_reading_missed", reason=reading.reason, detail=reading.detail)
            self._missing = reading.reason
            return
        if self._missing is not None:
            _LOG.info("gpu_reading_recovered", reason=self._missing)
            self._missing = None
        if reading.outcome is not self._outcome:
            self._outcome = reading.outcome
            _LOG.info(
                "gpus_probed",
                outcome=reading.outcome.value,
                detail=reading.detail,
                gpu_count=len(reading.gpus),
            )


@dataclass(slots=True)
class _EventCount:
    """How often an event came since it was logged, and when (monotonic seconds) it may be logged again."""

    index: int | None
    not_before: float
    count: int = 0


class HealthLog:
    """Logs each change of a GPU's health, and each of the driver's events at most once a minute per GPU."""

    def __init__(self) -> None:
        self._health: dict[str, Health] = {}
        self._events: dict[tuple[str, str], _EventCount] = {}
        self._without_events: dict[str, str] = {}

    def note(self, report: GpuReport, *, fresh: bool, now: float) -> None:
        """Log what is new. `now`: monotonic seconds. `fresh`: reading and events are new."""
        for gpu in report.gpus:
            self._log_health(gpu)
            if fresh:
                self._count_events(gpu, now)
                self._log_missing_events(gpu)
        self._health = {gpu.uuid: gpu.health for gpu in report.gpus}
        self._log_events(now)

    def _log_health(self, gpu: Gpu) -> None:
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
            counted = self._events.setdefault((gpu.uuid, code), _EventCount(gpu.index, now))
            counted.count += count

    def _log_missing_events(self, gpu: Gpu) -> None:
        """Log once that a GPU's driver reports no events: its Xids then count for nothing."""
        reason = gpu.unknowns.get("events")
        if reason is None and gpu.health is Health.OK and not gpu.asleep:
            self._without_events.pop(gpu.uuid, None)
        elif reason is not None and self._without_events.get(gpu.uuid) != reason:
            _LOG.info("gpu_events_unavailable", uuid=gpu.uuid, index=gpu.index, reason=reason)
            self._without_events[gpu.uuid] = reason

    def _log_events(self, now: float) -> None:
        for (uuid, code), counted in tuple(self._events.items()):
            if now < counted.not_before:
                continue
            if not counted.count:
                del self._events[uuid, code]  # none for a minute: the next one is logged at once
                continue
            _LOG.warning(
                "gpu_event",
                uuid=uuid,
                index=counted.index,
                code=code,
                count=counted.count,
                counts=code in REASONS,
                meaning=meaning(code),
            )
            counted.not_before, counted.count = now + REPEAT_EVENT_SECONDS, 0


def _close_after(client: NvmlClient) -> ReadGpus:
    """Close the driver after each reading, unless its child hangs: no second child starts beside that."""

    async def read() -> GpuReport | MissedReading:
        reading = await client.read()
        if isinstance(reading, GpuReport):
            await client.close()
        return reading

    return read
