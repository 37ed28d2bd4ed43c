"""The registry: the true fleet, loop, writer and effects, over a played event loop, disk and network.

It may crash between any two things that it does; then a new process begins with what the disk holds.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import assert_never, cast

from gpu_agent.registry.actions import (
    Answer,
    CloseConnection,
    Level,
    LogEvent,
    Output,
    Result,
    Send,
    SendStatus,
)
from gpu_agent.registry.events import (
    ConnectionLost,
    Event,
    FaultReported,
    HeartbeatReceived,
    OperatorRequest,
    RegistrationReceived,
    SessionReported,
    UnregistrationReceived,
)
from gpu_agent.registry.fleet import Fleet
from gpu_agent.registry.tokens import CredentialKind, FreshToken
from gpu_agent.server.effects import (
    Executable,
    Prepared,
    PublishEvent,
    UpdateHistories,
    prepare,
    status_message,
    stored_documents,
)
from gpu_agent.server.event_log import RegistryEventLog
from gpu_agent.server.loop import FleetLoop
from gpu_agent.server.node_auth import NodeAuth
from gpu_agent.server.node_connection import NodeConnection
from gpu_agent.server.tokens import PREFIXES, TokenService
from gpu_agent.server.views import Clock
from gpu_agent.server.websocket import Handshake
from gpu_agent.server.writer import Writer
from gpu_agent.session.types import ConnectFailed
from gpu_agent.store.base import Batch
from gpu_agent.wire.codec import decode_from_node, encode
from gpu_agent.wire.heartbeat import Heartbeat
from gpu_agent.wire.messages import (
    FromNode,
    FromRegistry,
    NodeError,
    NodeHeartbeat,
    NodeRegister,
    NodeRegisterAck,
    NodeUnregister,
)
from tests.simulation.disk import SimulatedDisk
from tests.simulation.event_loop import ProcessCrashedError, SimulatedLoop
from tests.simulation.fault_profile import FaultProfile
from tests.simulation.gateways import Gateways
from tests.simulation.invariants.base import Observer
from tests.simulation.network import REGISTER_SECONDS, Connection, Network, UpFrame
from tests.simulation.world import World

VIOLATION = 1008
_MOST_IN_A_TERM = 1_000_000
_POWER_FAILS = 1 / 3
"""So many crashes of the registry are its machine's."""

Reply = Callable[[Result], None]


