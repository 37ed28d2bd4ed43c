"""An agent: the true session machine over a played machine, as `gpu_agent.node.agent` joins them.

What it stores outlives its process. It may stand still, crash between any two actions, or be cut from
power; a clone is another agent with a copy of the same state directory.
"""

from dataclasses import replace
from math import inf
from typing import assert_never

from gpu_agent.node.report import measure
from gpu_agent.session.machine import SessionMachine
from gpu_agent.session.types import (
    Action,
    ArchiveIdentity,
    Connect,
    Connected,
    ConnectFailed,
    Credential,
    Declared,
    Disconnect,
    Disconnected,
    DrainRequested,
    Event,
    Exit,
    LogEvent,
    MessageReceived,
    OwnerChanged,
    OwnerRequest,
    Probe,
    ResumeRequested,
    RunChecks,
    Send,
    SendHeartbeat,
    SessionSettings,
    Started,
    State,
    StopRequested,
    StoreIdentity,
)
from gpu_agent.wire.codec import decode_from_registry, encode
from gpu_agent.wire.declaration import heartbeat
from gpu_agent.wire.messages import FromNode, FromRegistry
from tests.simulation.host import SimulatedHost, SimulatedStateDir
from tests.simulation.invariants.base import Observer
from tests.simulation.network import Connection, DownFrame, Network
from tests.simulation.world import EPOCH, World

CHECK_SECONDS = 2.0
"""How long its checks take."""
PROBE_SECONDS = 20.0
"""Between two looks at the machine that nothing else called for."""


