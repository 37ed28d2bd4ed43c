"""The registry as an object: nodes connect to it, a scheduler in the same process asks it for places.

Owns the fleet, its loop, the gateway and the store. Needs no web framework: the operator API
is one user of this facade among others. Everything here belongs to one event loop.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from gpu_agent.registry.actions import Refusal, Result
from gpu_agent.registry.dispatch.refusals import Explanation, NoAvailableNode
from gpu_agent.registry.events import (
    ClaimRequested,
    Command,
    ControlRequested,
    CordonRequested,
    DrainRequested,
    OperatorRequest,
    ReleaseRequested,
    RemovalRequested,
    RenewalRequested,
    ResumeRequested,
)
from gpu_agent.registry.fleet import Fleet
from gpu_agent.registry.job import Job
from gpu_agent.registry.settings import Thresholds
from gpu_agent.runtime.logs import Logger
from gpu_agent.server import fair_queue as slices
from gpu_agent.server import views
from gpu_agent.server.address import Address
from gpu_agent.server.clock import Clock
from gpu_agent.server.counters import EventCounters, LagSampler, Performance, PerformanceMeter
from gpu_agent.server.effects import EffectsExecutor, stored_documents
from gpu_agent.server.event_log import RegistryEventLog, Subscriber, follow
from gpu_agent.server.health import RegistryHealth, Size
from gpu_agent.server.http_headers import host_names
from gpu_agent.server.limits import Limits
from gpu_agent.server.loop import FleetLoop
from gpu_agent.server.message_handler import MessageHandler
from gpu_agent.server.node_auth import NodeAuth
from gpu_agent.server.node_listener import NodeListener
from gpu_agent.server.requests import FleetRequests, as_placement, as_refusal
from gpu_agent.server.tls import Encryption
from gpu_agent.server.tokens import TokenService
from gpu_agent.server.views import ALL_NODES, NodeFilter
from gpu_agent.server.writer import Writer
from gpu_agent.store.base import RegistryEvent, Store
from gpu_agent.wire.api import (
    ClaimView,
    ExclusionsView,
    NodeDetail,
    NodeExplanation,
    NodeSummary,
    Placement,
    Selection,
)

# What a registry is told when it is made, by whoever embeds it or serves it.


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """What a registry is told when it is made."""

    node_listen: Address = field(default_factory=lambda: Address("127.0.0.1", 8080))
    thresholds: Thresholds = field(default_factory=Thresholds)
    limits: Limits = field(default_factory=Limits)
    allow_simulated: bool = False
    auth_on: bool = True
    """Whether nodes must present tokens; off, whoever reaches the port may act as any node."""
    tls: Encryption | None = None
    """What the nodes' port is encrypted with; None leaves it readable to who listens on the way."""
    plaintext: bool = False
    """Whether other machines reach a port that is not encrypted: every list of nodes says so."""


FLUSH_SECONDS = 1.0
CLOSE_SECONDS = 0.25
"""How long a slow disk is waited for when the registry stops: less than any service manager waits."""

_LOG = Logger("registry")


