"""The probe loop: reads GPUs, host and models at a steady pace, and keeps the newest inventory.

Nothing here can block the agent. A child process with a deadline reads the driver; the model scanner
tolerates disks that hang. One scan of host and models at a time runs in a thread. When it hangs, the prober
does not wait for it again: until it answers, each inventory holds the last models beside new readings of
GPUs and host, and after `stale_after_seconds` none of those models counts as ready.

On an idle machine whose GPUs are all well, most rounds rest: they read nothing. Between two readings the GPUs
are watched, and inotify watches the models, so that what changes begins a round at once. The last round
before a heartbeat always reads.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping

from gpu_agent.node.gpu_readings import RETRY_DRIVER_SECONDS, Collectors, GpuReader, GpuSource
from gpu_agent.node.model_watch import ModelWatcher, UnreadableLog
from gpu_agent.probe.models.scanner import ModelScanner, mark_unreadable
from gpu_agent.probe.nvml.client import Watch
from gpu_agent.probe.snapshot import Sources, supported_features, take
from gpu_agent.records import dataclass, replace
from gpu_agent.runtime.logs import Logger
from gpu_agent.runtime.tasks import Tasks, in_thread
from gpu_agent.wire.inventory import GpuReport, Host, Inventory, Outcome

RESTING_ROUNDS = 2
"""At most so many rounds in a row read nothing."""
MAX_REST_SECONDS = 20.0
"""No reading waits longer for the next one, also where rounds are far apart."""
_NO_GPUS_YET = GpuReport(outcome=Outcome.OK)
_LOG = Logger("node.prober")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often to probe, and how long to wait. Seconds."""

    interval_seconds: float
    deadline_seconds: float
    """For each reading of the driver, of the collectors, and of host and disks."""
    stale_after_seconds: float
    retry_driver_seconds: float = RETRY_DRIVER_SECONDS
    poll_gpus: bool = True
    """False: after a good reading, GPUs are read again only when requested."""
    needed_at: Callable[[], float | None] = lambda: None
    """When figures are needed next, in monotonic seconds; None: in each round."""


