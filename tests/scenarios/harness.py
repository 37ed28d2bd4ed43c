"""The harness: one registry, any number of nodes, a network that loses nothing, and a clock that never waits.

Both sides are the pure machines themselves. Frames travel as the bytes that the codec writes, in order
and in no time; the clock jumps from one deadline to the next. So a play is always played alike.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count
from math import inf
from typing import assert_never

from gpu_agent.registry.actions import (
    Answer,
    CloseConnection,
    Effect,
    Level,
    LogEvent,
    Result,
    Send,
    SendStatus,
)
from gpu_agent.registry.events import (
    ConnectionLost,
    Event,
    FaultReported,
    HeartbeatReceived,
    JoinTokenRequested,
    RegistrationReceived,
    SessionReported,
    UnregistrationReceived,
)
from gpu_agent.registry.fleet import Fleet
from gpu_agent.registry.settings import Thresholds
from gpu_agent.registry.tokens import Credential, FreshToken, TokenState
from gpu_agent.server.effects import status_message
from gpu_agent.server.views import Clock
from gpu_agent.wire.codec import FrameError, decode_from_node, encode
from gpu_agent.wire.codes import ErrorCode
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
from tests.fleet_shell import FleetShell
from tests.scenarios.actors import JOIN_TOKEN, Actor, Agent, Dial, Frame, HangUp, Logged, OlderNode, Outward
from tests.scenarios.transcript import EPOCH, Line, Transcript, answered, said_by_node, said_by_registry

# The registry's side of the wire: the pure fleet with a store, tokens and a log, all of them played.
#
# Carries effects out as `gpu_agent.server` does: in order, once the changes before them are stored. A store
# gives back what went through JSON.


_SAID_BY_THE_MESSAGE = {
    "node_register_received",
    "node_registered",
    "node_register_refused",
    "job_assigned",
    "claim_released",
    "dispatch_failed",
    "dispatch_candidate_excluded",
    "node_token_issued",
}
"""Notes that say once more what a message or an answer says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrySetup:
    """How one registry is set up."""

    thresholds: Thresholds = field(default_factory=Thresholds)
    auth_off: bool = False
    only_schema: str | None = None
    """An older registry's: it refuses every other schema, and says which it takes."""


@dataclass(slots=True)
class _Session:
    """What a gateway knows of one connection, for another leader."""

    registered: tuple[str, int] | None = None
    last: Heartbeat | None = None
    last_at: float = 0.0
    unanswered: list[str] = field(default_factory=list)

    def hear(self, message: FromNode, frame: str, now: float) -> None:
        """Hold what a leader that ends may not have answered."""
        if isinstance(message, NodeHeartbeat):
            self.last, self.last_at = Heartbeat.of(message), now
        elif isinstance(message, NodeRegister) and frame not in self.unanswered:
            self.unanswered.append(frame)

    def say(self, message: FromRegistry) -> None:
        """Hold an answered registration no longer."""
        if isinstance(message, NodeRegisterAck):
            self.registered, self.last = (message.node_id, message.session_epoch or 0), None
        if isinstance(message, NodeRegisterAck | NodeError):
            self.unanswered.clear()


