"""The probe loop: reads GPUs, host and models at a steady pace, and keeps the newest inventory.

Nothing here can block the agent. A child process with a deadline asks the driver; the scanner tolerates
disks that hang. One scan of host and models runs in a thread; when it hangs, the agent leaves that thread
behind, starts no second one, and reports the last models with new GPU and host readings. After the limit
for stale readings no found model counts as ready.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from gpu_agent.node.gpu_readings import Collectors, HealthLog, ReadingLog
from gpu_agent.node.model_watch import ModelWatcher, UnreadableLog
from gpu_agent.probe import snapshot as features
from gpu_agent.probe.collectors.runner import merge_reports
from gpu_agent.probe.health.tracker import HealthTracker, MissedReading, strip_figures
from gpu_agent.probe.models.scanner import ModelScanner, mark_unreadable
from gpu_agent.probe.nvml.client import ChildPolicy, NvmlClient
from gpu_agent.probe.nvml.process import hung_sentence
from gpu_agent.probe.simulation.gpus import SimulatedGpus
from gpu_agent.probe.snapshot import Sources, take
from gpu_agent.runtime.logs import Logger
from gpu_agent.runtime.tasks import Tasks, in_thread
from gpu_agent.wire.inventory import GpuReport, Host, Inventory, Outcome

# The probe loop: reads the GPUs, the host and the models at a calm pace, and keeps the newest inventory.
#
# Nothing here can hold the agent up: the driver is asked through a child with a deadline, the catalogue
# bears with disks that hang, each by itself, and a look at host and models as a whole runs in a thread
# that
# is left behind when even that hangs, one at most; until it answers the models stand as they were, with
# new
# readings of the GPUs and of the host, and past the limit for stale readings no found model is ready.
# Sends nothing: each inventory is handed to whoever listens.


ReadGpus = Callable[[], Awaitable[GpuReport | MissedReading]]

PACE_WITHOUT_DRIVER_SECONDS = 30.0
"""Each look for a driver that is not there starts a process; it must not cost what reading one does."""

_UNREAD = GpuReport(outcome=Outcome.OK)
_LOG = Logger("node.prober")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often to look, and how long to wait. Seconds."""

    interval_seconds: float
    deadline_seconds: float
    stale_after_seconds: float
    without_driver_seconds: float = PACE_WITHOUT_DRIVER_SECONDS
    poll_gpus: bool = True
    """False: once read well, they are read again only when somebody asks."""