class Prober:
    """Probes until its task is cancelled."""

    def __init__(
        self,
        gpus: GpuSource,
        sources: Sources,
        *,
        pace: Pace,
        simulated: bool,
        listener: Callable[[Inventory], Awaitable[None]],
        collectors: Collectors | None = None,
    ) -> None:
        """`gpus` and `collectors` keep their own deadlines; `listener` is awaited after each probe."""
        self.began_at = time.monotonic()
        """When the current or last round began, in monotonic seconds."""
        self._sources = sources
        self._pace = pace
        self._simulated = simulated
        self._listener = listener
        self._gpus = gpus
        self._gpu_reader = GpuReader(
            gpus,
            collectors or Collectors(()),
            stale_after_seconds=pace.stale_after_seconds,
            retry_driver_seconds=pace.retry_driver_seconds,
            poll=pace.poll_gpus,
        )
        self._wake = asyncio.Event()
        """Set to begin the next round at once."""
        self._gpus_requested = False
        self._watched = False
        """Whether the GPUs are watched since the last reading."""
        self._rested = 0
        """How many rounds since then have read nothing."""
        self._read_at = self.began_at
        """When the last round that read began, in monotonic seconds."""
        self._scanned: Inventory | None = None
        """Host and models of the last scan that answered; None before the first."""
        self._scanned_sources: Sources | None = None
        self._new_sources_reported = asyncio.Event()
        self._scan: asyncio.Task[Inventory] | None = None
        self._overdue = False
        """Whether the scan has missed its deadline."""
        self._answered_at = time.monotonic()
        """When a scan last answered, in monotonic seconds."""
        self._host_reading: asyncio.Task[Host] | None = None
        """Read beside a scan that hangs, because the load of that scan is soon out of date."""
        self._unreadable_log = UnreadableLog()
        self._watcher = ModelWatcher(self._wake.set)

    @property
    def probe_age_seconds(self) -> float | None:
        """Age of the last good GPU reading; None when there never was one, and where they are not polled."""
        return self._gpu_reader.age_seconds

    @property
    def reading_ages(self) -> Mapping[str, float]:
        """Age of the last good reading of each vendor's GPUs; empty where GPUs are not polled."""
        return self._gpu_reader.ages_by_vendor

    @property
    def max_round_seconds(self) -> float:
        """The longest that a round takes: four readings, each with its deadline, then the interval."""
        return self._interval() + 4 * self._pace.deadline_seconds

    @property
    def scanner(self) -> ModelScanner:
        """The scanner of the model sources."""
        return self._sources.scanner

    async def replace_sources(self, sources: Sources) -> None:
        """Scan other model sources; returns when their models are reported, or after one round."""
        self._sources = replace(sources, host=self._sources.host)
        self._new_sources_reported = asyncio.Event()
        self._wake.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.max_round_seconds):
                await self._new_sources_reported.wait()

    def set_interval(self, interval_seconds: float) -> None:
        """Probe at another interval; a new one begins at once."""
        if interval_seconds != self._pace.interval_seconds:
            self._pace = replace(self._pace, interval_seconds=interval_seconds)
            self._wake.set()

    def probe_now(self) -> None:
        """Begin the next round at once, and read the GPUs even where they are not polled."""
        self._gpus_requested = True
        self._wake.set()

    async def run(self, tasks: Tasks) -> None:
        """Probe, report, wait; `tasks` runs the scans."""
        await self._scan_until_deadline(tasks, self._host_only)
        tasks.start("model-watcher", self._watcher.run())
        while True:
            self.began_at = time.monotonic()
            if self._may_rest_now():
                self._rested += 1
            else:
                self._wake.clear()
                await self._probe(tasks)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval()):
                    await self._wake.wait()

    def _may_rest_now(self) -> bool:
        """Whether this round may read nothing: the next one comes before any figures are needed."""
        if self._wake.is_set() or not self._watched or not self._may_rest():
            return False
        needed_at, next_at = self._pace.needed_at(), self.began_at + self._interval()
        is_soon_enough = self._rested < RESTING_ROUNDS and next_at - self._read_at <= MAX_REST_SECONDS
        return is_soon_enough and needed_at is not None and needed_at > next_at

    def _may_rest(self) -> bool:
        """Whether all that may change is noticed without a reading."""
        models_are_watched = (
            self._scanned is not None and self._scanned.models_complete and self._watcher.watches_all
        )
        return (
            self._gpus.watch is not None
            and self._gpu_reader.is_calm
            and models_are_watched
            and not self._overdue
            and self._pace.needed_at() is not None
        )

    async def _probe(self, tasks: Tasks) -> None:
        """One round: read the GPUs, scan host and models, report the inventory."""
        requested, self._gpus_requested = self._gpus_requested, False
        self._read_at, self._rested, self._watched = self.began_at, 0, self._may_rest()
        if self._gpus.watch is not None:
            watch = Watch(every_seconds=self._interval(), changed=self._wake.set)
            self._gpus.watch(watch if self._watched else None)
        gpus = await self._gpu_reader.read(tasks, requested=requested)
        was_overdue = self._overdue
        await self._scan_until_deadline(tasks, self._host_and_models)
        self._watcher.after_scan(every_seconds=self._interval())
        self._unreadable_log.note(self.scanner.problems, self.scanner.paths)
        if self._scanned is not None:
            if was_overdue or self._overdue:
                self._scanned = await self._with_fresh_host(tasks, self._scanned)
            await self._listener(replace(self._without_stale_models(self._scanned), gpu=gpus))
        if self._scanned_sources is self._sources:
            self._new_sources_reported.set()

    async def _scan_until_deadline(self, tasks: Tasks, scan: Callable[[], Inventory]) -> None:
        """Scan in a thread. While a scan hangs no other one starts, and nothing waits for it again."""
        if self._scan is None:
            self._scan = tasks.start("host-scan", in_thread("host-scan", scan, deadline_seconds=None))
        await asyncio.wait({self._scan}, timeout=0 if self._overdue else self._pace.deadline_seconds)
        answered = self._scan.done()
        if answered:
            self._scanned, self._scan = self._scan.result(), None
            self._answered_at = time.monotonic()
        if answered and self._overdue:
            _LOG.info("host_scan_recovered")
        elif not answered and not self._overdue:
            _LOG.warning("host_scan_overdue", deadline_seconds=self._pace.deadline_seconds)
        self._overdue = not answered

    def _without_stale_models(self, inventory: Inventory) -> Inventory:
        """Mark the models unreadable once the disks have not answered for too long."""
        age_seconds = time.monotonic() - self._answered_at
        if not self._overdue or age_seconds < self._pace.stale_after_seconds:
            return inventory
        models = mark_unreadable(inventory.models)
        supported = supported_features(self._sources.policy, models)
        return replace(inventory, models=models, features_supported=supported)

    async def _with_fresh_host(self, tasks: Tasks, inventory: Inventory) -> Inventory:
        """Read the host without its disks; where even that hangs, its load is unknown."""
        if self._host_reading is None:
            work = in_thread("host", self._sources.host.read, deadline_seconds=None)
            self._host_reading = tasks.start("host", work)
        await asyncio.wait({self._host_reading}, timeout=self._pace.deadline_seconds)
        host = _without_load(inventory.host)
        if self._host_reading.done():
            host, self._host_reading = self._host_reading.result(), None
        unknowns = {**host.unknowns, "cache_disks": "no answer"} if self._overdue else host.unknowns
        disks = () if self._overdue else inventory.host.cache_disks
        return replace(inventory, host=replace(host, cache_disks=disks, unknowns=unknowns))

    def _host_only(self) -> Inventory:
        """Read only what rarely hangs, for the time before the first scan of models answers."""
        host = self._sources.host.read()
        return Inventory(host=host, gpu=_NO_GPUS_YET, models_complete=False, simulated=self._simulated)

    def _host_and_models(self) -> Inventory:
        sources = self._sources
        inventory = take(_NO_GPUS_YET, sources, simulated=self._simulated, after_read=self._watcher.follow)
        self._scanned_sources = sources
        return inventory

    def _interval(self) -> float:
        """A machine without any GPU is probed less often."""
        least_seconds = self._pace.retry_driver_seconds if self._gpu_reader.finds_none else 0.0
        return max(self._pace.interval_seconds, least_seconds)


def _without_load(host: Host) -> Host:
    unknown = dict.fromkeys(
        ("cpu_percent", "load_1m", "memory_used_mb", "memory_available_mb"), "the machine does not answer"
    )
    return replace(
        host,
        cpu_percent=None,
        load_1m=None,
        memory_used_mb=None,
        memory_available_mb=None,
        unknowns={**host.unknowns, **unknown},
    )
