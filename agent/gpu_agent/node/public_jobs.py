"""Whether this node takes jobs of the public pool now: the owner's setting and the owner's limits.

A limit whose reading is unknown stays as it was; one that was never known to hold counts as reached. After
a reading has reached its limit, it must be good for a while before it counts as good, so that nothing flaps.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from zoneinfo import ZoneInfo

from gpu_agent.node.jobs import Jobs
from gpu_agent.node.schedule import parse
from gpu_agent.node.settings import AgentSettings, PublicJobsSettings
from gpu_agent.runtime.logs import Logger
from gpu_agent.wire.declaration import Owner
from gpu_agent.wire.inventory import Gpu, GpuReport

# The owner's limits for public jobs: readings and the local time in, reasons to keep them out.
#
# Pure: it reads no clock, no GPU and no setting by itself. What is not known changes nothing: a limit
# holds
# as it held, and one that has never been known to be kept counts as reached. After a reading has reached
# its limit, it must be well for a while before it counts as such, so that nothing flaps.


COOLER_C = 5.0
"""A GPU that was too hot must be this much cooler than its limit to be cool again."""
BUSY_PERCENT, BUSY_SECONDS = 30.0, 20.0
"""Use from this on that no job and no process explains is somebody's, once it has lasted so long."""


class Limit(StrEnum):
    """What may keep public jobs out, named as the setting."""

    SCHEDULE = "schedule"
    TEMPERATURE = "max_temperature_c"
    FREE_MEMORY = "min_free_memory_mb"
    IN_USE = "pause_while_in_use"


@dataclass(frozen=True, slots=True)
class Pause:
    """A limit that keeps public jobs out now, and a sentence with the figures."""

    limit: Limit
    detail: str


@dataclass(frozen=True, slots=True)
class Now:
    """The moment that is judged: what was read, and when."""

    report: GpuReport
    working: bool
    """Whether jobs are in flight."""
    local: datetime
    """The owner's local time."""
    seconds: float
    """Monotonic."""


@dataclass(frozen=True, slots=True)
class _Check:
    limit: Limit
    reached: bool | None
    """None: not known."""
    detail: str


@dataclass(slots=True)
class _ActiveLimit:
    detail: str
    well_since: float | None = None