class RegistryService:
    """One registry: `start` it, ask it, `stop` it."""

    def __init__(self, settings: ServiceSettings, store: Store, *, clock: Clock | None = None) -> None:
        self._settings, self._clock = settings, clock or Clock()
        self._chronicle = RegistryEventLog()
        self._meter = PerformanceMeter(now=self._clock.monotonic())
        self._lag = LagSampler(self._meter.lagged, monotonic=self._clock.monotonic)
        self._fleet = Fleet(
            settings.thresholds,
            secrets.SystemRandom().random,
            allow_simulated=settings.allow_simulated,
            auth_off=not settings.auth_on,
            debug=lambda: _LOG.debugging,
        )
        self.tokens = TokenService(self._fleet, self._ask, clock=self._clock)
        """Where tokens are made, listed, ended and recognised."""
        desk = self.tokens if settings.auth_on else None
        self._reception = MessageHandler(auth_on=settings.auth_on, monotonic=self._clock.monotonic)
        self._switchboard = NodeListener(
            settings.limits,
            frame_arrived=self._reception.frame_arrived,
            connection_lost=self._reception.connection_lost,
            judge=NodeAuth(desk, names=host_names(settings.node_listen), limits=settings.limits).judge,
            tls=settings.tls,
            monotonic=self._clock.monotonic,
        )
        self._tally = EventCounters()
        self._carrier = EffectsExecutor(
            self._chronicle, self._switchboard, clock=self._clock, counters=self._tally
        )
        self._writer = Writer(store)
        self._loop = FleetLoop(
            self._fleet,
            self._carrier,
            self._writer,
            clock=self._clock,
            scan_interval_seconds=settings.thresholds.scan_interval_seconds,
            lagged=self._meter.lagged,
        )
        self._reception.handle = self._loop.handle
        self._asking = FleetRequests(self._loop, self._carrier.answers, selected=self._meter.selected)
        self._node_address: Address | None = None
        self.health = RegistryHealth(
            fleet=self._fleet,
            loop=self._loop,
            switchboard=self._switchboard,
            reception=self._reception,
            chronicle=self._chronicle,
            meter=self._meter,
            tally=self._tally,
            writer=self._writer,
            encryption=settings.tls,
        )
        """How this registry is, and the figures by which it is watched."""

    async def start(self) -> None:
        """Listen for nodes, take back what the store kept, let nodes in; raises `OSError`, `StoreError`."""
        self._node_address = await self._switchboard.listen(self._settings.node_listen)
        kept = await self._writer.load()
        self._chronicle.restore(kept)
        self._lag.start()
        documents = stored_documents(kept.changes, self._clock.wall())
        consequences = slices.collect_in_slices(self._fleet.restoring(documents, self._clock.monotonic()))
        for output in await consequences:
            self._loop.take(output)
        self._loop.start()
        await self._switchboard.admit()

    async def stop(self) -> None:
        """Keep and tell what is on its way, say goodbye to all nodes, and close the store.

        Nobody's status changes by it. A store that does not answer is not waited for for long: what it
        has not kept was told to nobody.
        """
        self._lag.stop()
        self._loop.stop()
        if not await self._loop.settled(within_seconds=FLUSH_SECONDS):
            _LOG.warning("registry_stopped_with_unstored_changes", problem=self._loop.store_problem)
        for waiting in self._carrier.answers.values():
            waiting.cancel()
        await self._switchboard.stop()
        await self._writer.close(within_seconds=CLOSE_SECONDS)

    @property
    def node_address(self) -> Address:
        """Where nodes connect, with the port that the system chose."""
        if self._node_address is None:
            raise RuntimeError("the registry has not been started: await start() first")
        return self._node_address

    @property
    def auth_on(self) -> bool:
        """Whether nodes must present tokens."""
        return self._settings.auth_on

    @property
    def plaintext(self) -> bool:
        """Whether other machines reach a port that is not encrypted."""
        return self._settings.plaintext

    def nodes(self, wanted: NodeFilter = ALL_NODES, *, after: str | None = None) -> Iterator[NodeSummary]:
        """Show the nodes that are wanted, by id, each as it is when the iterator comes to it."""
        return (
            views.node_summary(record, self._clock, self._settings.thresholds)
            for record in self._fleet.nodes(after=after)
            if wanted.matches(record)
        )

    def node(self, node_id: str) -> NodeDetail | None:
        """Show all that is known of a node; None when the id is not known."""
        record = self._fleet.node(node_id)
        if record is None:
            return None
        return views.node_detail(
            record,
            self._clock,
            thresholds=self._settings.thresholds,
            events=self._chronicle.of(node_id),
        )

    def claims(
        self, *, node_id: str | None = None, after: str | None = None, limit: int | None = None
    ) -> list[ClaimView]:
        """Show who holds which place, by job: on one node, behind one job, so many, if that is asked."""
        found = views.claims_page(self._fleet.claims(), node_id=node_id, after=after, limit=limit)
        return [views.claim_view(claim, self._clock) for claim in found]

    async def claim(self, job: Job) -> Placement | NoAvailableNode | Refusal:
        """Reserve a place for a job; the same `job_id` again returns the same place (§5)."""
        return as_placement(await self._ask(lambda ref: ClaimRequested(ref, job)), self._clock)

    async def renew(self, job_id: str) -> Placement | NoAvailableNode | Refusal:
        """Keep a job's place for one more TTL."""
        return as_placement(await self._ask(lambda ref: RenewalRequested(ref, job_id)), self._clock)

    async def release(self, job_id: str) -> Refusal | None:
        """Give a job's place back."""
        return as_refusal(await self._ask(lambda ref: ReleaseRequested(ref, job_id)))

    def select(self, job: Job) -> Selection | NoAvailableNode:
        """Say which place `claim` would give a job at this moment; reserves nothing."""
        began = self._clock.monotonic()
        chosen = self._fleet.select(job, began)
        self._meter.selected(self._clock.monotonic() - began)
        if isinstance(chosen, NoAvailableNode):
            return chosen
        return views.selection_view(job.job_id, chosen)

    async def explain(self, job: Job) -> Explanation:
        """Say of every node whether it could take a job, and why not (A-3); reserves nothing."""
        verdicts = await slices.collect_in_slices(self._fleet.explaining(job, self._clock.monotonic()))
        return Explanation.of(job.job_id, verdicts)

    def explain_node(self, node_id: str, model: str | None = None) -> NodeExplanation | None:
        """Explain which jobs a node would refuse now, and why; None when the id is not known."""
        explanation = self._fleet.why(node_id, self._clock.monotonic(), model)
        return None if explanation is None else views.node_explanation(explanation)

    def finished_exclusions(self) -> list[ExclusionsView]:
        """Return the minutes with failed dispatches that have ended since this was last asked."""
        windows = self._fleet.finished_exclusions(self._clock.monotonic())
        return [views.exclusions_view(window, self._clock) for window in windows]

    def exclusions(self) -> list[ExclusionsView]:
        """Count what dispatches failed on in the last hour, by the minute, the oldest first."""
        windows = self._fleet.exclusions(self._clock.monotonic())
        return [views.exclusions_view(window, self._clock) for window in windows]

    async def drain(
        self, node_id: str, *, deadline_seconds: float | None = None, reason: str = ""
    ) -> Refusal | None:
        """Let a node finish its jobs and take no new ones, until `resume`."""
        return as_refusal(await self._ask(lambda ref: DrainRequested(ref, node_id, deadline_seconds, reason)))

    async def resume(self, node_id: str) -> Refusal | None:
        """Take a drained node back."""
        return as_refusal(await self._ask(lambda ref: ResumeRequested(ref, node_id)))

    async def cordon(self, node_id: str, *, reason: str) -> Refusal | None:
        """Give a node no new jobs; its status stays."""
        return as_refusal(await self._ask(lambda ref: CordonRequested(ref, node_id, reason)))

    async def uncordon(self, node_id: str) -> Refusal | None:
        """Lift a cordon."""
        return as_refusal(await self._ask(lambda ref: CordonRequested(ref, node_id, None)))

    async def refresh(self, node_id: str) -> Refusal | None:
        """Have a node probe again now and tell all that it finds."""
        return as_refusal(await self._ask(lambda ref: ControlRequested(ref, node_id, Command.REFRESH)))

    async def reregister(self, node_id: str) -> Refusal | None:
        """Have a node register again on its open connection."""
        return as_refusal(await self._ask(lambda ref: ControlRequested(ref, node_id, Command.REREGISTER)))

    async def remove(self, node_id: str) -> Refusal | None:
        """Remove a node's record; a connected node is disconnected first."""
        return as_refusal(await self._ask(lambda ref: RemovalRequested(ref, node_id)))

    def events(self, after: int | None = None) -> AsyncIterator[RegistryEvent]:
        """Follow what happens from now on, or since the event of the id `after`; losses are told."""
        return follow(self._chronicle, after=after)

    def listening(self, *, after: int | None = None) -> AbstractContextManager[Subscriber]:
        """Follow as `events` does, for the length of a block."""
        return self._chronicle.listening(after=after)

    async def settled(self) -> bool:
        """Wait until everything handled so far is kept and told; False when the store takes too long."""
        return await self._loop.settled()

    async def backup(self, path: Path, *, overwrite: bool = False) -> None:
        """Write all that is kept to a database of its own while others go on; raises `StoreError`."""
        await self._writer.backup(path, overwrite=overwrite)

    @property
    def store_problem(self) -> str | None:
        """Why nothing new can be kept at the moment, as a sentence; None when all is well."""
        return self._loop.store_problem

    def performance(self) -> Performance:
        """Read the registry's own figures since the last reading (§8)."""
        return self._meter.read(now=self._clock.monotonic(), beats=self._reception.beats)

    @property
    def thresholds(self) -> Thresholds:
        """What this registry judges by."""
        return self._settings.thresholds

    @property
    def size(self) -> Size:
        """How many nodes are known and how many connections are open."""
        return self.health.size

    def _ask(self, asking: Callable[[int], OperatorRequest]) -> asyncio.Future[Result]:
        return self._asking.ask(asking)
