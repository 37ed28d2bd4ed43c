"""Whether jobs of the public pool may come here now: the owner's word, and the limits that he sets to it.

It brings the local time and the jobs in flight to `limits`, and logs what changes. It tells no registry:
what it says becomes part of the declaration.
"""

import time
from dataclasses import dataclass, replace
from datetime import datetime
from zoneinfo import ZoneInfo

from gpu_agent.node.jobs import Jobs
from gpu_agent.node.limits import Limit, Limits, Now, Pause
from gpu_agent.node.settings import AgentSettings
from gpu_agent.runtime.logs import EventLog
from gpu_agent.wire.declaration import Owner
from gpu_agent.wire.inventory import GpuReport

_LOG = EventLog("node.public_pool")


@dataclass(frozen=True, slots=True)
class Standing:
    """How it stands with public jobs, for `status`."""

    wanted: bool
    """What `accept_public_jobs` says."""
    pauses: tuple[Pause, ...] = ()
    """What keeps them out though they are wanted."""

    @property
    def accepted(self) -> bool:
        """What the registry is told."""
        return self.wanted and not self.pauses


class PublicPool:
    """Judges with each probe."""

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        self._owner = settings.owner
        self._limits = Limits(settings.public_jobs, polled=settings.poll_gpus)
        self._told: frozenset[Limit] = frozenset()
        self.standing = Standing(self._owner.accept_public_jobs)
        """As of the last probe."""

    def take_over(self, settings: AgentSettings) -> None:
        """Go on with what the owner says now; limits that are as before remember what they saw."""
        if settings.public_jobs != self._settings.public_jobs:
            self._limits = Limits(settings.public_jobs, polled=settings.poll_gpus)
        self._settings, self._owner = settings, settings.owner
        self.standing = replace(self.standing, wanted=settings.accept_public_jobs)

    def owner_at(self, report: GpuReport, jobs: Jobs, *, now: float) -> Owner:
        """What the owner states at this moment, his limits considered. `now`: monotonic seconds."""
        if not self._owner.accept_public_jobs:
            self.standing, self._told = Standing(wanted=False), frozenset()
            return self._owner
        local = _local(self._settings.public_jobs.time_zone)
        pauses = self._limits.judge(Now(report, bool(jobs.ids), local, now))
        self.standing = Standing(wanted=True, pauses=pauses)
        self._tell(pauses)
        return replace(self._owner, accept_public_jobs=self.standing.accepted)

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