class Limits:
    """The limits of one owner, and which of them hold."""

    def __init__(self, settings: PublicJobsSettings, *, polled: bool = True) -> None:
        """`polled`: whether the GPUs are read all the time; else nobody watches what depends on them."""
        self._settings = settings
        self._polled = polled
        self._schedule = parse(settings.schedule) if settings.schedule else None
        self._known: set[Limit] = set()
        self._held: dict[Limit, _ActiveLimit] = {}
        self._busy_since: float | None = None

    def judge(self, now: Now) -> tuple[Pause, ...]:
        """Say what keeps public jobs out at this moment; nothing when they may come."""
        pauses = [*self._closed(now)]
        for look in self._looks(now) if self._polled else self._unwatched():
            held = self._judged(look, now.seconds)
            if held is not None:
                pauses.append(Pause(look.limit, held))
        return tuple(pauses)

    def _closed(self, now: Now) -> Iterator[Pause]:
        if self._schedule is not None and not self._schedule.allows(now.local):
            opens = self._schedule.next_opening(now.local)
            yield Pause(Limit.SCHEDULE, f"public jobs are let in again on {opens}")

    def _looks(self, now: Now) -> Iterator[_Check]:
        settings = self._settings
        if settings.max_temperature_c is not None:
            hot = Limit.TEMPERATURE in self._held and Limit.TEMPERATURE in self._known
            yield _too_hot(now.report, settings.max_temperature_c, was_hot=hot)
        if settings.min_free_memory_mb is not None:
            yield _too_full(now.report, settings.min_free_memory_mb)
        if settings.pause_while_in_use:
            yield self._in_use(now)

    def _unwatched(self) -> Iterator[_Check]:
        settings = self._settings
        asked = {
            Limit.TEMPERATURE: settings.max_temperature_c is not None,
            Limit.FREE_MEMORY: settings.min_free_memory_mb is not None,
            Limit.IN_USE: settings.pause_while_in_use,
        }
        for limit in (limit for limit, wanted in asked.items() if wanted):
            yield _Check(limit, None, "nobody watches the GPUs: poll_gpus is false")

    def _in_use(self, now: Now) -> _Check:
        """Somebody else computes, or uses a GPU for so long that no job of ours has just ended there."""
        busy = _unexplained(now)
        since = now.seconds if self._busy_since is None else self._busy_since
        self._busy_since = None if busy is None else since
        if busy is not None and now.seconds - since >= BUSY_SECONDS:
            return _Check(Limit.IN_USE, reached=True, detail=busy)
        return _in_use(now.report, working=now.working)

    def _judged(self, look: _Check, seconds: float) -> str | None:
        """Take one look; returns why the limit holds, if it does."""
        held = self._held.get(look.limit)
        match look.reached:
            case True:
                held = _ActiveLimit(look.detail)
            case None if look.limit not in self._known:
                held = _ActiveLimit(look.detail)
            case False if held is not None:
                held = self._recovering(held, look, seconds)
            case _:
                pass
        if look.reached is not None:
            self._known.add(look.limit)
        if held is None:
            self._held.pop(look.limit, None)
            return None
        self._held[look.limit] = held
        return held.detail

    def _recovering(self, held: _ActiveLimit, look: _Check, seconds: float) -> _ActiveLimit | None:
        """What is left of a limit whose reading is well: nothing, once it has been so for long enough."""
        if look.limit not in self._known:
            return None
        since = seconds if held.well_since is None else held.well_since
        patience = self._settings.resume_after_seconds
        if seconds - since >= patience:
            return None
        return _ActiveLimit(
            f"{look.detail}; public jobs are let in again after {patience:g} s of that", since
        )


def _too_hot(report: GpuReport, limit_c: float, *, was_hot: bool) -> _Check:
    known = [(gpu.temperature_c, gpu) for gpu in report.gpus if gpu.temperature_c is not None]
    if report.gpus and all(gpu.asleep for gpu in report.gpus):
        return _Check(Limit.TEMPERATURE, reached=False, detail="every GPU sleeps")
    if not known:
        return _Check(Limit.TEMPERATURE, None, "no GPU tells its temperature")
    hottest_c, gpu = max(known, key=lambda one: one[0])
    bound_c = limit_c - COOLER_C if was_hot else limit_c
    words = f"{_name(gpu)} has {hottest_c:g} °C, and the limit is {limit_c:g} °C"
    return _Check(Limit.TEMPERATURE, hottest_c >= bound_c, words)


def _too_full(report: GpuReport, limit_mb: int) -> _Check:
    known = [(free, gpu) for gpu in report.usable if (free := _free_mb(gpu)) is not None]
    if not known:
        return _Check(Limit.FREE_MEMORY, None, "no usable GPU tells its free memory")
    most_mb, gpu = max(known, key=lambda one: one[0])
    words = f"{most_mb} MB are free on {_name(gpu)}, the most of all, and the limit is {limit_mb} MB"
    return _Check(Limit.FREE_MEMORY, most_mb < limit_mb, words)


def _in_use(report: GpuReport, *, working: bool) -> _Check:
    """Whether somebody else computes; a process that nobody has announced is somebody else's."""
    other = next(
        ((one.pid, gpu) for gpu in report.gpus for one in gpu.processes or () if one.ours is not True), None
    )
    if other is not None:
        pid, gpu = other
        words = f"process {pid} uses {_name(gpu)}, and no worker of this node has announced it"
        return _Check(Limit.IN_USE, reached=True, detail=words)
    untold = next((gpu for gpu in report.gpus if not _tells_of_use(gpu, working=working)), None)
    if untold is not None or not report.gpus:
        words = "there is no GPU to look at" if untold is None else f"who uses {_name(untold)} is not told"
        return _Check(Limit.IN_USE, None, words)
    return _Check(Limit.IN_USE, reached=False, detail="nobody else uses a GPU")