class Prober:
    """Probes until its task is cancelled."""

    def __init__(
        self,
        read_gpus: ReadGpus,
        sources: Sources,
        *,
        pace: Pace,
        simulated: bool,
        listener: Callable[[Inventory], Awaitable[None]],
        collecting: Collectors | None = None,
    ) -> None:
        """`read_gpus` keeps its own deadline, `collecting` too; `listener` is awaited after each probe."""
        self._read_gpus = read_gpus
        self._collecting = collecting or Collectors(())
        self._sources = sources
        self._pace = pace
        self._simulated = simulated
        self._listener = listener
        self._health = HealthTracker(pace.stale_after_seconds)
        self._health_log = HealthLog()
        self._turns = ProbeTurns()
        self._asked = asyncio.Event()
        self._gpus_asked = False
        self._at_rest: GpuReport | None = None
        """The GPUs as last read, where they are not polled."""
        self._surroundings: Inventory | None = None
        """Host and models as last read; None until the host has answered once."""
        self._looking: asyncio.Task[Inventory] | None = None
        self._overdue = False
        self._answered_at = time.monotonic()
        """When the disks did so last."""
        self._reading_host: asyncio.Task[Host] | None = None
        """Beside a look that hangs: how busy the host was then is soon untrue."""
        self._reading_log = ReadingLog()
        self._absent: GpuReport | None = None
        """What NVML said last, where that was that there is no working driver."""
        self._look_again_at = 0.0
        self._unsearched = UnreadableLog()
        self._rescans = ModelWatcher(self._asked.set, every_seconds=pace.interval_seconds)

    @property
    def probe_age_seconds(self) -> float | None:
        """Age of the last good GPU reading; None when there never was one, and where they are not polled."""
        if self._at_rest is not None:
            return None
        ages = (self._health.age_seconds(time.monotonic()), self._collecting.age_seconds())
        return min((age for age in ages if age is not None), default=None)

    @property
    def turned_at(self) -> float:
        """When it last began to look, in monotonic seconds."""
        return self._turns.began_at

    @property
    def patience_seconds(self) -> float:
        """How long one turn takes at most: each of four parties keeps its deadline, and then it waits."""
        return self._interval() + 4 * self._pace.deadline_seconds

    @property
    def scanner(self) -> ModelScanner:
        """Where it looks for models."""
        return self._sources.scanner

    async def renew(self, sources: Sources) -> None:
        """Look there from the next turn on, which is now, and wait until it is told; for no hung disk."""
        self._sources = replace(sources, host=self._sources.host)
        self._asked.set()
        await self._turns.renewed(within_seconds=self.patience_seconds)

    def repace(self, interval_seconds: float) -> None:
        """Look so often from the next turn on, which is now where that is new."""
        if interval_seconds != self._pace.interval_seconds:
            self._pace = replace(self._pace, interval_seconds=interval_seconds)
            self._asked.set()

    def probe_now(self) -> None:
        """Do not wait for the next turn, and read the GPUs even where they are not polled."""
        self._gpus_asked = True
        self._asked.set()

    async def run(self, tasks: Tasks) -> None:
        """Probe, tell, wait; `tasks` is where a look at the host and the disks is started."""
        await self._look_around(tasks, self._take_host)
        tasks.start("rescans", self._rescans.run())
        while True:
            self._asked.clear()
            self._turns.begin()
            gpus = await self._gpus(tasks)
            was_overdue = self._overdue
            await self._look_around(tasks, self._take)
            self._rescans.scanned()
            scanner = self._sources.scanner
            self._unsearched.note(scanner.problems, scanner.paths)
            if self._surroundings is not None:
                if was_overdue or self._overdue:
                    await self._read_host_anew(tasks, self._surroundings)
                await self._listener(replace(self._vouched_for(self._surroundings), gpu=gpus))
            self._turns.told(self._sources)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval()):
                    await self._asked.wait()

    async def _gpus(self, tasks: Tasks) -> GpuReport:
        """Read the GPUs, NVML's and the collectors', and judge them, unless they are to be left alone."""
        asked, self._gpus_asked = self._gpus_asked, False
        if self._at_rest is not None and not asked:
            return self._at_rest
        self._collecting.begin(tasks)
        result = await self._read_own(at_once=asked)
        gpus = merge_reports(self._judged(result), await self._collecting.reports())
        read_well = isinstance(result, GpuReport) and gpus.outcome is Outcome.OK and bool(gpus.gpus)
        self._at_rest = strip_figures(gpus) if read_well and not self._pace.poll_gpus else None
        return gpus

    async def _read_own(self, *, at_once: bool) -> GpuReport | MissedReading:
        """Ask NVML; where it has no driver, only so often, however often the collectors are asked."""
        if self._absent is not None and not at_once and time.monotonic() < self._look_again_at:
            return self._absent
        result = await self._read_gpus()
        self._reading_log.note(result)
        self._absent = None if isinstance(result, MissedReading) or result.outcome is Outcome.OK else result
        self._look_again_at = time.monotonic() + self._pace.without_driver_seconds
        return result

    def _judged(self, result: GpuReport | MissedReading) -> GpuReport:
        now = time.monotonic()
        gpus = self._health.observe(result, now_wall=time.time(), now_mono=now)
        self._health_log.note(gpus, heard=isinstance(result, GpuReport), now=now)
        return gpus

    async def _look_around(self, tasks: Tasks, look: Callable[[], Inventory]) -> None:
        """Look in a thread. While one look hangs there is no other, and it is not waited for again."""
        if self._looking is None:
            work = in_thread("surroundings", look, deadline_seconds=None)
            self._looking = tasks.start("surroundings", work)
        await asyncio.wait({self._looking}, timeout=0 if self._overdue else self._pace.deadline_seconds)
        answered = self._looking.done()
        if answered:
            self._surroundings, self._looking = self._looking.result(), None
            self._answered_at = time.monotonic()
        if answered and self._overdue:
            _LOG.info("host_scan_recovered")
        elif not answered and not self._overdue:
            _LOG.warning("host_scan_overdue", deadline_seconds=self._pace.deadline_seconds)
        self._overdue = not answered

    def _vouched_for(self, last: Inventory) -> Inventory:
        """What was found on the disks, as long as their last answer may stand for it."""
        age_seconds = time.monotonic() - self._answered_at
        if not self._overdue or age_seconds < self._pace.stale_after_seconds:
            return last
        models = mark_unreadable(last.models)
        return replace(
            last, models=models, features_supported=features.supported_features(self._sources.policy, models)
        )

    async def _read_host_anew(self, tasks: Tasks, last: Inventory) -> None:
        """Read the host without its disks; where even that hangs, how busy it is counts as unknown."""
        if self._reading_host is None:
            work = in_thread("host", self._sources.host.read, deadline_seconds=None)
            self._reading_host = tasks.start("host", work)
        await asyncio.wait({self._reading_host}, timeout=self._pace.deadline_seconds)
        host = _of_unknown_load(last.host)
        if self._reading_host.done():
            host, self._reading_host = self._reading_host.result(), None
        unknowns = {**host.unknowns, "cache_disks": "no answer"} if self._overdue else host.unknowns
        disks = () if self._overdue else last.host.cache_disks
        self._surroundings = replace(last, host=replace(host, cache_disks=disks, unknowns=unknowns))

    def _take_host(self) -> Inventory:
        """Read what no disk can hold up, as a rule: what stands in for the models that hang."""
        host = self._sources.host.read()
        return Inventory(host=host, gpu=_UNREAD, models_complete=False, simulated=self._simulated)

    def _take(self) -> Inventory:
        sources = self._sources
        inventory = take(_UNREAD, sources, simulated=self._simulated, after_read=self._rescans.follow)
        self._turns.looked_at(sources)
        return inventory

    def _interval(self) -> float:
        """A machine without any GPU is looked at less often."""
        nothing = self._absent is not None and self._collecting.age_seconds() is None
        return max(self._pace.interval_seconds, self._pace.without_driver_seconds if nothing else 0.0)