class RegistryProcess:
    """One registry, over all of its processes."""

    def __init__(
        self, world: World, profile: FaultProfile, *, network: Network | Gateways, disk: SimulatedDisk
    ) -> None:
        self.fleet: Fleet
        self.observer: Observer
        self.disk = disk
        self.running = False
        self.busy_until = 0.0
        self.speaking: Connection | None = None
        """The connection of the frame that is heard."""
        self.crashes_in: int | None = None
        """After so many things more that it does the process crashes."""
        self._world, self._profile, self._network = world, profile, network
        self._clock = Clock(monotonic=lambda: world.now, wall=world.wall)
        self._played: SimulatedLoop
        self._loop: FleetLoop
        self._event_log: RegistryEventLog
        self._door: NodeAuth
        self._batches: dict[int, tuple[Batch, Output]] = {}
        """By the id of a batch: the output whose changes it holds, until that is stored for good."""
        self._connections: dict[int, Connection] = {}
        self._deaf: set[int] = set()
        self._replies: dict[int, Reply] = {}
        self._inherited: set[int] = set()
        """Connections that an earlier process numbered."""
        self._term = self._numbers = self._refs = 0
        disk.stored = self._stored

    def start(self) -> None:
        """Begin a process with what the disk holds."""
        world, thresholds = self._world, self._profile.thresholds
        self.fleet = Fleet(thresholds, world.dice.random, auth_off=self._profile.auth_off)
        self._played = SimulatedLoop(
            world, busy_until=lambda: self.busy_until, work_seconds=self.disk.commit_seconds
        )
        self._event_log = RegistryEventLog()
        sender = TokenService(self.fleet, self._nobody_asks, refs=itertools.count(), clock=self._clock)
        self._door = NodeAuth(None if self._profile.auth_off else sender)
        self._loop = FleetLoop(
            ObservedFleet(self.fleet, self.observer),
            self,
            Writer(self.disk),
            monotonic=self._clock.monotonic,
            scan_interval_seconds=thresholds.scan_interval_seconds,
            lagged=lambda _: None,
        )
        self.running = True
        self._term, self._numbers = self._term + 1, 0
        loaded = self.disk.load()
        self._event_log.restore(loaded)
        outputs = self.fleet.restore(
            stored_documents(loaded.changes, world.wall()), world.now, takeover=self._profile.gateways > 0
        )
        self._say(f"starts with {self.fleet.size} nodes")
        self.observer.restored(loaded)
        self._played.enter(self._loop.start)
        for output in outputs:
            self._played.enter(partial(self._loop.take, output))

    def crash(self, *, agents_learn_within: float) -> None:
        """End the process at once."""
        if not self.running:
            return
        self._say("crashes")
        self.running = False
        self.crashes_in, self.busy_until = None, self._world.now
        self.disk.power_fails = self._world.chance(_POWER_FAILS)
        self._played.crash()
        self.disk.power_fails = False
        self.disk.crash()
        self._batches.clear()
        self._connections.clear()
        self._deaf.clear()
        self._inherited.clear()
        self._replies.clear()
        self._network.registry_is_gone(agents_learn_within=agents_learn_within)
        self.observer.crashed()

    def ask(self, event_of: Callable[[int], Event], reply: Reply) -> None:
        """Ask the fleet something; no answer comes from a registry that is gone or stands still."""
        if self.running and self.busy_until <= self._world.now:
            self._refs += 1
            self._replies[self._refs] = reply
            self.handle(event_of(self._refs))

    def handle(self, event: Event) -> None:
        """Let the loop take an event in."""
        self._played.enter(lambda: self._loop.handle(event))

    # What the network calls.

    def turn_away(self, connection: Connection) -> ConnectFailed | None:
        """Decide at the handshake."""
        token = connection.token
        shake = Handshake("/ws/node", () if token is None else (f"Bearer {token}",))
        refusal = self._door.authenticate(cast("NodeConnection", connection), shake)
        if refusal is None:
            return None
        return ConnectFailed(refusal.sentence, http_status=int(refusal.status))

    def opened(self, connection: Connection) -> None:
        """A connection is open; without a registration it is closed soon."""
        self._numbers += 1
        connection.number = number_of(self._term, self._numbers)
        self._connections[connection.number] = connection
        if isinstance(self._network, Network):
            self._world.after(REGISTER_SECONDS, lambda: self._registration_overdue(connection))

    def inherit(self, connection: Connection) -> None:
        """A gateway holds a connection of an earlier process, or of this one before the link ended."""
        self._connections[connection.number] = connection
        self._inherited.add(connection.number)

    def hear(self, connection: Connection, frame: UpFrame) -> None:
        """Read a frame, unless the connection is being closed."""
        if connection.number in self._deaf:
            return
        self.speaking = connection
        message = decode_from_node(frame) if isinstance(frame, str) else frame
        if not isinstance(message, NodeHeartbeat):
            self._say(f"hears {message.type} of {message.node_id} on {connection.number}")
        self.handle(self._event(connection, message))

    def take_report(self, connection: Connection, report: SessionReported) -> None:
        """Go on with a session, or end it."""
        self.speaking = connection
        self.handle(report)

    def lost(self, connection: Connection, *, link_ended: bool = False) -> None:
        """A connection is gone."""
        self._say(f"loses {connection.number} of {connection.agent.name}")
        self._connections.pop(connection.number, None)
        self._deaf.discard(connection.number)
        self._inherited.discard(connection.number)
        self.handle(ConnectionLost(connection.number, link_ended=link_ended))

    # What the loop calls.

    def prepare(self, output: Output) -> Prepared:
        """Prepare an output as the true executor does, and remember which batch holds it."""
        prepared = prepare(output, event_log=self._event_log, clock=self._clock)
        if prepared.batch is not None and output.changes:
            self._batches[id(prepared.batch)] = (prepared.batch, output)
            changes = " ".join(
                f"{'-' if one.document is None else '+'}{one.kind}:{one.key}" for one in output.changes
            )
            self._say(f"wants {output.number} stored: {changes}")
        return prepared

    def execute(self, effect: Executable) -> None:
        """Carry out one effect, or crash before it."""
        if self.crashes_in is not None:
            self.crashes_in -= 1
            if self.crashes_in < 0:
                self.crash(agents_learn_within=self._world.dice.choice((0.1, 3.0)))
                raise ProcessCrashedError
        match effect:
            case Send() | SendStatus() | CloseConnection():
                self._send_to_node(effect)
            case Answer(ref, result):
                reply = self._replies.pop(ref, None)
                if reply is not None:
                    reply(result)
            case PublishEvent() | LogEvent() | UpdateHistories():
                self._log(effect)
            case _ as unreachable:
                assert_never(unreachable)
        self.observer.executed(effect)

    def _send_to_node(self, effect: Send | SendStatus | CloseConnection) -> None:
        match effect:
            case Send(number, message):
                self._send(number, message)
            case SendStatus(connection=number):
                self._send(number, status_message(effect, self._clock))
            case CloseConnection(number, code, reason):
                self._close(number, code, reason)

    def _event(self, connection: Connection, message: FromNode) -> Event:
        number = connection.number
        match message:
            case NodeHeartbeat():
                return HeartbeatReceived(number, Heartbeat.of(message))
            case NodeRegister():
                return RegistrationReceived(
                    number,
                    message,
                    fresh_id=f"node-{self._world.dice.getrandbits(32):08X}",
                    credential=connection.credential,
                    address=connection.agent.name,
                    fresh_token=None if self._profile.auth_off else self._fresh_token(),
                    is_inherited=number in self._inherited,
                )
            case NodeUnregister():
                return UnregistrationReceived(number, message)
            case NodeError():
                return FaultReported(number, message)
            case _ as unreachable:
                assert_never(unreachable)

    def _fresh_token(self) -> FreshToken:
        minted = self._world.mint(PREFIXES[CredentialKind.NODE])
        return FreshToken(minted.token_id, minted.text, minted.digest)

    def _send(self, number: int, message: FromRegistry) -> None:
        connection = self._connections.get(number)
        if connection is None or number in self._deaf:
            return
        if isinstance(message, NodeRegisterAck):
            connection.identified = True
        if isinstance(message, NodeError):
            self._say(f"refuses {message.code} on {number}")
        self._network.send_down(connection, encode(message) if self._profile.wire else message)

    def _close(self, number: int, code: int, reason: str) -> None:
        connection = self._connections.get(number)
        if connection is not None and number not in self._deaf:
            self._say(f"closes {number} ({code}): {reason}")
            self._deaf.add(number)
            self._network.close(connection, code, reason)

    def _log(self, effect: PublishEvent | LogEvent | UpdateHistories) -> None:
        if isinstance(effect, PublishEvent) and effect.level is not Level.DEBUG:
            event = effect.event
            facts = " ".join(str(one) for one in event.fields.values())
            self._say(f"{event.id} {event.event} {event.node_id or ''} {facts}")

    def _registration_overdue(self, connection: Connection) -> None:
        if self._connections.get(connection.number) is connection and not connection.identified:
            self._close(connection.number, VIOLATION, "no valid node_register in time")

    def _stored(self, batches: Sequence[Batch]) -> None:
        outputs = [self._batches[id(batch)][1] for batch in batches if id(batch) in self._batches]
        self.observer.stored(outputs, batches)

    async def _nobody_asks(self, _asking: OperatorRequest) -> Result:
        raise NotImplementedError("here operators ask at the sender of the simulation")

    def _say(self, what: str) -> None:
        self._world.say("registry", what)


def number_of(term: int, count: int) -> int:
    """Number a connection: over all processes a newer one has a higher number."""
    return term * _MOST_IN_A_TERM + count


class ObservedFleet:
    """The fleet as the loop drives it, each step seen by those who observer."""

    def __init__(self, fleet: Fleet, observer: Observer) -> None:
        self._fleet, self._observer = fleet, observer

    @property
    def deadline(self) -> float | None:
        return self._fleet.deadline

    def handle(self, event: Event, now: float) -> Output:
        self._observer.before(event)
        output = self._fleet.handle(event, now)
        self._observer.decided(event, output)
        return output

    def wake(self, now: float) -> Output:
        self._observer.before(None)
        output = self._fleet.wake(now)
        self._observer.decided(None, output)
        return output
