"""The registry's health: readiness checks, the watchdog's liveness, and the figures that metrics show.

A full or failing disk does not make the registry unready to live, and one that hangs only after minutes:
what is known is still served meanwhile, and changes that cannot be stored are refused. Judges no node.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from gpu_agent.registry.fleet import Fleet
from gpu_agent.runtime.logs import Logger
from gpu_agent.runtime.sdnotify import SystemdNotifier, notify_liveness
from gpu_agent.server import counters as headcount
from gpu_agent.server.counters import EventCounters, FleetCounters, Histogram, Performance, PerformanceMeter
from gpu_agent.server.event_log import RegistryEventLog
from gpu_agent.server.loop import FleetLoop
from gpu_agent.server.message_handler import MessageHandler
from gpu_agent.server.node_listener import NodeListener
from gpu_agent.server.tls import Encryption
from gpu_agent.server.writer import Writer
from gpu_agent.wire.api import CheckView

# Whether the registry gets on: its fleet's clock goes, and the thread that keeps its state comes back.
#
# It judges signs and a moment, and nothing else. A disk that is full or fails is no sign of illness, and
# one
# that hangs is none for minutes: all that the registry knows stays told meanwhile, and what cannot be kept
# is
# refused. Past that only a new start can tell a disk that hangs from a thread that does.


MOST_LATE_SECONDS = 15.0
"""So late may the fleet's clock be: a loop that is merely busy comes to it within one."""
MOST_WRITING_SECONDS = 300.0
"""So long may one commit take: a disk that moves to another machine comes back before that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Liveness:
    """What a registry shows of itself. Instants are monotonic seconds."""

    wakes_at: float | None
    """When its fleet's clock is to be looked after; None while it keeps no time, as when it stops."""
    writing_since: float | None
    """When the store began with what it is at; None while it waits for work."""


def liveness_problem(signs: Liveness, now: float) -> str | None:
    """Say what stands still, as a sentence; None when the registry gets on."""
    if signs.wakes_at is not None and now - signs.wakes_at > MOST_LATE_SECONDS:
        return f"the fleet's clock is {now - signs.wakes_at:.0f} s late"
    if signs.writing_since is not None and now - signs.writing_since > MOST_WRITING_SECONDS:
        return f"the store has been at one commit for {now - signs.writing_since:.0f} s"
    return None


# How a registry is: whether it can do its work, and the figures by which it is watched.
#
# Gathers what its parts know of themselves; needs no library of metrics, and judges no node.


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much a registry holds."""

    nodes: int
    connections: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """A registry's figures, taken together. Counts are from its start."""

    ready: bool
    headcount: FleetCounters
    tally: EventCounters
    beats: int
    connections: int
    listeners: int
    """Who follows the events."""
    last_period: Performance | None
    """The last full period's; None before its end."""
    loop_lag: Histogram
    """Seconds."""
    selections: Histogram
    """Seconds."""
    saves_kept: int
    saves_failed: int
    saves_waiting: int
    commits: Histogram
    """Seconds."""
    certificate_ends_at: float | None = None
    """Seconds since 1970; None where nothing is encrypted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryHealth:
    """One registry's parts, asked how they are."""

    fleet: Fleet
    loop: FleetLoop
    switchboard: NodeListener
    reception: MessageHandler
    chronicle: RegistryEventLog
    meter: PerformanceMeter
    tally: EventCounters
    writer: Writer
    encryption: Encryption | None = None

    @property
    def size(self) -> Size:
        """How many nodes are known and how many connections are open."""
        return Size(nodes=self.fleet.size, connections=self.switchboard.size)

    @property
    def signs(self) -> Liveness:
        """What tells whether the registry gets on."""
        return Liveness(wakes_at=self.loop.wake_at, writing_since=self.writer.busy_since)

    def readiness(self) -> tuple[CheckView, ...]:
        """Say whether the registry can do its work, check by check."""
        running, refusal, problem = self.loop.running, self.switchboard.closed_reason, self.loop.store_problem
        return (
            CheckView(
                name="fleet",
                ok=running,
                detail="what was kept is taken back" if running else "it is starting or stopping",
            ),
            CheckView(
                name="store",
                ok=problem is None,
                detail="what is told is kept first" if problem is None else problem,
            ),
            CheckView(
                name="nodes",
                ok=refusal is None,
                detail="they may register" if refusal is None else f"the registry {refusal}",
            ),
        )

    async def figures(self) -> Figures:
        """Take all figures; looks at every node, and lets others have their turn meanwhile."""
        counted = await headcount.count_fleet(self.fleet.nodes())
        return Figures(
            ready=all(check.ok for check in self.readiness()),
            headcount=counted,
            tally=self.tally,
            beats=self.reception.beats,
            connections=self.switchboard.size,
            listeners=self.chronicle.listeners,
            last_period=self.meter.last,
            loop_lag=self.meter.loop_lag,
            selections=self.meter.selections,
            saves_kept=self.writer.stored,
            saves_failed=self.writer.failed,
            saves_waiting=self.loop.unstored,
            commits=self.writer.commits,
            certificate_ends_at=None if self.encryption is None else self.encryption.ends_at,
        )


# The registry as its service manager sees it: what it holds in a line, and a sign of life while it gets
# on.
#
# It lives while `pulse` finds nothing that ails it; what does is logged. Feeds no watchdog itself.


_LOG = Logger("registry")


async def report_to_systemd(systemd: SystemdNotifier, health: RegistryHealth, *, where: str) -> None:
    """Look and tell until cancelled; `where` says on which addresses it listens."""

    def changed(problem: str | None) -> None:
        if problem is None:
            _LOG.info("registry_recovered")
        else:
            _LOG.error("registry_stalled", problem=problem, restarted=systemd.watchdog_seconds is not None)

    now: Callable[[], float] = asyncio.get_running_loop().time
    await notify_liveness(
        systemd,
        standing=lambda: status_line(health, where),
        ailment=lambda: liveness_problem(health.signs, now()),
        changed=changed,
    )


def status_line(health: RegistryHealth, where: str) -> str:
    """Say in a line how a registry stands: what keeps it from its work, else what it holds."""
    failing = [check.detail for check in health.readiness() if not check.ok]
    if failing:
        return failing[0]
    size = health.size
    return f"{_counted(size.nodes, 'node')}, {_counted(size.connections, 'connection')}; {where}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