def _tells_of_use(gpu: Gpu, *, working: bool) -> bool:
    """Whether somebody else's work would show: in the list of processes, or in use without a job."""
    return (
        gpu.processes is not None or bool(gpu.asleep) or (not working and gpu.utilization_percent is not None)
    )


def _unexplained(now: Now) -> str | None:
    """Use that nothing of ours explains, such as a game's: what only draws is in no list of processes."""
    if now.working:
        return None
    for gpu in now.report.gpus:
        use = gpu.utilization_percent
        if use is not None and use >= BUSY_PERCENT and not gpu.processes:
            return f"{_name(gpu)} is in use at {use:g} %, and no job is in flight"
    return None


def _free_mb(gpu: Gpu) -> int | None:
    if gpu.memory_free_mb is not None:
        return gpu.memory_free_mb
    if gpu.asleep:  # which no GPU does whose memory somebody holds
        return gpu.memory_mb
    if gpu.memory_mb is None or gpu.memory_used_mb is None:
        return None
    return gpu.memory_mb - gpu.memory_used_mb


def _name(gpu: Gpu) -> str:
    return gpu.name if gpu.index is None else f"GPU {gpu.index}"


# Whether jobs of the public pool may come here now: the owner's word, and the limits that he sets to it.
#
# It brings the local time and the jobs in flight to `limits`, and logs what changes. It tells no registry:
# what it says becomes part of the declaration.


_LOG = Logger("node.public_jobs")


@dataclass(frozen=True, slots=True)
class PublicJobsState:
    """How it stands with public jobs, for `status`."""

    wanted: bool
    """What `accept_public_jobs` says."""
    pauses: tuple[Pause, ...] = ()
    """What keeps them out though they are wanted."""

    @property
    def accepted(self) -> bool:
        """What the registry is told."""
        return self.wanted and not self.pauses


class PublicJobs:
    """Judges with each probe."""

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        self._owner = settings.owner
        self._limits = Limits(settings.public_jobs, polled=settings.poll_gpus)
        self._told: frozenset[Limit] = frozenset()
        self.state = PublicJobsState(self._owner.accept_public_jobs)
        """As of the last probe."""

    def apply(self, settings: AgentSettings) -> None:
        """Go on with what the owner says now; limits that are as before remember what they saw."""
        if settings.public_jobs != self._settings.public_jobs:
            self._limits = Limits(settings.public_jobs, polled=settings.poll_gpus)
        self._settings, self._owner = settings, settings.owner
        self.state = replace(self.state, wanted=settings.accept_public_jobs)

    def owner_at(self, report: GpuReport, jobs: Jobs, *, now: float) -> Owner:
        """What the owner states at this moment, his limits considered. `now`: monotonic seconds."""
        if not self._owner.accept_public_jobs:
            self.state, self._told = PublicJobsState(wanted=False), frozenset()
            return self._owner
        local = _local(self._settings.public_jobs.time_zone)
        pauses = self._limits.judge(Now(report, bool(jobs.ids), local, now))
        self.state = PublicJobsState(wanted=True, pauses=pauses)
        self._tell(pauses)
        return replace(self._owner, accept_public_jobs=self.state.accepted)

    def _tell(self, pauses: tuple[Pause, ...]) -> None:
        limits = frozenset(pause.limit for pause in pauses)
        if limits == self._told:
            return
        self._told = limits
        if pauses:
            detail = "; ".join(pause.detail for pause in pauses)
            _LOG.info("public_jobs_paused", limits=sorted(limits), detail=detail)
        else:
            _LOG.info("public_jobs_resumed")


def _local(zone: str | None) -> datetime:
    """The moment in a zone; None takes the machine's, which may be set anew while the agent runs."""
    if zone is not None:
        return datetime.fromtimestamp(time.time(), ZoneInfo(zone))
    if hasattr(time, "tzset"):  # not on Windows
        time.tzset()
    return datetime.fromtimestamp(time.time())  # noqa: DTZ006 - the machine's own, as it is now