class Agent:
    """One machine's agent, over all of its processes."""

    def __init__(
        self, host: SimulatedHost, disk: SimulatedStateDir, *, world: World, network: Network, wire: bool
    ) -> None:
        self.name = host.name
        self.host = host
        self.disk = disk
        self.machine: SessionMachine | None = None
        self.link: Connection | None = None
        self.busy_until = 0.0
        self.unreachable_until = 0.0
        self.crashes_in: int | None = None
        """After so many actions more its process crashes."""
        self.family = host.name
        """Whose state directory it began with."""
        self.lives = 0
        self.own_drain: int | None = None
        """Of the drains that its owner asked for the one that holds, by number."""
        self.observer: Observer
        self._world = world
        self._network = network
        self._wire = wire
        self._wakes_at = inf
        self._looked = False
        self._drains = 0

    @property
    def state(self) -> State | None:
        """Where its session stands; None without a process."""
        return None if self.machine is None else self.machine.state

    @property
    def listens(self) -> bool:
        """True where somebody on the machine may ask something of it."""
        return self.machine is not None and self.busy_until <= self._world.now

    @property
    def is_dialing(self) -> bool:
        """True while it waits for a connection to open."""
        return self.link is not None and not self.link.opened

    @property
    def registered_as(self) -> str | None:
        """The id that it believes to be registered under."""
        if self.machine is None or self.machine.state not in (State.REGISTERED, State.LEAVING):
            return None
        return self.machine.snapshot.node_id

    def clone(self, name: str) -> "Agent":
        """Copy the machine, its disk too: another agent that takes itself for this one."""
        twin = Agent(
            self.host.clone(name),
            replace(self.disk),
            world=self._world,
            network=self._network,
            wire=self._wire,
        )
        twin.family, twin.observer = self.family, self.observer
        return twin

    def start(self) -> None:
        """Start a process, if there is none."""
        if self.machine is not None:
            return
        self.lives += 1
        self.own_drain = None
        self._wakes_at = inf
        self._say(f"starts as {self.disk.node_id} {'with' if self.disk.node_token else 'without'} a token")
        self.machine = SessionMachine(
            SessionSettings(),
            addresses=("registry",),
            node_id=self.disk.node_id,
            has_token=self.disk.node_token is not None,
            draw=self._world.dice.random,
        )
        if self.host.runs_checks:
            self.host.checked = False
            self._world.after(2 * CHECK_SECONDS, self._check)
        self._handle(Started())
        self.look()
        if not self._looked:
            self._looked = True
            self._look_again()

    def take_request(self, order: OwnerRequest | OwnerChanged) -> None:
        """Its owner asks something of it."""
        self._say(f"receives from its owner: {type(order).__name__}")
        if isinstance(order, DrainRequested):
            self.own_drain = self._drains = self._drains + 1
        elif isinstance(order, ResumeRequested):
            self.own_drain = None
        self._handle(order)

    def stop(self, *, drain: bool, deadline_seconds: float | None) -> None:
        """Ask the process to leave."""
        self._say(f"is asked to stop{', to drain first' if drain else ''}")
        self.own_drain = None
        self._handle(StopRequested("its owner stops it", drain=drain, deadline_seconds=deadline_seconds))

    def crash(self, *, without_a_word: bool) -> None:
        """End the process at once."""
        if self.machine is None:
            return
        self._say("loses power" if without_a_word else "crashes")
        self.machine, self.link, self.crashes_in = None, None, None
        self.busy_until = self._world.now
        for connection in self._network.of(self):
            if connection.agent_open:
                self._network.agent_is_gone(connection, without_a_word=without_a_word)

    def look(self) -> None:
        """Probe the machine and report to the session."""
        if self.machine is not None and self.busy_until <= self._world.now:
            _, declaration = self.host.probe(self._world.now)
            self._handle(Declared(declaration, self.host.running_ids))

    def _check(self) -> None:
        self.host.checked = True
        self.look()

    def opened(self, connection: Connection) -> None:
        """The WebSocket is up."""
        if connection is self.link:
            self._handle(Connected())

    def refused(self, connection: Connection, failure: ConnectFailed) -> None:
        """No WebSocket came of it."""
        if connection is self.link:
            self._say(f"cannot connect: {failure.detail}")
            self._handle(failure)

    def hear(self, connection: Connection, frame: DownFrame) -> None:
        """A frame arrived."""
        if connection is self.link:
            message: FromRegistry = decode_from_registry(frame) if isinstance(frame, str) else frame
            self._handle(MessageReceived(message))

    def closed(self, connection: Connection, code: int, detail: str) -> None:
        """The WebSocket is gone."""
        if connection is self.link:
            self.link = None
            self._say(f"is disconnected ({code}): {detail}")
            self._handle(Disconnected(code, detail))

    def _handle(self, event: Event) -> None:
        if self.machine is not None:
            self._carry_out(self.machine.handle(event, self._world.now))

    def _wake(self) -> None:
        now, machine = self._world.now, self.machine
        if machine is None or self._wakes_at > now:
            return
        self._wakes_at = inf
        if self.busy_until > now:
            self._plan(self.busy_until)
        else:
            self._carry_out(machine.wake(now))

    def _look_again(self) -> None:
        """Look at the machine from time to time, whether or not it changed."""
        self.look()
        self._world.after(PROBE_SECONDS, self._look_again)

    def _carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            if self.crashes_in is not None:
                self.crashes_in -= 1
                if self.crashes_in < 0:
                    self.crash(without_a_word=False)
                    return
            self._carry_out_one(action)
        if self.machine is not None:
            self.observer.agent_moved(self)
            deadline = self.machine.deadline
            if deadline is not None:
                self._plan(deadline)

    def _plan(self, when: float) -> None:
        if when < self._wakes_at:
            self._wakes_at = when
            self._world.at(when, self._wake)

    def _carry_out_one(self, action: Action) -> None:
        match action:
            case Connect(credential):
                self._say(f"connects with its {credential} credential")
                self.link = self._network.dial(self, self._token(credential))
            case Disconnect():
                if self.link is not None:
                    self._network.hang_up(self.link)
                    self.link = None
            case Send(message):
                self._say(f"says {message.type} as {message.node_id}")
                self._send(message)
            case SendHeartbeat():
                self._send(self._heartbeat(action))
            case Probe():
                self._world.after(0.1, self.look)
            case RunChecks():
                self._world.after(CHECK_SECONDS, self._check)
            case StoreIdentity() | ArchiveIdentity() | LogEvent() | Exit():
                self._at_home(action)
            case _ as unreachable:
                assert_never(unreachable)

    def _at_home(self, action: StoreIdentity | ArchiveIdentity | LogEvent | Exit) -> None:
        match action:
            case StoreIdentity(node_id, node_token):
                same = self.disk.node_id in (None, node_id)
                self.disk.node_token = node_token or (self.disk.node_token if same else None)
                self.disk.node_id = node_id
            case ArchiveIdentity(node_id):
                self._say(f"sets its id {node_id} aside")
                self.disk.node_id = None
            case LogEvent(event, fields):
                self._say(f"{event} {' '.join(str(one) for one in fields.values())}")
            case Exit(reason):
                self._say(f"ends: {reason}")
                self.machine = None
            case _ as unreachable:
                assert_never(unreachable)

    def _token(self, credential: Credential) -> str | None:
        token = self.disk.node_token
        return token if credential is Credential.BEST and token is not None else self.disk.join_token

    def _heartbeat(self, action: SendHeartbeat) -> FromNode:
        now = self._world.now
        inventory, _ = self.host.probe(now)
        moment = measure(
            inventory,
            job_ids=self.host.running_ids,
            timestamp_ms=round((EPOCH + now) * 1000),
            probe_age_seconds=self.host.probe_age_seconds(now),
        )
        return heartbeat(
            action.node_id,
            inventory,
            moment=moment,
            changed=action.changed,
            sequence=action.sequence,
            job_count_required=not action.knows_schemas,
        )

    def _send(self, message: FromNode) -> None:
        if self.link is not None:
            self._network.send_up(self.link, encode(message) if self._wire else message)

    def _say(self, what: str) -> None:
        self._world.say(self.name, what)
