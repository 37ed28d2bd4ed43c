"""The registry's health: readiness checks, the watchdog's liveness, and the status line for systemd.

A disk that is full or fails does not make a registry that must be restarted, and one that hangs only after
minutes: what is known is still served meanwhile, and changes that cannot be stored are refused. After that
only a restart shows whether the disk hangs or the thread.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from gpu_agent.registry.fleet import Fleet
from gpu_agent.runtime.logs import Logger
from gpu_agent.runtime.sdnotify import SystemdNotifier, notify_liveness
from gpu_agent.server.counters import EventCounters, PerformanceMeter
from gpu_agent.server.event_log import RegistryEventLog
from gpu_agent.server.gateway.gateways import Gateways
from gpu_agent.server.gateway.instance_links import InstanceLinks
from gpu_agent.server.loop import FleetLoop
from gpu_agent.server.message_handler import MessageHandler
from gpu_agent.server.node_auth import NodeAuth
from gpu_agent.server.node_listener import NodeListener
from gpu_agent.server.notify.notifier import Notifier
from gpu_agent.server.tls import Encryption
from gpu_agent.server.writer import Writer
from gpu_agent.wire.api import CheckView

MAX_LATE_SECONDS = 15.0
"""How late the fleet's timer may be: a loop that is merely busy reaches it within one second."""
MAX_WRITING_SECONDS = 300.0
"""How long one commit may take: a virtual disk that moves to another machine returns before that."""

_LOG = Logger("registry")


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How many nodes a registry knows, and how many connections it has."""

    nodes: int
    connections: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryHealth:
    """The parts of one registry whose state shows its health, and which metrics read."""

    fleet: Fleet
    loop: FleetLoop
    listener: NodeListener | Gateways | InstanceLinks
    messages: MessageHandler
    event_log: RegistryEventLog
    meter: PerformanceMeter
    events: EventCounters
    writer: Writer
    notifier: Notifier
    node_auth: NodeAuth
    monotonic: Callable[[], float]
    encryption: Encryption | None = None

    @property
    def size(self) -> Size:
        """How many nodes are known and how many connections are open."""
        return Size(nodes=self.fleet.size, connections=self.listener.connections.size)

    @property
    def ready(self) -> bool:
        """Whether all readiness checks pass."""
        return all(check.ok for check in self.readiness())

    def readiness(self) -> tuple[CheckView, ...]:
        """Check whether the registry can do its work."""
        running, closed, problem = self.loop.running, self.listener.closed_reason, self.loop.store_problem
        return (
            CheckView(
                name="fleet",
                ok=running,
                detail="the stored state is loaded" if running else "it is starting or stopping",
            ),
            CheckView(
                name="store",
                ok=problem is None,
                detail="changes are stored" if problem is None else problem,
            ),
            CheckView(
                name="nodes",
                ok=closed is None,
                detail="nodes may register" if closed is None else f"the registry {closed}",
            ),
            *self.alarms(),
        )

    def alarms(self) -> tuple[CheckView, ...]:
        """Name the receivers of alarms that fail; a registry without them does all of its work."""
        problem = self.notifier.problem
        return () if problem is None else (CheckView(name="alarms", ok=True, detail=problem),)

    def liveness_problem(self, now: float) -> str | None:
        """Return what has stalled, as a sentence; None while the registry makes progress."""
        return liveness_problem(now, wakes_at=self.loop.wake_at, writing_since=self.writer.busy_since)


def liveness_problem(now: float, *, wakes_at: float | None, writing_since: float | None) -> str | None:
    """Return what has stalled, as a sentence; None while there is progress. Times are monotonic seconds.

    `wakes_at` is when the fleet's timer is due (None while there is none, as when the registry stops),
    `writing_since` when the store's current commit began (None while there is none).
    """
    if wakes_at is not None and now - wakes_at > MAX_LATE_SECONDS:
        return f"the fleet's timer is {now - wakes_at:.0f} s late"
    if writing_since is not None and now - writing_since > MAX_WRITING_SECONDS:
        return f"one commit to the store has taken {now - writing_since:.0f} s so far"
    return None


async def report_to_systemd(
    systemd: SystemdNotifier,
    *,
    status_line: Callable[[], str],
    find_problem: Callable[[float], str | None],
) -> None:
    """Send systemd the status line, and its watchdog's pings while there is progress, until cancelled."""

    def changed(problem: str | None) -> None:
        if problem is None:
            _LOG.info("registry_recovered")
        else:
            _LOG.error("registry_stalled", problem=problem, restarted=systemd.watchdog_seconds is not None)

    await notify_liveness(
        systemd,
        status_line=status_line,
        find_problem=lambda: find_problem(time.monotonic()),
        on_change=changed,
    )


def status_line(health: RegistryHealth, addresses: str) -> str:
    """Return the registry's state in one line: the first failing check, else its size."""
    failing = [check.detail for check in health.readiness() if not check.ok]
    if failing:
        return failing[0]
    size = health.size
    counted = f"{_counted(size.nodes, 'node')}, {_counted(size.connections, 'connection')}; {addresses}"
    return "; ".join(filter(None, (health.notifier.problem, counted)))


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
