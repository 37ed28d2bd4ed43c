"""The agent: one loop that hands the session its events and carries out, in order, the actions it returns.

It stores before it sends. It decides nothing: what to send and when is the session's decision, and the
probe says what the machine has. It exits within five seconds of a stop, or of the end of a drain.
"""

import asyncio
import math
import platform
import random
import time
from typing import assert_never

from gpu_agent.node.checks import Checks
from gpu_agent.node.connection.link import Link, LinkEvent
from gpu_agent.node.credentials import Credentials
from gpu_agent.node.gpu_readings import Collectors, GpuSource
from gpu_agent.node.identity import (
    IdentityFile,
    can_store,
    store_identity,
    watch_disk,
    with_disk_deadline,
)
from gpu_agent.node.jobs import Jobs, mark_own_programs, mark_owned
from gpu_agent.node.liveness import Progress
from gpu_agent.node.log_limit import LogLimit
from gpu_agent.node.metrics import GpuEvents, View, exposition
from gpu_agent.node.model_watch import open_sources, reopen_sources
from gpu_agent.node.prober import Pace, Prober
from gpu_agent.node.public_jobs import PublicJobs
from gpu_agent.node.report import FaultDetector, measure
from gpu_agent.node.settings import AgentSettings
from gpu_agent.node.snapshot import CONNECTED, SessionTimes, Snapshot
from gpu_agent.records import replace
from gpu_agent.runtime.config.fields import setting_of
from gpu_agent.runtime.logs import Logger, set_level
from gpu_agent.runtime.reload import Reloaded
from gpu_agent.runtime.tasks import Tasks
from gpu_agent.session.machine import SessionMachine
from gpu_agent.session.types import (
    Action,
    ArchiveIdentity,
    Connect,
    ConnectFailed,
    Declared,
    Disconnect,
    Event,
    Exit,
    LogEvent,
    OwnerChanged,
    OwnerRequest,
    Probe,
    RefreshRequested,
    RunChecks,
    Send,
    SendHeartbeat,
    SessionSettings,
    SessionSnapshot,
    Started,
    State,
    StopRequested,
    StoreIdentity,
)
from gpu_agent.wire.codec import FrameError, encode
from gpu_agent.wire.codes import NodeStatus
from gpu_agent.wire.declaration import declare, heartbeat
from gpu_agent.wire.inventory import Inventory
from gpu_agent.wire.messages import WireModel

CLOSE_SECONDS = 2.5
"""How long the last frames and the close of the WebSocket may take."""
_MAX_QUEUED_EVENTS = 16
"""A peer that sends more is read no further until these are handled."""

_LOG = Logger("node")


