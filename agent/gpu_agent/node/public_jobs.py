"""Whether this node takes jobs of the public pool now: the owner's setting and the owner's limits.

A limit whose reading is unknown stays as it was; one that was never known to hold counts as reached. After
a reading has reached its limit, it must be good for a while before it counts as good, so that nothing flaps.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from gpu_agent.node.jobs import Jobs
from gpu_agent.node.settings import AgentSettings, PublicJobsSettings
from gpu_agent.runtime.logs import Logger
from gpu_agent.runtime.schedule import local_time, parse
from gpu_agent.wire.declaration import Owner
from gpu_agent.wire.inventory import Gpu, GpuReport

COOLER_C = 5.0
"""A GPU that was too hot must be this much cooler than its limit to be cool again."""
BUSY_PERCENT, BUSY_SECONDS = 30.0, 20.0
"""GPU use of at least this, for this time, is another user's if no job and no process explains it."""

_LOG = Logger("node.public_jobs")


class Limit(StrEnum):
    """A limit of the owner, named as its setting."""

    SCHEDULE = "schedule"
    TEMPERATURE = "max_temperature_c"
    FREE_MEMORY = "min_free_memory_mb"
    IN_USE = "pause_while_in_use"


@dataclass(frozen=True, slots=True)
class Pause:
    """A limit that pauses public jobs now, and a sentence with the figures."""

    limit: Limit
    detail: str


@dataclass(frozen=True, slots=True)
class PublicJobsState:
    """Whether this node takes public jobs, for `status`."""

    wanted: bool
    """The setting `accept_public_jobs`."""
    pauses: tuple[Pause, ...] = ()
    """Why it takes none though they are wanted."""

    @property
    def accepted(self) -> bool:
        """The value that the registry receives."""
        return self.wanted and not self.pauses


class PublicJobs:
    """Applies the owner's limits after each probe."""

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        self.owner = settings.owner
        """What the settings state, before the limits apply."""
        self._limits = PublicJobLimits(settings.public_jobs, polled=settings.poll_gpus)
        self._logged: frozenset[Limit] = frozenset()
        self.state = PublicJobsState(self.owner.accept_public_jobs)
        """As of the last probe."""

    @property
    def are_limited(self) -> bool:
        """Whether the owner takes public jobs, within limits that readings or the time may reach."""
        return self.owner.accept_public_jobs and self._limits.are_set

    def apply(self, settings: AgentSettings) -> None:
        """Apply settings that were read again; unchanged limits keep their readings."""
        if settings.public_jobs != self._settings.public_jobs:
            self._limits = PublicJobLimits(settings.public_jobs, polled=settings.poll_gpus)
        self._settings, self.owner = settings, settings.owner
        self.state = replace(self.state, wanted=settings.accept_public_jobs)

    def owner_at(self, report: GpuReport, jobs: Jobs, *, now: float) -> Owner:
        """What the owner states at this moment, limits included. `now`: monotonic seconds."""
        if not self.owner.accept_public_jobs:
            self.state, self._logged = PublicJobsState(wanted=False), frozenset()
            return self.owner
        local = local_time(self._settings.public_jobs.time_zone)
        pauses = self._limits.check(Now(report, bool(jobs.ids), local, now))
        self.state = PublicJobsState(wanted=True, pauses=pauses)
        self._log_changes(pauses)
        return replace(self.owner, accept_public_jobs=self.state.accepted)

    def _log_changes(self, pauses: tuple[Pause, ...]) -> None:
        limits = frozenset(pause.limit for pause in pauses)
        if limits == self._logged:
            return
        self._logged = limits
        if pauses:
            detail = "; ".join(pause.detail for pause in pauses)
            _LOG.info("public_jobs_paused", limits=sorted(limits), detail=detail)
        else:
            _LOG.info("public_jobs_resumed")


@dataclass(frozen=True, slots=True)
class Now:
    """The readings to check, and their time."""

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
    """None: unknown."""
    detail: str


@dataclass(slots=True)
class _ActiveLimit:
    detail: str
    good_since: float | None = None