class ScenarioRegistry:
    """One registry, over all of its restarts."""

    def __init__(
        self,
        setup: RegistrySetup,
        transcript: Transcript,
        *,
        now: Callable[[], float],
        send: Callable[[int, str], None],
        close: Callable[[int, int, str], None],
    ) -> None:
        self.running = True
        self.answers: dict[int, Result] = {}
        """By `ref`, until they are read."""
        self.waiting: set[int] = set()
        """Requests whose answers are written when they come."""
        self._setup = setup
        self._transcript = transcript
        self._now = now
        self._clock = Clock(monotonic=now, wall=lambda: EPOCH + now())
        self._send_frame, self._close = send, close
        self._leads = self._answers = True
        self._sessions: dict[int, _Session] = {}
        """What a gateway knows of each connection."""
        self._inherited: set[int] = set()
        """Connections that an earlier leader accepted."""
        self._names: dict[int, str] = {}
        self._credentials: dict[int, Credential | None] = {}
        self._drawn = count()
        self._tokens_drawn = 0
        self._fresh = self._draw()
        self._shell = self._new_shell()
        if not setup.auth_off:
            self._make_join_token()

    @property
    def fleet(self) -> Fleet:
        return self._shell.fleet

    @property
    def deadline(self) -> float:
        due = self.fleet.deadline
        return inf if due is None or not (self.running and self._leads) else due

    @property
    def auth_off(self) -> bool:
        return self._setup.auth_off

    def wake(self) -> None:
        self._shell.carry_out(self.fleet.wake(self._now()))

    def stop(self) -> None:
        """Be gone: every connection with it, and all that was not stored."""
        self.running = False

    def start(self) -> None:
        """Start again from what the store holds."""
        self.running = True
        stored, documents = self._shell.load(), self._shell.documents
        self._shell = self._new_shell()
        self._shell.documents.update(documents)
        for output in self.fleet.restore(stored, self._now()):
            self._shell.carry_out(output)

    def end_leader(self, *, answers: bool) -> None:
        """Let the leader end, or decide and store while nobody hears it any more; its gateway goes on."""
        self._leads, self._answers = not answers, answers

    def take_over(self) -> None:
        """Let another leader go on from what is stored, and from what the gateway reports."""
        self._leads = self._answers = True
        self._inherited = set(self._sessions)
        self.start()
        for connection, session in self._sessions.items():
            if session.registered is not None:
                self._report(connection, session)
            for frame in list(session.unanswered):
                self.frame_arrived(connection, frame)

    def _report(self, connection: int, session: "_Session") -> None:
        assert session.registered is not None
        node_id, epoch = session.registered
        last = session.last
        report = SessionReported(
            connection=connection,
            node_id=node_id,
            session_epoch=epoch,
            credential=self._credentials[connection],
            address=f"10.0.0.{connection}",
            heartbeat_age_seconds=None if last is None else self._now() - session.last_at,
            is_complete=True,
        )
        self.handle(report)
        if last is not None:
            self.handle(HeartbeatReceived(connection, last, age_seconds=self._now() - session.last_at))

    def let_store_fail(self, *, fails: bool) -> None:
        """Let the store fail from now on, or answer again."""
        self._shell.let_store_fail(fails=fails)

    def turns_away(self, token: str | None) -> int | None:
        """Say with which status a handshake with this token fails; None when it succeeds."""
        if self.auth_off:
            return None
        credential = self._credential(token)
        if credential is None:
            return 401
        states = {one.token_id: one.state(self._now()) for one in self.fleet.tokens()}
        return 403 if states.get(credential.token_id) is TokenState.USED_UP else None

    def opened(self, connection: int, name: str, token: str | None) -> None:
        self._names[connection] = name
        self._sessions[connection] = _Session()
        self._credentials[connection] = None if self._setup.auth_off else self._credential(token)

    def lost(self, connection: int) -> None:
        self._sessions.pop(connection, None)
        self.handle(ConnectionLost(connection))

    def frame_arrived(self, connection: int, frame: str) -> None:
        """Read a frame as the registry's reception does."""
        try:
            message = decode_from_node(frame.encode())
        except FrameError as error:
            refusal = NodeError(code=ErrorCode.INVALID_MESSAGE, message=str(error), details=error.details())
            self._say(connection, refusal)
            return
        only = self._setup.only_schema
        if isinstance(message, NodeRegister) and only and message.capability_schema_version != only:
            refusal = NodeError(
                code=ErrorCode.INVALID_CAPABILITY_SCHEMA,
                message=f"this older registry reads schema {only} only",
                details={"supported": [only]},
            )
            self._say(connection, refusal)
        else:
            session = self._sessions.get(connection)
            if session is not None:  # else its last words: it has hung up
                session.hear(message, frame, self._now())
            self.handle(self._event(connection, message))

    def handle(self, event: Event) -> None:
        if not self._leads:
            return
        self._shell.carry_out(self.fleet.handle(event, self._now()))

    def _event(self, connection: int, message: FromNode) -> Event:
        match message:
            case NodeHeartbeat():
                return HeartbeatReceived(connection, Heartbeat.of(message))
            case NodeRegister():
                self._tokens_drawn += 1
                text = f"token-{self._tokens_drawn}"
                fresh = FreshToken(f"{self._tokens_drawn:08x}", text, digest_of(text))
                return RegistrationReceived(
                    connection,
                    message,
                    fresh_id=self._fresh,
                    credential=self._credentials[connection],
                    address=f"10.0.0.{connection}",
                    fresh_token=None if self._setup.auth_off else fresh,
                    is_inherited=connection in self._inherited,
                )
            case NodeUnregister():
                return UnregistrationReceived(connection, message)
            case NodeError():
                return FaultReported(connection, message)
            case _ as unreachable:
                assert_never(unreachable)

    def _execute(self, effect: Effect) -> None:
        if not self._answers:
            return
        match effect:
            case Send(connection, message):
                self._say(connection, message)
            case SendStatus():
                self._say(effect.connection, status_message(effect, self._clock))
            case CloseConnection(connection, code, reason):
                self._write("registry → {}", self._names[connection], f"closes ({code}): {reason}")
                self._close(connection, code, reason)
            case Answer(ref, result) if ref in self.waiting:
                self.waiting.remove(ref)
                for line in answered(result, self._now()):
                    self._write("registry → {}", "scheduler", line)
            case Answer(ref, result):
                self.answers[ref] = result
            case LogEvent():
                self._note(effect)
            case _ as unreachable:
                assert_never(unreachable)

    def _say(self, connection: int, message: FromRegistry) -> None:
        if isinstance(message, NodeRegisterAck) and message.node_id == self._fresh:
            self._fresh = self._draw()
        session = self._sessions.get(connection)
        if session is not None:
            session.say(message)
        self._write("registry → {}", self._names[connection], said_by_registry(message))
        self._send_frame(connection, encode(message))

    def _note(self, note: LogEvent) -> None:
        if note.event in _SAID_BY_THE_MESSAGE or note.level is Level.DEBUG:
            return
        fields = dict(note.fields)
        node = str(fields.pop("node_id", ""))
        if note.event == "node_status_changed":
            text = f"{fields['from'] or '–'} → {fields['to']} ({fields['reason_code']})"  # noqa: RUF001
        else:
            text = " ".join([note.event, *(f"{name}={value}" for name, value in fields.items())])
        self._write("registry: {}" if node else "registry", node, text)

    def _write(self, who: str, node: str, text: str) -> None:
        self._transcript.add(Line(self._now(), who, node, text))

    def _new_shell(self) -> FleetShell:
        fleet = Fleet(self._setup.thresholds, lambda: 0.5, auth_off=self._setup.auth_off)
        return FleetShell(fleet, now=self._now, execute=self._execute)

    def _credential(self, token: str | None) -> Credential | None:
        return None if token is None else self.fleet.credential(digest_of(token), self._now())

    def _make_join_token(self) -> None:
        made = JoinTokenRequested(ref=0, token_id=JOIN_TOKEN, digest=digest_of(JOIN_TOKEN), uses=None)
        output = self.fleet.handle(made, self._now())
        self._shell.carry_out(replace(output, effects=()))

    def _draw(self) -> str:
        """The first ids are easy to tell apart; all are `node-` and 8 hex digits, upper case (§3.1)."""
        number = next(self._drawn)
        return f"node-{'ABCDEF'[number] * 8}" if number < 6 else f"node-{number:08X}"


