"""The registry as an object: nodes connect to it, a scheduler in the same process claims slots from it.

Owns the fleet, its loop, the node connections and the store. Needs no web framework: the operators' API is
one user of this facade among others. Everything here belongs to one event loop.
"""

import asyncio
import itertools
import random
import secrets
import socket
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path

from gpu_agent.registry.actions import Refusal, Result, as_refusal
from gpu_agent.registry.claim_history import ClaimRecord
from gpu_agent.registry.dispatch.exclusions import Explanation, NoAvailableNode
from gpu_agent.registry.events import (
    ANYBODY,
    ClaimRequested,
    ClaimWaitEnded,
    Command,
    ControlRequested,
    CordonRequested,
    DrainRequested,
    GpuCordonRequested,
    OperatorRequest,
    ReleaseRequested,
    RemovalRequested,
    RenewalRequested,
    Requester,
    ResumeRequested,
    Traced,
)
from gpu_agent.registry.fleet import Fleet
from gpu_agent.registry.job import Claim, Job
from gpu_agent.registry.node import NodeRecord
from gpu_agent.registry.queue import Waiting
from gpu_agent.registry.settings import Thresholds
from gpu_agent.runtime.address import Address
from gpu_agent.runtime.logs import Logger
from gpu_agent.server import views
from gpu_agent.server.counters import EventCounters, LagSampler, Performance, PerformanceMeter
from gpu_agent.server.effects import EffectsExecutor, stored_documents
from gpu_agent.server.event_log import RegistryEventLog
from gpu_agent.server.fair_queue import collect_in_slices
from gpu_agent.server.fleet_view import PAGE_NODES, FleetView, NodePage, NodeQuery
from gpu_agent.server.gateway.connection import GatewayConnections
from gpu_agent.server.gateway.gateway import GatewaySettings
from gpu_agent.server.gateway.gateways import Gateways
from gpu_agent.server.gateway.instance_links import InstanceLinks, Lead
from gpu_agent.server.gateway.links import GatewayLinks
from gpu_agent.server.health import RegistryHealth, Size
from gpu_agent.server.http_headers import host_names, is_trace_id
from gpu_agent.server.limits import Limits
from gpu_agent.server.loop import FleetLoop
from gpu_agent.server.message_handler import MessageHandler
from gpu_agent.server.node_auth import NodeAuth
from gpu_agent.server.node_connection import NodeConnections
from gpu_agent.server.node_listener import NodeListener
from gpu_agent.server.notify.notifier import AlarmSource, Notifier
from gpu_agent.server.notify.settings import ReceiverSettings
from gpu_agent.server.tls import Encryption
from gpu_agent.server.tokens import TokenService
from gpu_agent.server.views import ALL_NODES, Clock, GpuFacts, NodeFilter
from gpu_agent.server.writer import Writer
from gpu_agent.store.base import Store
from gpu_agent.wire.api import (
    ClaimDetail,
    ClaimName,
    ClaimView,
    ExclusionsView,
    MemberRole,
    MemberView,
    NodeDetail,
    NodeExplanation,
    NodeSummary,
    RegistryEvent,
    Selection,
    WaitingJob,
)
from gpu_agent.wire.codes import ErrorCode
from gpu_agent.wire.fleet_documents import FleetFigures, NodeGpuHistory
from gpu_agent.wire.service_discovery import EndpointView


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """The settings of one registry, from the program that embeds or serves it."""

    node_listen: Address = field(default_factory=lambda: Address("127.0.0.1", 8080))
    thresholds: Thresholds = field(default_factory=Thresholds)
    limits: Limits = field(default_factory=Limits)
    allow_simulated: bool = False
    auth_on: bool = True
    """Whether nodes must present tokens; without, every peer that reaches the port may act as any node."""
    tls: Encryption | None = None
    """Encrypts the nodes' port; None leaves its traffic readable on the network."""
    plaintext: bool = False
    """Whether other machines reach a port that is not encrypted; every list of nodes says so."""
    gateways: int = 0
    """How many processes besides this one hold the node connections; 0: this one does."""
    log_level: str = "info"
    """Of the gateways."""
    receivers: tuple[ReceiverSettings, ...] = ()
    """Of alarms."""
    insecure_plaintext: bool = False
    """Whether alarms may go to other machines without encryption."""

    def for_gateways(self) -> GatewaySettings:
        """Return what each gateway must know; of each limit of all connections together it has its share."""

        def share(total: int) -> int:
            return -(-total // max(1, self.gateways))

        limits = self.limits
        return GatewaySettings(
            node_listen=self.node_listen,
            limits=replace(
                limits,
                max_connections=share(limits.max_connections),
                max_handshakes=share(limits.max_handshakes),
                max_unregistered=share(limits.max_unregistered),
                max_unregistered_per_origin=share(limits.max_unregistered_per_origin),
                max_held_bytes=share(limits.max_held_bytes),
            ),
            thresholds=self.thresholds,
            tls=None if self.tls is None else self.tls.files,
            log_level=self.log_level,
        )


_CLAIM_ID_BYTES = 16
FLUSH_SECONDS = 1.0
CLOSE_SECONDS = 0.25
"""How long `stop` waits for a slow disk: less than any service manager waits."""

ETCD_PAUSE_SECONDS = 0.03
"""While many changes come, each commit to etcd waits so long for more of them. One costs three machines some
five milliseconds of processor time, whatever it holds."""

_STOPPING = Refusal(
    ErrorCode.REGISTRY_BUSY.value,
    "this registry stops, or leads no more: send the same request again in a moment",
)

_LOG = Logger("registry")
_trace_id: ContextVar[str | None] = ContextVar("trace_id", default=None)


def current_trace_id() -> str | None:
    """Return the trace of this task; None outside of any."""
    return _trace_id.get()


@contextmanager
def caused_by(trace_id: str | None) -> Iterator[None]:
    """Log the events that this block causes with a trace id (§8); None for none. Raises `ValueError`."""
    if trace_id is not None and not is_trace_id(trace_id):
        raise ValueError(f"{trace_id!r} is no trace id: 1 to 128 printable characters of ASCII, no spaces")
    before = _trace_id.set(trace_id)
    try:
        yield
    finally:
        _trace_id.reset(before)


class RegistryService:
    """One registry, from `start` to `stop`."""

    def __init__(
        self,
        settings: ServiceSettings,
        store: Store,
        *,
        clock: Clock | None = None,
        lead: Lead | None = None,
    ) -> None:
        """With `lead` it leads several instances: they hold the node connections, and report them to it."""
        self._settings, self._clock = settings, clock or Clock()
        self.event_log = RegistryEventLog()
        """Every event, for subscribers and histories."""
        self._meter = PerformanceMeter(now=self._clock.monotonic())
        self._lag = LagSampler(self._meter.lagged, monotonic=self._clock.monotonic)
        self._fleet = Fleet(
            settings.thresholds,
            random.Random(secrets.randbits(128)).random,  # noqa: S311 - ties and delays are no secrets
            allow_simulated=settings.allow_simulated,
            auth_off=not settings.auth_on,
            debug=_LOG.debugging,
        )
        self._refs = itertools.count(1)
        """Draws the number of each request."""
        self.tokens = TokenService(self._fleet, self._send, refs=self._refs, clock=self._clock)
        """Creates, lists, revokes and authenticates tokens."""
        self._connections = NodeConnections(settings.limits, monotonic=self._clock.monotonic)
        at_gateways = self._at_gateways = GatewayConnections(settings.limits, term=lead.term if lead else 0)
        self._events = EventCounters()
        self._effects = EffectsExecutor(
            self.event_log,
            at_gateways if settings.gateways or lead is not None else self._connections,
            clock=self._clock,
            counters=self._events,
        )
        self._writer = Writer(store, pause_seconds=0.0 if lead is None else ETCD_PAUSE_SECONDS)
        self._loop = FleetLoop(
            self._fleet,
            self._effects,
            self._writer,
            monotonic=self._clock.monotonic,
            scan_interval_seconds=settings.thresholds.scan_interval_seconds,
            lagged=self._meter.lagged,
        )
        self._connections.fair_queue.store_is_behind = self._loop.is_store_behind
        self._messages = MessageHandler(
            self._loop.handle,
            send=self._effects.send,
            auth_on=settings.auth_on,
            monotonic=self._clock.monotonic,
        )
        node_auth = NodeAuth(
            self.tokens if settings.auth_on else None,
            host_names=host_names(settings.node_listen),
            limits=settings.limits,
        )
        links = GatewayLinks(
            at_gateways,
            messages=self._messages,
            authenticate=node_auth.check,
            wants_exact_figures=self._fleet.wants_exact_figures,
        )
        self._listener: NodeListener | Gateways | InstanceLinks
        if lead is not None:
            self._listener = InstanceLinks(links, settings.for_gateways(), lead)
        elif settings.gateways:
            self._listener = Gateways(links, settings.for_gateways(), settings.gateways)
        else:
            self._listener = NodeListener(
                self._connections,
                on_frame=self._messages.frame_arrived,
                on_lost=self._messages.connection_lost,
                authenticate=node_auth.authenticate,
                tls=settings.tls,
            )
        alarms = AlarmSource(
            event_log=self.event_log,
            labels_of=self._labels_of,
            status_of=self._status_of,
            registry=socket.gethostname() if lead is None else lead.name,
            plaintext=settings.insecure_plaintext,
            clock=self._clock,
        )
        self.notifier = Notifier(alarms, store=self._loop.take)
        """Sends alarms to the receivers in the settings."""
        self._node_address: Address | None = None
        self._started_at = self._clock.monotonic()
        self._takes_over = lead is not None
        self._stopping = False
        self.health = RegistryHealth(
            fleet=self._fleet,
            loop=self._loop,
            listener=self._listener,
            messages=self._messages,
            event_log=self.event_log,
            meter=self._meter,
            events=self._events,
            writer=self._writer,
            notifier=self.notifier,
            node_auth=node_auth,
            monotonic=self._clock.monotonic,
            encryption=settings.tls,
        )
        """Its readiness and liveness, and what metrics read."""
        self.fleet_view = FleetView(self._fleet, monotonic=self._clock.monotonic)
        """Totals, and lists of nodes by filter, order and page."""

    async def start(self) -> None:
        """Open the nodes' port, load the stored state, admit nodes; raises `OSError`, `StoreError`."""
        self._node_address = await self._listener.listen(self._settings.node_listen)
        stored = await self._writer.load()
        self.event_log.restore(stored)
        self.notifier.restore(stored.changes)
        self._lag.start()
        documents = stored_documents(stored.changes, self._clock.wall())
        loading = self._fleet.restore_each(documents, self._clock.monotonic(), takeover=self._takes_over)
        for output in await collect_in_slices(loading):
            self._loop.take(output)
        self._loop.start()
        self.notifier.start(self._settings.receivers)
        await self._listener.admit()

    async def stop(self) -> None:
        """Store and send what is in progress, disconnect all nodes, and close the store.

        No node's status changes. A store that does not answer is not awaited for long: nothing that depends
        on what it has not stored was sent.
        """
        self._lag.stop()
        self._stopping = True
        await self.notifier.stop()
        self._loop.stop()
        if not await self._loop.flush(within_seconds=FLUSH_SECONDS):
            _LOG.warning("registry_stopped_with_unstored_changes", problem=self._loop.store_problem)
        self._effects.refuse_requests(_STOPPING)
        await self._listener.stop()
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
    def clock(self) -> Clock:
        """Both clocks by which this registry decides and states moments."""
        return self._clock

    @property
    def waiting_jobs(self) -> int:
        """How many jobs wait for capacity."""
        return self._fleet.queue_length

    @property
    def longest_wait_seconds(self) -> float | None:
        """For how long the job waits that has waited longest; None where none waits."""
        since = self._fleet.queue_since
        return None if since is None else max(0.0, self._clock.monotonic() - since)

    def record(self, node_id: str) -> NodeRecord | None:
        """Return a node's record, the fleet's own: read it at once, and hold nothing of it."""
        return self._fleet.node(node_id)

    def summary(self, node_id: str) -> NodeSummary | None:
        """Return a node as lists show it; None where there is none with this id."""
        record = self._fleet.node(node_id)
        return None if record is None else self._summary(record)

    @property
    def plaintext(self) -> bool:
        """Whether other machines reach a port that is not encrypted."""
        return self._settings.plaintext

    def nodes(self, wanted: NodeFilter = ALL_NODES, *, after: str | None = None) -> Iterator[NodeSummary]:
        """Yield the wanted nodes by id, each as it is when the iterator reaches it."""
        records = self._fleet.nodes(after=after)
        return (self._summary(record) for record in records if wanted.matches(record))

    async def fleet_figures(self) -> FleetFigures:
        """Return the fleet's totals."""
        await self.fleet_view.refresh()
        totals, jobs = self.fleet_view.totals, self.waiting_jobs
        return views.fleet_figures(totals, waiting_jobs=jobs, longest_wait_seconds=self.longest_wait_seconds)

    async def page_of_nodes(
        self, query: NodeQuery, *, after: str | None = None, limit: int = PAGE_NODES
    ) -> tuple[Iterator[NodeSummary], NodePage]:
        """Return a page of a list in an order of its own; raises `CursorError`.

        Each node is as it is when the iterator reaches it.
        """
        await self.fleet_view.refresh()
        page = self.fleet_view.page(query, after=after, limit=limit)
        return self.summaries(page.node_ids), page

    def summaries(self, node_ids: Iterable[str]) -> Iterator[NodeSummary]:
        """Yield these nodes in this order, but for those that are not known."""
        records = (self._fleet.node(node_id) for node_id in node_ids)
        return (self._summary(record) for record in records if record is not None)

    def gpu_history(self, node_id: str) -> NodeGpuHistory | None:
        """Return what a node's GPUs did in the last 15 minutes; None where there is none with this id."""
        record = self._fleet.node(node_id)
        return None if record is None else views.gpu_history(record, self._clock)

    def endpoints(self, wanted: NodeFilter = ALL_NODES) -> Iterator[EndpointView]:
        """Yield the workers of the wanted nodes by id, of those with an endpoint that are not cordoned."""
        for record in self._fleet.nodes():
            endpoint = record.declared.registration.endpoint
            if endpoint and record.desired.cordoned is None and wanted.matches(record):
                takes_slots = self._fleet.takes_slots(record.node_id)
                yield views.endpoint_view(record, endpoint, takes_slots=takes_slots)

    def node(self, node_id: str) -> NodeDetail | None:
        """Return all that is known of a node; None where there is none with this id."""
        record = self._fleet.node(node_id)
        if record is None:
            return None
        return views.node_detail(
            record,
            self._clock,
            thresholds=self._settings.thresholds,
            gpus=self._gpu_facts(node_id),
            events=self.event_log.history_of(node_id),
            stored=self._is_stored(node_id),
        )

    async def fetch_figures(self, node_id: str) -> None:
        """Wait for a node's newest figures, where a gateway has them; without gateways they are here."""
        record = self._fleet.node(node_id)
        if record is not None and record.connection is not None:
            await self._at_gateways.fetch_figures(record.connection)

    def members(self) -> tuple[MemberView, ...]:
        """Return the processes that are this registry, the leader first."""
        if isinstance(self._listener, InstanceLinks):
            return self._listener.members()
        gateways = self._listener.members(self._clock) if isinstance(self._listener, Gateways) else ()
        leader = MemberView(
            name=socket.gethostname(),
            role=MemberRole.LEADER,
            since=self._clock.wall_at(self._started_at),
            nodes=0 if gateways else self._connections.size,
        )
        return (leader, *gateways)

    def reload_gateways(self, log_level: str) -> None:
        """Have the gateways read the certificate's files again, and log from this level on."""
        if isinstance(self._listener, Gateways):
            self._listener.reload(log_level)

    def _labels_of(self, node_id: str) -> Mapping[str, str] | None:
        """Return a node's labels; None where there is none with this id."""
        record = self._fleet.node(node_id)
        return None if record is None else record.declared.labels

    def _status_of(self, node_id: str) -> str | None:
        """Return a node's status; None where there is none with this id."""
        record = self._fleet.node(node_id)
        return None if record is None else record.status

    def claims(
        self,
        *,
        node_id: str | None = None,
        after: str | None = None,
        limit: int | None = None,
        ended: bool = False,
    ) -> list[ClaimView]:
        """Return the claims by job id: of one node, after one job, at most so many, where that is given.

        With `ended` also those that ended within the hour.
        """
        history = self._fleet.claim_history
        known = history.current() + (history.ended(self._clock.monotonic()) if ended else [])
        found = views.claims_page(known, node_id=node_id, after=after, limit=limit)
        return [views.claim_view(one, self._clock, held=self._is_held(one)) for one in found]

    def claim_of(self, job_id: str) -> ClaimDetail | None:
        """Return a job's claim with its history, also for an hour after its end; None without any."""
        history = self._fleet.claim_history
        record = history.of_job(job_id) or history.last_of(job_id, self._clock.monotonic())
        return None if record is None else views.claim_detail(record, self._clock, held=self._is_held(record))

    @property
    def current_claims(self) -> int:
        """How many jobs hold claims."""
        return self._fleet.claim_history.current_count

    def claims_for_people(self) -> list[tuple[int, str]]:
        """Return the jobs that hold claims: those with a fault first (0), idle ones (1), then the others."""
        return sorted(map(views.claim_order, self._fleet.claim_history.current()))

    def ended_claims(self) -> list[ClaimView]:
        """Return the claims that ended within the hour, the latest end first."""
        ended = reversed(self._fleet.claim_history.ended(self._clock.monotonic()))
        return [views.claim_view(one, self._clock, held=self._is_held(one)) for one in ended]

    def waiting(self, job_id: str) -> Waiting | None:
        """Return a job's place in the queue as the fleet holds it: read it at once."""
        return self._fleet.waiting(job_id)

    def queue_place(self, job_id: str) -> int | None:
        """Return a job's place in the queue, from 1; None where it does not wait."""
        return self._fleet.queue_place(job_id)

    def queue(self, only: Collection[str] | None = None) -> Iterator[WaitingJob]:
        """Yield the jobs that wait for capacity, or these of them, each with what excludes the nodes now."""
        return views.waiting_jobs(self._fleet, self._clock, only=only)

    def first_waiting(self, count: int) -> tuple[str, ...]:
        """Return the first jobs of the queue by their ids, in their order."""
        return tuple(one.job.job_id for one in self._fleet.queue()[:count])

    async def claim(
        self, job: Job, *, requester: Requester = ANYBODY
    ) -> ClaimView | NoAvailableNode | Refusal:
        """Reserve slots for a job, all or none, and wait for them as the job says (§5).

        The same job again returns and renews its claim. Cancel the call to wait no more.
        """
        ref = next(self._refs)
        request = ClaimRequested(ref, job, secrets.token_hex(_CLAIM_ID_BYTES), requester)
        try:
            return self._claim_answer(await self._send(request))
        except asyncio.CancelledError:
            self._loop.handle(ClaimWaitEnded(ref))
            raise

    async def renew(
        self,
        job_id: str,
        claim_id: str | None = None,
        *,
        ttl_seconds: float | None = None,
        requester: Requester = ANYBODY,
    ) -> ClaimView | Refusal:
        """Renew a job's claim for one more TTL, or for another one."""
        request = RenewalRequested(next(self._refs), job_id, claim_id, ttl_seconds, requester)
        return self._renewal_answer(await self._send(request))

    async def renew_each(
        self, claims: Iterable[ClaimName], *, requester: Requester = ANYBODY
    ) -> list[ClaimView | Refusal]:
        """Renew several claims for one more TTL each; returns a result each, in their order."""
        answers = [
            self._send(RenewalRequested(next(self._refs), one.job_id, one.claim_id, None, requester))
            for one in claims
        ]
        return [self._renewal_answer(await answer) for answer in answers]

    async def release(
        self, job_id: str, claim_id: str | None = None, *, requester: Requester = ANYBODY, reason: str = ""
    ) -> Refusal | None:
        """Release a job's claim, or an ended one that still holds GPUs."""
        request = ReleaseRequested(next(self._refs), job_id, claim_id, requester, reason)
        return as_refusal(await self._send(request))

    def select(self, job: Job) -> Selection | NoAvailableNode:
        """Return the slot that `claim` would reserve for a job now; reserves nothing."""
        began = self._clock.monotonic()
        chosen = self._fleet.select(job, began)
        self._meter.selected(self._clock.monotonic() - began)
        if isinstance(chosen, NoAvailableNode):
            return chosen
        return views.selection_view(job.job_id, chosen)

    async def explain(self, job: Job) -> Explanation:
        """Return for every node whether it is eligible for a job, and why not (A-3); reserves nothing."""
        eligibility = await collect_in_slices(self._fleet.explain_each(job, self._clock.monotonic()))
        return Explanation.of(job, eligibility)

    def explain_node(self, node_id: str, model: str | None = None) -> NodeExplanation | None:
        """Return which jobs a node is excluded for now, and why; None where there is none with this id."""
        return self._fleet.explain_node(node_id, self._clock.monotonic(), model)

    def finished_exclusions(self) -> list[ExclusionsView]:
        """Return the minutes with failed dispatches that ended since the last call."""
        windows = self._fleet.finished_exclusions(self._clock.monotonic())
        return [views.exclusions_view(window, self._clock) for window in windows]

    def exclusions(self) -> list[ExclusionsView]:
        """Return why dispatches failed in the last hour, by the minute, the oldest first."""
        windows = self._fleet.exclusions(self._clock.monotonic())
        return [views.exclusions_view(window, self._clock) for window in windows]

    async def drain(
        self, node_id: str, *, deadline_seconds: float | None = None, reason: str = "", by: str = ""
    ) -> Refusal | None:
        """Drain a node: it finishes its jobs and takes no new ones until `resume`.

        Here and below `by` names the operator, for the event that is stored.
        """
        request = DrainRequested(next(self._refs), node_id, deadline_seconds, reason, by)
        return as_refusal(await self._send(request))

    async def resume(self, node_id: str, *, reason: str = "", by: str = "") -> Refusal | None:
        """End a drain: the node takes jobs again."""
        return as_refusal(await self._send(ResumeRequested(next(self._refs), node_id, reason, by)))

    async def cordon(self, node_id: str, *, reason: str, by: str = "") -> Refusal | None:
        """Give a node no new jobs; its status does not change."""
        return as_refusal(await self._send(CordonRequested(next(self._refs), node_id, reason, by)))

    async def uncordon(self, node_id: str, *, reason: str = "", by: str = "") -> Refusal | None:
        """End a cordon."""
        request = CordonRequested(next(self._refs), node_id, None, by, lifted_because=reason)
        return as_refusal(await self._send(request))

    async def cordon_gpu(self, node_id: str, uuid: str, *, reason: str, by: str = "") -> Refusal | None:
        """Give one GPU of a node to no claim any more."""
        return as_refusal(await self._send(GpuCordonRequested(next(self._refs), node_id, uuid, reason, by)))

    async def uncordon_gpu(
        self, node_id: str, uuid: str, *, reason: str = "", by: str = ""
    ) -> Refusal | None:
        """End the cordon of one GPU."""
        request = GpuCordonRequested(next(self._refs), node_id, uuid, None, by, lifted_because=reason)
        return as_refusal(await self._send(request))

    async def refresh(self, node_id: str, *, reason: str = "", by: str = "") -> Refusal | None:
        """Ask a node to probe again now and report all that it finds."""
        return await self._control(node_id, Command.REFRESH, reason=reason, by=by)

    async def reregister(self, node_id: str, *, reason: str = "", by: str = "") -> Refusal | None:
        """Ask a node to register again on its open connection."""
        return await self._control(node_id, Command.REREGISTER, reason=reason, by=by)

    async def check(self, node_id: str, *, reason: str = "", by: str = "") -> Refusal | None:
        """Ask a node to run its admission checks now and report their results."""
        return await self._control(node_id, Command.CHECK, reason=reason, by=by)

    async def remove(self, node_id: str, *, reason: str = "", by: str = "") -> Refusal | None:
        """Remove a node's record; a connected node is disconnected first."""
        return as_refusal(await self._send(RemovalRequested(next(self._refs), node_id, reason, by)))

    def events(self, after: int | None = None) -> AsyncIterator[RegistryEvent]:
        """Yield events from now on, or since the event id `after`; lost events are reported as an event."""
        return self.event_log.follow(after=after)

    async def settled(self) -> bool:
        """Wait until all changes so far are stored and their effects done; False when that takes too long."""
        return await self._loop.settled()

    async def backup(self, path: Path, *, overwrite: bool = False) -> None:
        """Write the stored state to another database while the registry works on; raises `StoreError`."""
        await self._writer.backup(path, overwrite=overwrite)

    @property
    def store_problem(self) -> str | None:
        """Why nothing can be stored at the moment, as a sentence; None while the store works."""
        return self._loop.store_problem

    def performance(self) -> Performance:
        """Return the registry's own figures since the last call (§8)."""
        now, heartbeats = self._clock.monotonic(), self._messages.heartbeats
        return self._meter.read(now=now, heartbeats=heartbeats, commits=self._writer.take_durations())

    @property
    def thresholds(self) -> Thresholds:
        """The thresholds by which this registry decides."""
        return self._settings.thresholds

    @property
    def size(self) -> Size:
        """How many nodes are known and how many connections are open."""
        return self.health.size

    async def _control(self, node_id: str, command: Command, *, reason: str, by: str) -> Refusal | None:
        request = ControlRequested(next(self._refs), node_id, command, reason, by)
        return as_refusal(await self._send(request))

    def _is_stored(self, node_id: str) -> bool:
        """Say whether all that a node shows is stored; while the store fails, its claims may not be (§4)."""
        return self._loop.store_problem is None and self._fleet.is_stored(node_id)

    def _summary(self, record: NodeRecord) -> NodeSummary:
        return views.node_summary(
            record,
            self._clock,
            thresholds=self._settings.thresholds,
            gpus=self._gpu_facts(record.node_id),
            stored=self._is_stored(record.node_id),
        )

    def _gpu_facts(self, node_id: str) -> GpuFacts:
        return GpuFacts(self._fleet.gpu_statuses(node_id), self._fleet.claim_history)

    def _is_held(self, record: ClaimRecord) -> bool:
        """Whether a claim that has ended still holds GPUs."""
        held = () if record.end is None else self._fleet.held_of(record.claim.job_id)
        return any(one.claim.claim_id == record.claim.claim_id for one in held)

    def _claim_answer(self, result: Result) -> ClaimView | NoAvailableNode | Refusal:
        """Return the claim that was granted, which may have ended since, or why there is none."""
        if isinstance(result, Claim):
            return views.claim_view(ClaimRecord(result), self._clock)
        if isinstance(result, NoAvailableNode | Refusal):
            return result
        raise TypeError(f"the fleet answered a claim with {result!r}; this is a bug")

    def _renewal_answer(self, result: Result) -> ClaimView | Refusal:
        answer = self._claim_answer(result)
        if isinstance(answer, NoAvailableNode):
            raise TypeError(f"the fleet answered a renewal with {answer!r}; this is a bug")
        return answer

    def _send(self, request: OperatorRequest) -> asyncio.Future[Result]:
        """Send the fleet a request, with the trace of this task; returns the future of its answer."""
        answer, trace_id = self._effects.expect_answer(request.ref), _trace_id.get()
        if self._stopping:
            self._effects.refuse_requests(_STOPPING)
            return answer
        if not self._loop.running:
            raise RuntimeError("the registry does not run: await start() first")
        event = request if trace_id is None else Traced(request, trace_id)
        if isinstance(request, ClaimRequested):
            self._meter.selected(self._loop.timed(event))
        else:
            self._loop.handle(event)
        return answer