class PublicJobLimits:
    """The owner's limits, and which of them pause public jobs; the caller brings readings and time."""

    def __init__(self, settings: PublicJobsSettings, *, polled: bool = True) -> None:
        """Without `polled`, GPUs are read on request only, and limits that depend on them are unknown."""
        self._settings = settings
        self._polled = polled
        self._schedule = parse(settings.schedule) if settings.schedule else None
        self._known: set[Limit] = set()
        self._active: dict[Limit, _ActiveLimit] = {}
        self._busy_since: float | None = None

    @property
    def are_set(self) -> bool:
        """Whether there is any limit."""
        settings = self._settings
        figures = (settings.max_temperature_c, settings.min_free_memory_mb)
        return bool(
            settings.schedule or settings.pause_while_in_use or any(one is not None for one in figures)
        )

    def check(self, now: Now) -> tuple[Pause, ...]:
        """Return the limits that pause public jobs at this moment."""
        pauses = [*self._closed(now)]
        for check in self._checks(now) if self._polled else self._unpolled():
            detail = self._pause_detail(check, now.seconds)
            if detail is not None:
                pauses.append(Pause(check.limit, detail))
        return tuple(pauses)

    def _closed(self, now: Now) -> Iterator[Pause]:
        if self._schedule is not None and not self._schedule.allows(now.local):
            opens = self._schedule.next_opening(now.local)
            yield Pause(Limit.SCHEDULE, f"public jobs start again on {opens}")

    def _checks(self, now: Now) -> Iterator[_Check]:
        settings = self._settings
        if settings.max_temperature_c is not None:
            hot = Limit.TEMPERATURE in self._active and Limit.TEMPERATURE in self._known
            yield _too_hot(now.report, settings.max_temperature_c, was_hot=hot)
        if settings.min_free_memory_mb is not None:
            yield _too_full(now.report, settings.min_free_memory_mb)
        if settings.pause_while_in_use:
            yield self._in_use(now)

    def _unpolled(self) -> Iterator[_Check]:
        settings = self._settings
        configured = {
            Limit.TEMPERATURE: settings.max_temperature_c is not None,
            Limit.FREE_MEMORY: settings.min_free_memory_mb is not None,
            Limit.IN_USE: settings.pause_while_in_use,
        }
        for limit in (limit for limit, is_set in configured.items() if is_set):
            yield _Check(limit, None, "the GPUs are not read: poll_gpus is false")

    def _in_use(self, now: Now) -> _Check:
        """Another user computes, or uses a GPU for so long that no job of ours has just ended there."""
        busy = _unexplained_use(now)
        since = now.seconds if self._busy_since is None else self._busy_since
        self._busy_since = None if busy is None else since
        if busy is not None and now.seconds - since >= BUSY_SECONDS:
            return _Check(Limit.IN_USE, reached=True, detail=busy)
        return _in_use(now.report, working=now.working)

    def _pause_detail(self, check: _Check, seconds: float) -> str | None:
        """Update one limit; returns why it pauses public jobs, if it does."""
        active = self._active.get(check.limit)
        match check.reached:
            case True:
                active = _ActiveLimit(check.detail)
            case None if check.limit not in self._known:
                active = _ActiveLimit(check.detail)
            case False if active is not None:
                active = self._recovering(active, check, seconds)
            case _:
                pass
        if check.reached is not None:
            self._known.add(check.limit)
        if active is None:
            self._active.pop(check.limit, None)
            return None
        self._active[check.limit] = active
        return active.detail

    def _recovering(self, active: _ActiveLimit, check: _Check, seconds: float) -> _ActiveLimit | None:
        """The limit whose reading is good again; None once it has been good for long enough."""
        if check.limit not in self._known:
            return None
        since = seconds if active.good_since is None else active.good_since
        wait_seconds = self._settings.resume_after_seconds
        if seconds - since >= wait_seconds:
            return None
        return _ActiveLimit(
            f"{check.detail}; public jobs start again after {wait_seconds:g} s of that", since
        )


def _too_hot(report: GpuReport, limit_c: float, *, was_hot: bool) -> _Check:
    known = [(gpu.temperature_c, gpu) for gpu in report.gpus if gpu.temperature_c is not None]
    if report.gpus and all(gpu.asleep for gpu in report.gpus):
        return _Check(Limit.TEMPERATURE, reached=False, detail="every GPU sleeps")
    if not known:
        return _Check(Limit.TEMPERATURE, None, "no GPU reports its temperature")
    hottest_c, gpu = max(known, key=lambda one: one[0])
    bound_c = limit_c - COOLER_C if was_hot else limit_c
    words = f"{_name(gpu)} has {hottest_c:g} °C, and the limit is {limit_c:g} °C"
    return _Check(Limit.TEMPERATURE, hottest_c >= bound_c, words)


def _too_full(report: GpuReport, limit_mb: int) -> _Check:
    known = [(free, gpu) for gpu in report.usable if (free := _free_mb(gpu)) is not None]
    if not known:
        return _Check(Limit.FREE_MEMORY, None, "no usable GPU reports its free memory")
    most_mb, gpu = max(known, key=lambda one: one[0])
    words = f"{most_mb} MB are free on {_name(gpu)}, the most of all, and the limit is {limit_mb} MB"
    return _Check(Limit.FREE_MEMORY, most_mb < limit_mb, words)


def _in_use(report: GpuReport, *, working: bool) -> _Check:
    """Whether another user computes; a process that no worker has announced is another user's."""
    other = next(
        ((one.pid, gpu) for gpu in report.gpus for one in gpu.processes or () if one.ours is not True), None
    )
    if other is not None:
        pid, gpu = other
        words = f"process {pid} uses {_name(gpu)}, and no worker of this node has announced it"
        return _Check(Limit.IN_USE, reached=True, detail=words)
    unknown = next((gpu for gpu in report.gpus if not _shows_use(gpu, working=working)), None)
    if unknown is not None or not report.gpus:
        words = "there is no GPU" if unknown is None else f"no process list for {_name(unknown)}"
        return _Check(Limit.IN_USE, None, words)
    return _Check(Limit.IN_USE, reached=False, detail="no other user uses a GPU")


def _shows_use(gpu: Gpu, *, working: bool) -> bool:
    """Whether another user's work would show: in the list of processes, or as use without a job."""
    return (
        gpu.processes is not None or bool(gpu.asleep) or (not working and gpu.utilization_percent is not None)
    )


def _unexplained_use(now: Now) -> str | None:
    """Use that no job explains, such as a game's: a program that only draws is in no list of processes."""
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
    if gpu.asleep:  # a GPU whose memory is in use never sleeps
        return gpu.memory_mb
    if gpu.memory_mb is None or gpu.memory_used_mb is None:
        return None
    return gpu.memory_mb - gpu.memory_used_mb


def _name(gpu: Gpu) -> str:
    return gpu.name if gpu.index is None else f"GPU {gpu.index}"
