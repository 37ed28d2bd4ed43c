"""The agent: one loop that hands the session its events and carries out, in order, the actions it returns.

It stores before it sends. It decides nothing: what to send and when is the session's decision, and the
probe says what the machine has. It exits within five seconds of a stop, or of the end of a drain.
"""

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import assert_never

from gpu_agent.node.connection.link import Link, LinkEvent
from gpu_agent.node.credentials import Credentials
from gpu_agent.node.gpu_readings import Collectors
from gpu_agent.node.identity import IdentityFile, store_identity, with_disk_deadline
from gpu_agent.node.jobs import Jobs, mark_own_programs, mark_owned
from gpu_agent.node.liveness import Progress
from gpu_agent.node.log_limit import LogLimit
from gpu_agent.node.model_watch import open_sources, reopen_sources
from gpu_agent.node.prober import Pace, Prober, ReadGpus
from gpu_agent.node.public_jobs import PublicJobs
from gpu_agent.node.report import FaultDetector, measure
from gpu_agent.node.settings import MODEL_SEARCH, SENT_AT_REGISTRATION, AgentSettings
from gpu_agent.node.snapshot import SessionTimes, Snapshot
from gpu_agent.runtime.logs import Logger, set_level
from gpu_agent.runtime.reload import Reloaded
from gpu_agent.runtime.tasks import Tasks
from gpu_agent.session.machine import SessionMachine
from gpu_agent.session.types import (
    Action,
    ArchiveIdentity,
    Connect,
    Declared,
    Disconnect,
    Event,
    Exit,
    LogEvent,
    OwnerChanged,
    OwnerRequest,
    Probe,
    RefreshRequested,
    Send,
    SendHeartbeat,
    SessionSettings,
    SessionSnapshot,
    Started,
    StopRequested,
    StoreIdentity,
)
from gpu_agent.wire.codec import FrameError, encode
from gpu_agent.wire.declaration import declare, heartbeat
from gpu_agent.wire.inventory import Inventory
from gpu_agent.wire.messages import WireModel

# The agent: one loop that feeds the session what happens and carries out, in order, what it asks for.
#
# Saves before it sends. Decides nothing: what to say and when is the session's, what is true of the
# machine is the probe's. Leaves within five seconds of being asked to, or of the end of a drain.


GOODBYE_SECONDS = 2.5
"""How long the last frames and the close of the WebSocket may take."""
_MOST_WAITING = 16
"""Events that may wait; a peer that sends more is read no further until they are handled."""

_LOG = Logger("node")


