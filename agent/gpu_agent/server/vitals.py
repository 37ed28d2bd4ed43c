"""How a registry is: whether it can do its work, and the figures by which it is watched.

Gathers what its parts know of themselves; needs no library of metrics, and judges no node.
"""

from dataclasses import dataclass

from gpu_agent.registry.fleet import Fleet
from gpu_agent.server import headcount
from gpu_agent.server.chronicle import Chronicle
from gpu_agent.server.headcount import Headcount
from gpu_agent.server.histogram import Histogram
from gpu_agent.server.loop import FleetLoop
from gpu_agent.server.performance import Meter, Performance
from gpu_agent.server.pulse import Signs
from gpu_agent.server.reception import Reception
from gpu_agent.server.switchboard import Switchboard
from gpu_agent.server.tally import Tally
from gpu_agent.server.tls import Encryption
from gpu_agent.server.views import CheckView
from gpu_agent.server.writer import Writer


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much a registry holds."""

    nodes: int
    connections: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """A registry's figures, taken together. Counts are from its start."""

    ready: bool
    headcount: Headcount
    tally: Tally
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
class Vitals:
    """One registry's parts, asked how they are."""

    fleet: Fleet
    loop: FleetLoop
    switchboard: Switchboard
    reception: Reception
    chronicle: Chronicle
    meter: Meter
    tally: Tally
    writer: Writer
    encryption: Encryption | None = None

    @property
    def size(self) -> Size:
        """How many nodes are known and how many connections are open."""
        return Size(nodes=self.fleet.size, connections=self.switchboard.size)

    @property
    def signs(self) -> Signs:
        """What tells whether the registry gets on."""
        return Signs(wakes_at=self.loop.wake_at, writing_since=self.writer.busy_since)

    def readiness(self) -> tuple[CheckView, ...]:
        """Say whether the registry can do its work, check by check."""
        running, refusal, problem = self.loop.running, self.switchboard.closed_because, self.writer.problem
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
        counted = await headcount.taken(self.fleet.nodes())
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
            saves_kept=self.writer.kept,
            saves_failed=self.writer.failed,
            saves_waiting=self.writer.waiting,
            commits=self.writer.commits,
            certificate_ends_at=None if self.encryption is None else self.encryption.ends_at,
        )
