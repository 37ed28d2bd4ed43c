"""The side of the agent that programs on its machine see: how it stands, and a way to ask something of it.

An order becomes an event like any other and is taken in its turn. It decides nothing and carries
nothing out.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from gpu_agent.node.course import Course
from gpu_agent.node.jobs import Jobs
from gpu_agent.node.picture import Picture
from gpu_agent.node.prober import Prober
from gpu_agent.node.public_pool import PublicPool
from gpu_agent.node.settings import AgentSettings
from gpu_agent.session.events import Order, RefreshAsked
from gpu_agent.session.machine import SessionMachine
from gpu_agent.wire.inventory import Inventory


@dataclass(frozen=True, slots=True)
class Parts:
    """What of the agent is looked at."""

    machine: SessionMachine
    prober: Prober
    public_pool: PublicPool
    settings: Callable[[], AgentSettings]
    """Those that hold now: they may be read again."""


Take = Callable[[Order, asyncio.Event], Awaitable[None]]


class Front:
    """One agent's. `take` puts an order among what waits to be handled, and the event tells when it was."""

    def __init__(self, parts: Parts, jobs: Jobs, take: Take) -> None:
        self.jobs = jobs
        self._parts = parts
        self._take = take
        self._course = Course()
        self._inventory: Inventory | None = None
        self._probed_anew = asyncio.Event()
        self._probe_began_at = -math.inf
        """When the one began that has ended last."""

    def picture(self) -> Picture:
        """All that is known at this moment."""
        parts, settings = self._parts, self._parts.settings()
        return Picture(
            session=parts.machine.view,
            registry_url=settings.registry_url,
            owner=settings.owner,
            public_jobs=parts.public_pool.standing,
            inventory=self._inventory,
            probe_age_seconds=parts.prober.probe_age_seconds,
            state_since=self._course.state_since,
            link_since=self._course.link_since,
            verdict_at=self._course.verdict_at,
            last_beat_at=self._course.last_beat_at,
        )

    async def order(self, order: Order) -> None:
        """Have the session take what the owner asks, and return once it has."""
        taken = asyncio.Event()
        await self._take(order, taken)
        await taken.wait()

    async def refresh(self) -> None:
        """Probe again and tell the registry all of it; returns once a probe has ended that began later."""
        asked_at = time.monotonic()
        await self.order(RefreshAsked())
        while self._probe_began_at < asked_at:
            self._probed_anew.clear()
            await self._probed_anew.wait()

    def probed(self, inventory: Inventory) -> None:
        """A probe has ended."""
        self._inventory = inventory
        self._probe_began_at = self._parts.prober.turned_at
        self._probed_anew.set()

    def note(self, now: float) -> None:
        """Something happened to the session. `now`: monotonic seconds."""
        self._course.note(self._parts.machine.view, now)

    def beat(self, now: float) -> None:
        """A beat goes out."""
        self._course.beat(now)