class Agent:
    """One node's session with its probe, its identity and its link."""

    def __init__(
        self,
        settings: AgentSettings,
        identity: IdentityFile,
        read_gpus: ReadGpus,
        *,
        session: SessionSettings | None = None,
        collecting: Collectors | None = None,
    ) -> None:
        self.jobs = Jobs()
        """What workers announce; whoever hears them tells it here."""
        self._settings = settings
        self._identity = identity
        self._credentials = _credentials_of(settings, identity)
        self._machine = SessionMachine(
            session or SessionSettings(),
            node_id=identity.identity.node_id,
            has_token=identity.identity.node_token is not None,
            draw=random.SystemRandom().random,
        )
        self._prober = Prober(
            read_gpus,
            open_sources(settings),
            pace=Pace(
                interval_seconds=settings.probe_interval_seconds,
                deadline_seconds=settings.deadline_seconds,
                stale_after_seconds=settings.nvml_stale_after_seconds,
                poll_gpus=settings.poll_gpus,
            ),
            simulated=settings.simulate is not None,
            listener=self._probed,
            collecting=collecting,
        )
        self._inbox: asyncio.Queue[tuple[Link | asyncio.Event | None, Event]] = asyncio.Queue(_MOST_WAITING)
        """What happened, with the link that it came over, or with what is to be set once it was taken."""
        self._inventory: Inventory | None = None
        self._link: Link | None = None
        self._parting: Link | None = None
        """The link that was closed last: its goodbye may still be on its way."""
        self._exit: Exit | None = None
        self._busy_since: float | None = None
        self._repeats = LogLimit()
        self._faults = FaultDetector()
        self._public_pool = PublicJobs(settings)
        parts = Parts(self._machine, self._prober, self._public_pool, lambda: self._settings)
        self.front = ControlApi(parts, self.jobs, self._take)
        """What programs on this machine see."""

    @property
    def view(self) -> SessionSnapshot:
        """The session as it stands, for `status`."""
        return self._machine.snapshot

    @property
    def settings(self) -> AgentSettings:
        """Those that it runs with now."""
        return self._settings

    @property
    def signs(self) -> Progress:
        """What tells whether this agent gets on."""
        return Progress(
            busy_since=self._busy_since,
            deadline=self._machine.deadline,
            probed_at=self._prober.turned_at,
            probe_patience_seconds=self._prober.patience_seconds,
        )

    async def run(self, tasks: Tasks) -> Exit:
        """Live until the session is over; returns how it ended."""
        tasks.start("prober", self._prober.run(tasks))
        await self._carry_out_all(self._machine.handle(Started(), _now()), tasks)
        while self._exit is None:
            await self._carry_out_all(await self._next_actions(), tasks)
        if self._parting is not None:
            await self._parting.ended(within_seconds=GOODBYE_SECONDS)
        return self._exit

    async def stop(self, reason: str) -> None:
        """Ask the session to say goodbye and end, after its jobs if that is set; once more, at once."""
        seconds = self._settings.drain_on_stop_seconds
        asked = StopRequested(reason, drain=seconds > 0, deadline_seconds=seconds or None)
        await self._inbox.put((None, asked))

    async def take_over(self, told: Reloaded[AgentSettings]) -> None:
        """Go on with settings that were read again; what the owner states is told with the next beat."""
        self._settings = told.settings
        if "log_level" in told.changed:
            set_level(told.settings.log_level)
        self._credentials = _credentials_of(told.settings, self._identity)
        self._public_pool.take_over(told.settings)
        self._prober.repace(told.settings.probe_interval_seconds)
        if MODEL_SEARCH.intersection(told.changed):
            await self._prober.renew(await reopen_sources(told.settings, self._prober.scanner))
        if SENT_AT_REGISTRATION.intersection(told.changed):
            await self._inbox.put((None, OwnerChanged()))
        if self._inventory is not None:
            await self._declare(self._inventory)

    async def _take(self, order: OwnerRequest, taken: asyncio.Event) -> None:
        await self._inbox.put((taken, order))

    async def _probed(self, inventory: Inventory) -> None:
        gpus = await mark_owned(inventory.gpu, self.jobs)
        inventory = replace(
            inventory, gpu=await mark_own_programs(gpus, self._settings.public_jobs.own_programs)
        )
        self._inventory = inventory
        self.front.probed(inventory)
        await self._declare(inventory)
        for fault in self._faults.found_in(inventory.gpu):
            if self._repeats.admit(fault.code, now=_now()) is not None:
                await self._inbox.put((None, fault))

    async def _declare(self, inventory: Inventory) -> None:
        owner = self._public_pool.owner_at(inventory.gpu, self.jobs, now=_now())
        declaration = declare(inventory, owner)
        await self._inbox.put((None, Declared(declaration, running_jobs=self.jobs.ids)))

    async def _heard(self, link: Link, event: LinkEvent) -> None:
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
            return []  # the session has let go of that link
        actions = self._machine.handle(event, _now())
        if isinstance(source, asyncio.Event):
            source.set()
        return actions

    async def _carry_out_all(self, actions: list[Action], tasks: Tasks) -> None:
        self.front.note(_now())
        for action in actions:
            await self._carry_out(action, tasks)

    async def _carry_out(self, action: Action, tasks: Tasks) -> None:
        match action:
            case Connect() | Disconnect():
                await self._join_or_part(action, tasks)
            case Send(message):
                self._send(message)
            case SendHeartbeat():
                self._beat(action)
            case StoreIdentity() | ArchiveIdentity():
                await store_identity(self._identity, action)
            case Probe() | LogEvent() | Exit():
                self._note(action)
            case _ as unreachable:
                assert_never(unreachable)

    async def _join_or_part(self, action: Connect | Disconnect, tasks: Tasks) -> None:
        if isinstance(action, Connect):
            token = await with_disk_deadline(
                "credential", lambda: self._credentials.token_for(action.credential)
            )
            settings = self._settings
            self._link = Link(
                settings.registry_url,
                token=token,
                report=self._heard,
                proxy=settings.proxy,
                security=settings.security,
            )
            self._link.start(tasks)
        elif self._link is not None:
            self._link.close(action.code, action.reason)
            self._parting, self._link = self._link, None

    def _send(self, message: WireModel) -> None:
        if self._link is None:
            return
        try:
            self._link.send(encode(message))
        except FrameError as error:  # ours; without an answer the session tries again later
            _LOG.error("message_not_sent", problem=str(error))

    def _beat(self, beat: SendHeartbeat) -> None:
        if self._inventory is None:
            return
        self.front.beat(_now())
        moment = measure(
            self._inventory,
            job_ids=self.jobs.ids,
            timestamp_ms=time.time_ns() // 1_000_000,
            probe_age_seconds=self._prober.probe_age_seconds,
        )
        self._send(
            heartbeat(
                beat.node_id,
                self._inventory,
                moment=moment,
                changed=beat.changed,
                sequence=beat.sequence,
                job_count_required=not beat.knows_schemas,
            )
        )

    def _note(self, action: Probe | LogEvent | Exit) -> None:
        match action:
            case Probe():
                self._prober.probe_now()
            case LogEvent():
                self._tell(action)
            case Exit():
                self._exit = action
            case _ as unreachable:
                assert_never(unreachable)

    def _tell(self, note: LogEvent) -> None:
        """Log it, unless the registry makes the session say the same again and again."""
        # Another reason to wait is news, and comes no oftener than the session waits.
        about = note.fields.get("why") if note.event == "session_backing_off" else None
        also = self._repeats.admit(note.event, now=_now(), about=about)
        if also is not None:
            tell = _LOG.warning if note.problem else _LOG.info
            tell(note.event, **note.fields, **also)