def digest_of(token: str) -> str:
    return f"digest of {token}"


_ABNORMAL = 1006
"""The code of a socket that breaks without a close frame."""


class Harness:
    def __init__(self) -> None:
        self.now = 0.0
        self.transcript = Transcript()
        self.actors: dict[str, Actor] = {}
        self._connections: dict[int, Actor] = {}
        self._numbers, self._refs = count(1), count(1)
        self._mail: deque[Callable[[], None]] = deque()
        self._frozen: dict[str, list[Callable[[], None]]] = {}
        """By the name of a actor that does nothing: what waits for it."""
        self._unplugged: set[str] = set()
        self.registry = self._registry(RegistrySetup())

    def set_up(self, setup: RegistrySetup) -> None:
        """Open with another registry; only before anybody has come on stage."""
        assert not self.actors, "say what the registry is like before the first node comes"
        self.registry = self._registry(setup)

    def agent(self, name: str) -> Agent:
        actor = self.actors[name]
        assert isinstance(actor, Agent), f"{name} is no agent of ours"
        return actor

    def node_id(self, name: str) -> str:
        """The id that a node goes by."""
        actor = self.actors[name]
        assert isinstance(actor, Agent | OlderNode), f"{name} is no node"
        assert actor.node_id is not None, f"{name} has no id yet"
        return actor.node_id

    def enter(self, actor: Actor) -> None:
        self.actors[actor.name] = actor

    def run(self, seconds: float) -> None:
        """Let time pass. Nodes come before the registry where both are due at once."""
        end = round(self.now + seconds, 6)
        while (due := self._next_deadline()) <= end:
            self.now = max(self.now, due)
            for actor in list(self.actors.values()):
                if actor.name not in self._frozen and actor.deadline <= self.now:
                    self.act(actor, actor.wake(self.now))
            if self.registry.deadline <= self.now:
                self.registry.wake()
                self._deliver()
        self.now = end

    def act(self, actor: Actor, outward: list[Outward]) -> None:
        """Do what a actor does to its connection, and all that follows at once."""
        for one in outward:
            self._act_once(actor, one)
        self._deliver()

    def ask(self, event_of: Callable[[int], Event]) -> Result:
        """Ask the registry something; `event_of` makes the event for a `ref`."""
        ref = next(self._refs)
        self.registry.handle(event_of(ref))
        self._deliver()
        return self.registry.answers.pop(ref)

    def ask_and_wait(self, event_of: Callable[[int], Event]) -> None:
        """Ask the registry something; the answer is written when it comes."""
        ref = next(self._refs)
        self.registry.waiting.add(ref)
        self.registry.handle(event_of(ref))
        self._deliver()

    def freeze(self, name: str) -> None:
        """Stop a machine dead: it says nothing and hears nothing, and its socket stays open."""
        self._frozen[name] = []

    def thaw(self, name: str) -> None:
        """Let it go on: first it hears what has waited."""
        self._mail.extend(self._frozen.pop(name))
        self._deliver()

    def cut(self, name: str) -> None:
        """Break a node's connection."""
        self._part(self._number_of(self.actors[name]), _ABNORMAL, "the network broke")
        self._deliver()

    def unplug(self, name: str) -> None:
        """Break its connection, and let it open no other."""
        self._unplugged.add(name)
        self.cut(name)

    def plug_in(self, name: str) -> None:
        self._unplugged.discard(name)

    def stop_registry(self) -> None:
        self.registry.stop()
        for number in list(self._connections):
            self._part(number, _ABNORMAL, "the registry is gone")
        self._deliver()

    def take_over(self) -> None:
        self.registry.take_over()
        self._deliver()

    def start_registry(self) -> None:
        self.registry.start()
        self._deliver()

    def _registry(self, setup: RegistrySetup) -> ScenarioRegistry:
        return ScenarioRegistry(
            setup,
            self.transcript,
            now=lambda: self.now,
            send=self._send_to_node,
            close=lambda number, code, reason: self._mail.append(lambda: self._part(number, code, reason)),
        )

    def _next_deadline(self) -> float:
        awake = [actor.deadline for name, actor in self.actors.items() if name not in self._frozen]
        return min(*awake, self.registry.deadline) if awake else self.registry.deadline

    def _act_once(self, actor: Actor, outward: Outward) -> None:
        match outward:
            case Logged(text):
                self._write("{}", actor, text)
            case Dial():
                self._mail.append(lambda: self._dial(actor, outward))
            case Frame(text):
                number = self._number_of(actor)
                self._write_frame(actor, text)
                self._mail.append(lambda: self.registry.frame_arrived(number, text))
            case HangUp():
                number = self._number_of(actor)
                self._write("{} → registry", actor, "closes")
                del self._connections[number]
                self._mail.append(lambda: self.registry.lost(number))
            case _ as unreachable:
                assert_never(unreachable)

    def _dial(self, actor: Actor, dial: Dial) -> None:
        if actor.name in self._unplugged or not self.registry.running:
            why = "no route to the registry" if self.registry.running else "connection refused"
            self.act(actor, actor.refused(why, self.now))
            return
        self._write("{} → registry", actor, f"connects{self._presented(actor, dial)}")
        status = self.registry.turns_away(dial.token)
        if status is not None:
            self._write("registry → {}", actor, f"turns it away ({status})")
            self.act(actor, actor.refused(f"HTTP {status}", self.now, http_status=status))
            return
        number = next(self._numbers)
        self._connections[number] = actor
        self.registry.opened(number, actor.name, dial.token)
        self.act(actor, actor.opened(self.now))

    def _presented(self, actor: Actor, dial: Dial) -> str:
        if dial.token is None or self.registry.auth_off:
            return ""
        own = isinstance(actor, Agent) and dial.token == actor.token
        return " with its node token" if own else f" with token {dial.token}"

    def _send_to_node(self, number: int, frame: str) -> None:
        actor = self._connections.get(number)
        if actor is not None:
            self._reach(actor, lambda: self._hear(number, actor, frame))

    def _hear(self, number: int, actor: Actor, frame: str) -> None:
        if self._connections.get(number) is actor:  # it may have hung up meanwhile
            self.act(actor, actor.hear(frame, self.now))

    def _part(self, number: int, code: int, reason: str) -> None:
        """End a connection: both sides learn of it, a frozen one when it wakes."""
        actor = self._connections.get(number)
        if actor is None:
            return
        if self.registry.running:
            self._mail.append(lambda: self.registry.lost(number))

        def closed() -> None:
            if self._connections.pop(number, None) is not None:
                self.act(actor, actor.closed(code, reason, self.now))

        self._reach(actor, closed)

    def _reach(self, actor: Actor, delivery: Callable[[], None]) -> None:
        waiting = self._frozen.get(actor.name)
        (self._mail if waiting is None else waiting).append(delivery)

    def _deliver(self) -> None:
        while self._mail:
            self._mail.popleft()()

    def _number_of(self, actor: Actor) -> int:
        numbers = [number for number, holder in self._connections.items() if holder is actor]
        assert numbers, f"{actor.name} is not connected"
        return numbers[-1]

    def _write(self, who: str, actor: Actor, text: str) -> None:
        self.transcript.add(Line(self.now, who, actor.name, text))

    def _write_frame(self, actor: Actor, frame: str) -> None:
        try:
            message = decode_from_node(frame)
        except FrameError:
            self._write("{} → registry", actor, frame)
            return
        heartbeat = isinstance(message, NodeHeartbeat)
        self.transcript.add(
            Line(self.now, "{} → registry", actor.name, said_by_node(message), heartbeat=heartbeat)
        )