class Agent:
    """One node's session with its probe, its identity and its link."""

    def __init__(
        self,
        settings: AgentSettings,
        identity: IdentityFile,
        gpus: GpuSource,
        *,
        session: SessionSettings | None = None,
        collectors: Collectors | None = None,
    ) -> None:
        self.jobs = Jobs()
        """What workers announce; the control socket's handler updates it."""
        self._settings = settings
        self._registry_urls = settings.registry_urls
        self._identity = identity
        self._credentials = _credentials_of(settings, identity)
        self._machine = SessionMachine(
            session or SessionSettings(),
            addresses=self._registry_urls,
            node_id=identity.identity.node_id,
            has_token=identity.identity.node_token is not None,
            draw=random.SystemRandom().random,
        )
        self._prober = Prober(
            gpus,
            open_sources(settings),
            pace=Pace(
                interval_seconds=settings.probe_interval_seconds,
                deadline_seconds=settings.deadline_seconds,
                stale_after_seconds=settings.nvml_stale_after_seconds,
                poll_gpus=settings.poll_gpus,
                needed_at=self._figures_needed_at,
            ),
            simulated=settings.simulate is not None,
            listener=self._on_probe,
            collectors=collectors,
        )
        self._checks = Checks(
            settings.checks.expected,
            sys_dir=settings.sys_dir,
            simulated=settings.simulate is not None,
            jobs_in_flight=self._jobs_in_flight,
            changed=self._declare_again,
        )
        self._inbox: asyncio.Queue[tuple[Link | asyncio.Event | None, Event]] = asyncio.Queue(
            _MAX_QUEUED_EVENTS
        )
        """Events, each with its link, or with an `asyncio.Event` to set once the session has handled it."""
        self._inventory: Inventory | None = None
        self._checks_requested_at: float | None = None
        """Since when the checks wait for a reading, monotonic: they judge the GPUs as they are now."""
        self._probe_finished = asyncio.Event()
        self._last_probe_began_at = -math.inf
        """When the probe began that has ended last, in monotonic seconds."""
        self._link: Link | None = None
        self._closing_link: Link | None = None
        """The link that was closed last: its last frames may still be on their way."""
        self._exit: Exit | None = None
        self._busy_since: float | None = None
        self._times = SessionTimes()
        self._log_limit = LogLimit()
        self._faults = FaultDetector()
        self._gpu_events = GpuEvents()
        self._public_jobs = PublicJobs(settings)
        self._settings_problem: str | None = None

    @property
    def session(self) -> SessionSnapshot:
        """The session's state now."""
        return self._machine.snapshot

    @property
    def settings(self) -> AgentSettings:
        """The settings that apply now."""
        return self._settings

    def progress(self) -> Progress:
        """What `liveness` checks."""
        return Progress(
            busy_since=self._busy_since,
            deadline=self._machine.deadline,
            probed_at=self._prober.began_at,
            max_probe_seconds=self._prober.max_round_seconds,
        )

    def snapshot(self) -> Snapshot:
        """The agent's whole state at this moment."""
        doubt = None if self._machine.state in CONNECTED else self._credentials.doubt
        return Snapshot(
            session=self._machine.snapshot,
            registry_urls=self._registry_urls,
            owner=self._public_jobs.owner,
            public_jobs=self._public_jobs.state,
            checks=self._checks.states,
            token_problem=self._credentials.problem or doubt,
            state_problem=self._identity.problem,
            settings_problem=self._settings_problem,
            inventory=self._inventory,
            probe_age_seconds=self._prober.probe_age_seconds,
            state_since=self._times.state_since,
            link_since=self._times.link_since,
            status_received_at=self._times.status_received_at,
            last_heartbeat_at=self._times.last_heartbeat_at,
        )

    def metrics(self) -> str:
        """Write the metrics of this moment for Prometheus."""
        return exposition(
            View(
                snapshot=self.snapshot(),
                events=self._gpu_events,
                reading_ages=self._prober.reading_ages,
                fresh_seconds=self._settings.probe_interval_seconds + self._settings.deadline_seconds,
                jobs_in_flight=None if self.jobs.ids is None else len(self.jobs.ids),
                hostname=platform.node(),
                now=_now(),
            )
        )

    async def run(self, tasks: Tasks) -> Exit:
        """Run until the session ends; returns how it ended."""
        tasks.start("prober", self._prober.run(tasks))
        tasks.start("checks", self._checks.run())
        tasks.start("state-disk", watch_disk(self._identity))
        await self._execute_all(self._machine.handle(Started(), _now()), tasks)
        while self._exit is None:
            await self._execute_all(await self._next_actions(), tasks)
        if self._closing_link is not None:
            await self._closing_link.ended(within_seconds=CLOSE_SECONDS)
        return self._exit

    async def stop(self, reason: str) -> None:
        """End the session, after its jobs with `drain_on_stop_seconds`; a second call ends it at once."""
        seconds = self._settings.drain_on_stop_seconds
        stop = StopRequested(reason, drain=seconds > 0, deadline_seconds=seconds or None)
        await self._inbox.put((None, stop))

    async def submit(self, request: OwnerRequest) -> None:
        """Pass the owner's request to the session, and return once the session has handled it."""
        handled = asyncio.Event()
        await self._inbox.put((handled, request))
        await handled.wait()

    async def refresh(self) -> None:
        """Probe again and send the registry all of it; returns once such a probe has ended."""
        called_at = time.monotonic()
        await self.submit(RefreshRequested())
        while self._last_probe_began_at < called_at:
            self._probe_finished.clear()
            await self._probe_finished.wait()

    def note_reload(self, problem: str | None) -> None:
        """Show in `status` what a reload did not take over; None where it took all."""
        self._settings_problem = problem

    async def apply(self, reloaded: Reloaded[AgentSettings]) -> None:
        """Apply settings that were read again; the next heartbeat carries what the owner states."""
        running, settings, changed = self._settings, reloaded.settings, reloaded.changed
        self._settings = settings
        if "log_level" in changed:
            set_level(settings.log_level)
        self._credentials = _credentials_of(settings, self._identity)
        self._public_jobs.apply(settings)
        self._prober.set_interval(settings.probe_interval_seconds)
        self._checks.apply(settings.checks.expected)
        if settings.probe_options != running.probe_options:
            await self._prober.replace_sources(await reopen_sources(settings, self._prober.scanner))
        if any(setting_of(AgentSettings.model_fields[name]).registers for name in changed):
            await self._inbox.put((None, OwnerChanged()))
        await self._declare_again()

    async def _on_probe(self, inventory: Inventory) -> None:
        if self._settings.exposes_metrics:
            self._gpu_events.count(inventory.gpu)
        gpus = await mark_owned(inventory.gpu, self.jobs)
        gpus = await mark_own_programs(gpus, self._settings.public_jobs.own_programs)
        self._inventory = inventory = replace(inventory, gpu=gpus)
        self._last_probe_began_at = self._prober.began_at
        self._probe_finished.set()
        self._checks.observe(inventory.gpu)
        if self._checks_requested_at is not None and self._prober.began_at >= self._checks_requested_at:
            self._checks_requested_at = None
            self._checks.request()
        await self._declare(inventory)
        for fault in self._faults.found_in(inventory.gpu):
            if self._log_limit.admit(fault.code, now=_now()) is not None:
                await self._inbox.put((None, fault))

    async def _declare(self, inventory: Inventory) -> None:
        owner = self._public_jobs.owner_at(inventory.gpu, self.jobs, now=_now())
        declaration = declare(inventory, owner, checks=self._checks.results)
        await self._inbox.put((None, Declared(declaration, running_jobs=self.jobs.ids)))

    async def _declare_again(self) -> None:
        if self._inventory is not None:
            await self._declare(self._inventory)

    def _jobs_in_flight(self) -> int:
        """Count the jobs that workers announce here, or else those that the registry counts on this node."""
        session = self._machine.snapshot
        status = session.registry_status
        details = None if status is None or session.state not in CONNECTED else status.details
        counted = 0 if details is None else details.in_flight_jobs or 0
        return len(self.jobs.ids or ()) or counted

    def _figures_needed_at(self) -> float | None:
        """When the next heartbeat needs figures; None while something here needs each reading."""
        status, state = self._machine.snapshot.registry_status, self._machine.state
        in_use = self.jobs.ids or self._checks.are_due or self._public_jobs.are_limited
        leaves = state is State.LEAVING or (status is not None and status.status == NodeStatus.DRAINING)
        if in_use or leaves or self._settings.exposes_metrics:
            return None
        return self._machine.deadline if state is State.REGISTERED else math.inf

    async def _on_link_event(self, link: Link, event: LinkEvent) -> None:
        await self._inbox.put((link, event))

    async def _next_actions(self) -> list[Action]:
        """Wait for an event or the session's deadline, whichever comes first."""
        self._busy_since = None
        try:
            async with asyncio.timeout_at(self._machine.deadline):
                source, event = await self._inbox.get()
        except TimeoutError:
            return self._machine.wake(_now())
        finally:
            self._busy_since = _now()
        if isinstance(source, Link) and source is not self._link:
            return []  # the session has disconnected that link
        actions = self._machine.handle(event, _now())
        if isinstance(source, asyncio.Event):
            source.set()
        return actions

    async def _execute_all(self, actions: list[Action], tasks: Tasks) -> None:
        self._times.update(self._machine.snapshot, _now())
        for action in actions:
            await self._execute(action, tasks)

    async def _execute(self, action: Action, tasks: Tasks) -> None:
        match action:
            case Connect() | Disconnect():
                await self._connect_or_disconnect(action, tasks)
            case Send(message):
                self._send(message)
            case SendHeartbeat():
                self._send_heartbeat(action)
            case StoreIdentity() | ArchiveIdentity():
                await store_identity(self._identity, action)
            case Probe():
                self._prober.probe_now()
            case RunChecks():
                self._checks_requested_at = time.monotonic()
                self._prober.probe_now()
            case LogEvent():
                self._log(action)
            case Exit():
                self._exit = action
            case _ as unreachable:
                assert_never(unreachable)

    async def _connect_or_disconnect(self, action: Connect | Disconnect, tasks: Tasks) -> None:
        if isinstance(action, Disconnect):
            if self._link is not None:
                self._link.close(action.code, action.reason)
                self._closing_link, self._link = self._link, None
            return
        token = await with_disk_deadline("credential", lambda: self._credentials.token_for(action.credential))
        known = self._identity.identity
        may_be_issued = known.node_id is None or token not in (None, known.node_token)
        if may_be_issued and not await can_store(self._identity):
            # Registered now, this machine would be another node after its next start.
            why = f"it does not register, as its identity could not be stored: {self._identity.problem}"
            await self._execute_all(self._machine.handle(ConnectFailed(why), _now()), tasks)
            return
        settings = self._settings
        self._link = Link(
            action.address,
            token=token,
            report=self._on_link_event,
            proxy=settings.proxy,
            security=settings.security,
        )
        self._link.start(tasks)

    def _send(self, message: WireModel) -> None:
        if self._link is None:
            return
        try:
            self._link.send(encode(message))
        except FrameError as error:  # our own fault; without an answer the session tries again later
            _LOG.error("message_not_sent", problem=str(error))

    def _send_heartbeat(self, action: SendHeartbeat) -> None:
        if self._inventory is None:
            return
        self._times.last_heartbeat_at = _now()
        moment = measure(
            self._inventory,
            job_ids=self.jobs.ids,
            timestamp_ms=time.time_ns() // 1_000_000,
            probe_age_seconds=self._prober.probe_age_seconds,
        )
        self._send(
            heartbeat(
                action.node_id,
                self._inventory,
                moment=moment,
                changed=action.changed,
                sequence=action.sequence,
                job_count_required=not action.knows_schemas,
            )
        )

    def _log(self, event: LogEvent) -> None:
        """Log it, unless the registry makes the session repeat it again and again."""
        # Another reason or address is no repeat, and comes no oftener than the session backs off.
        backs_off = event.event == "session_backing_off"
        about = (event.fields.get("why"), event.fields.get("registry")) if backs_off else None
        suppressed = self._log_limit.admit(event.event, now=_now(), about=about)
        if suppressed is not None:
            log = _LOG.warning if event.problem else _LOG.info
            log(event.event, **event.fields, **suppressed)


def _credentials_of(settings: AgentSettings, identity: IdentityFile) -> Credentials:
    join_token = None if settings.join_token is None else settings.join_token.get_secret_value()
    return Credentials(identity, settings.join_token_file, join_token)


def _now() -> float:
    return asyncio.get_running_loop().time()