def _credentials_of(settings: AgentSettings, identity: IdentityFile) -> Credentials:
    join_token = None if settings.join_token is None else settings.join_token.get_secret_value()
    return Credentials(identity, settings.join_token_file, join_token)


def _now() -> float:
    return asyncio.get_running_loop().time()


# The side of the agent that programs on its machine see: how it stands, and a way to ask something of it.
#
# An order becomes an event like any other and is taken in its turn. It decides nothing and carries
# nothing out.


@dataclass(frozen=True, slots=True)
class Parts:
    """What of the agent is looked at."""

    machine: SessionMachine
    prober: Prober
    public_pool: PublicJobs
    settings: Callable[[], AgentSettings]
    """Those that hold now: they may be read again."""


Take = Callable[[OwnerRequest, asyncio.Event], Awaitable[None]]


class ControlApi:
    """One agent's. `take` puts an order among what waits to be handled, and the event tells when it was."""

    def __init__(self, parts: Parts, jobs: Jobs, take: Take) -> None:
        self.jobs = jobs
        self._parts = parts
        self._take = take
        self._course = SessionTimes()
        self._inventory: Inventory | None = None
        self._probed_anew = asyncio.Event()
        self._probe_began_at = -math.inf
        """When the one began that has ended last."""

    def snapshot(self) -> Snapshot:
        """All that is known at this moment."""
        parts, settings = self._parts, self._parts.settings()
        return Snapshot(
            session=parts.machine.snapshot,
            registry_url=settings.registry_url,
            owner=settings.owner,
            public_jobs=parts.public_pool.standing,
            inventory=self._inventory,
            probe_age_seconds=parts.prober.probe_age_seconds,
            state_since=self._course.state_since,
            link_since=self._course.link_since,
            status_received_at=self._course.status_received_at,
            last_heartbeat_at=self._course.last_heartbeat_at,
        )

    async def order(self, order: OwnerRequest) -> None:
        """Have the session take what the owner asks, and return once it has."""
        taken = asyncio.Event()
        await self._take(order, taken)
        await taken.wait()

    async def refresh(self) -> None:
        """Probe again and tell the registry all of it; returns once a probe has ended that began later."""
        asked_at = time.monotonic()
        await self.order(RefreshRequested())
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
        self._course.note(self._parts.machine.snapshot, now)

    def beat(self, now: float) -> None:
        """A beat goes out."""
        self._course.beat(now)