def _of_unknown_load(host: Host) -> Host:
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


# The probe's turns: when the last one began, and whether one has been told that looked where it was told
# to.
#
# It refuses to look anywhere itself.


class ProbeTurns:
    """Counts for one probe; `looked_at` comes from the thread that looks, all else from its loop."""

    def __init__(self) -> None:
        self.began_at = time.monotonic()
        """When the last one began, in monotonic seconds."""
        self._looked_at: Sources | None = None
        self._told = asyncio.Event()

    def begin(self) -> None:
        """Another one begins."""
        self.began_at = time.monotonic()

    def looked_at(self, sources: Sources) -> None:
        """The last look was there."""
        self._looked_at = sources

    def told(self, sources: Sources) -> None:
        """What was found is told; it is to be looked there."""
        if self._looked_at is sources:
            self._told.set()

    async def renewed(self, *, within_seconds: float) -> None:
        """Wait, for so long at most, until what is found at other places from now on is told."""
        self._told = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_seconds):
                await self._told.wait()


# Which GPUs the agent reads: this machine's, through NVML, or simulated ones.
#
# Both are opened once for the life of the process, and closed at its end.


GOODBYE_SECONDS = 0.5
"""How long a child may take to end by itself when the agent leaves."""


@asynccontextmanager
async def open_gpus(
    *, simulate: str | None, seed: str, deadline_seconds: float, keep_open: bool = True
) -> AsyncIterator[ReadGpus]:
    """Give the way to read them. `seed` tells one simulated machine from another.

    Not to keep the driver open between two readings lets a laptop's GPU sleep, and makes each slower.
    """
    if simulate is not None:
        gpus = SimulatedGpus(simulate, seed=seed)

        async def read() -> GpuReport | MissedReading:
            now = time.time()
            hung = gpus.hung_seconds(now)
            if hung is None:
                return gpus.read(now)
            since = time.monotonic() - hung
            return MissedReading(reason="nvml_hung", since=since, detail=hung_sentence(deadline_seconds))

        yield read
        return
    policy = ChildPolicy(goodbye_seconds=GOODBYE_SECONDS)
    probe = NvmlClient(deadline_seconds=deadline_seconds, policy=policy)
    try:
        yield probe.read if keep_open else _closed_after(probe)
    finally:
        await probe.close()


def _closed_after(probe: NvmlClient) -> ReadGpus:
    """Read, and let the child go; one that is stuck is kept, so that there is never another beside it."""

    async def read() -> GpuReport | MissedReading:
        result = await probe.read()
        if isinstance(result, GpuReport):
            await probe.close()
        return result

    return read
