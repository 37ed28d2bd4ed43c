"""The life of one node as the node sees it: connect, register, send heartbeats, back off, drain, leave.

It never awaits, logs, draws or reads a clock, and sets no status: that is the registry's task. A peer may send
anything at any time and never causes an exception; an event that the shell must not send raises
`IllegalEventError` and changes nothing.

While a node is registered, an error may be about a single heartbeat: it is logged, and the next heartbeat goes
out in time. When the registry answers three heartbeats in a row with errors, the session ends as the code asks
(§3.3). `retry_after_seconds` never delays a heartbeat; it counts once the connection is closed.
"""

import math
from collections.abc import Callable
from typing import assert_never

from gpu_agent.session.backoff import ConnectionAttempts
from gpu_agent.session.drain import OwnerDrain
from gpu_agent.session.errors import (
    FINAL_REACTIONS,
    OUTCOME_OF_REACTION,
    ErrorCounter,
    Outcome,
    SessionEnd,
    blames_credential,
    clipped,
    refusal_log_event,
    refusal_sentence,
    status_log_event,
)
from gpu_agent.session.heartbeat import Heartbeats
from gpu_agent.session.registration import Registration
from gpu_agent.session.types import (
    Action,
    ArchiveIdentity,
    Connect,
    Connected,
    ConnectFailed,
    Declared,
    Disconnect,
    Disconnected,
    DrainRequested,
    Event,
    Exit,
    FaultFound,
    IllegalEventError,
    LogEvent,
    MessageReceived,
    OwnerChanged,
    OwnerRequest,
    Probe,
    RefreshRequested,
    ResumeRequested,
    Send,
    SessionSettings,
    SessionSnapshot,
    Started,
    State,
    StopRequested,
    StoreIdentity,
    TransitionLog,
)
from gpu_agent.wire.codes import NodeStatus, Reaction, reaction_to
from gpu_agent.wire.messages import (
    FromRegistry,
    NodeControl,
    NodeError,
    NodeRegisterAck,
    NodeStatusMessage,
    NodeUnregister,
)

# The life of one node as the node sees it: connect, converse, back off, re-attach, leave.
#
# It never awaits, logs, draws or reads a clock, and sets no status: that is the registry's.
# A peer may say anything at any time and is never the cause of an exception; an event that
# the shell must not send raises `IllegalEventError` and changes nothing.


_NORMAL = 1000
"""The WebSocket close code of a peer that leaves as planned."""

_NO_GPU = "no usable GPU to declare"

_OPEN = frozenset({State.AWAITING_ACK, State.REGISTERED, State.LEAVING})
"""States with an open socket: a conversation."""
_RESUMABLE = frozenset({State.BACKING_OFF, State.YIELDED, State.DRAINED})
"""States without a socket in which an owner's word is enough to try one."""
_BEATING = frozenset({State.REGISTERED, State.LEAVING})
_LEGAL: dict[type[Event], frozenset[State]] = {
    Started: frozenset({State.IDLE}),
    Connected: frozenset({State.CONNECTING}),
    ConnectFailed: frozenset({State.CONNECTING}),
    MessageReceived: _OPEN,
    Disconnected: _OPEN,
}
"""Where an event may happen; those not named may happen anywhere."""


class SessionMachine:
    """One session for the life of a process. Instants are monotonic seconds; `draw` gives [0, 1)."""

    def __init__(
        self, settings: SessionSettings, *, node_id: str | None, has_token: bool, draw: Callable[[], float]
    ) -> None:
        self._story = TransitionLog()
        self._registration = Registration(node_id=node_id)
        self._attempts = ConnectionAttempts(settings, has_token=has_token, draw=draw)
        self._drain = OwnerDrain(settings)
        self._conversation = OpenConnection(
            settings, registration=self._registration, drain=self._drain, story=self._story
        )
        self._talking = False
        self._apart = State.IDLE
        """The state while no socket is open."""
        self._try_at = math.inf

    @property
    def state(self) -> State:
        """Where the session stands."""
        return self._conversation.state if self._talking else self._apart

    @property
    def deadline(self) -> float | None:
        """When to call `wake`, in monotonic seconds; None when only an event can change anything."""
        due = self._conversation.due_at if self._talking else self._try_at
        return due if due < math.inf else None

    @property
    def view(self) -> SessionSnapshot:
        """The session as it stands."""
        declaration, beats = self._registration.declaration, self._conversation.beats
        return SessionSnapshot(
            state=self.state,
            node_id=self._registration.node_id,
            verdict=self._conversation.verdict,
            next_attempt_at=self._try_at if self.state is State.BACKING_OFF else None,
            last_refusal=self._attempts.last_refusal,
            sequence=beats.sequence,
            interval_seconds=beats.interval_seconds if self.state in _BEATING else None,
            models_left_out=declaration.left_out if declaration else (),
            drain_reason=self._drain.reason,
            drain_until=self._drain.until if self._drain.reason is not None else None,
        )

    def story(self) -> str:
        """Tell the last transitions, one a line."""
        return str(self._story)

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take what happened; returns what to do, in order. Raises `IllegalEventError`."""
        if self.state not in _LEGAL.get(type(event), frozenset(State)):
            raise IllegalEventError(event, self.story())
        if self._apart is State.STOPPED:
            return []
        match event:
            case Connected() | ConnectFailed() | Disconnected():
                return self._socket_changed(event, now)
            case MessageReceived():
                return self._heard(event, now)
            case Started():
                return self._started(now)
            case Declared() | OwnerChanged() | FaultFound():
                return self._probed(event, now)
            case StopRequested() | DrainRequested() | ResumeRequested() | RefreshRequested():
                return self._asked(event, now)
            case _ as unreachable:
                assert_never(unreachable)

    def wake(self, now: float) -> list[Action]:
        """Do what has become due; harmless when early."""
        if self.deadline is None or now < self.deadline:
            return []
        if self._talking:
            return self._unless_over(self._conversation.act_if_due(now), now)
        return self._connect(now, "time to try")

    def _started(self, now: float) -> list[Action]:
        self._part(State.BACKING_OFF, now, "started", until=now + self._attempts.startup_delay())
        return self.wake(now)

    def _probed(self, event: Declared | OwnerChanged | FaultFound, now: float) -> list[Action]:
        if isinstance(event, Declared):
            return self._declared(event, now)
        if isinstance(event, OwnerChanged):
            self._registration.owner_changed()
            return []
        return self._conversation.report(event, talking=self._talking)

    def _declared(self, event: Declared, now: float) -> list[Action]:
        before = self._registration.declaration
        self._registration.declaration = event.declaration
        self._registration.running_jobs = event.running_jobs
        left_out = event.declaration.left_out
        notes: list[Action] = []
        if left_out and (before is None or before.left_out != left_out):
            notes.append(LogEvent("models_left_out", {"models": left_out}, problem=True))
        if self._talking:
            return self._unless_over([*notes, *self._conversation.declared(now)], now)
        if self._apart is State.WAITING_GPU:
            return [*notes, *self._look_for_gpu(now)]
        return notes

    def _look_for_gpu(self, now: float) -> list[Action]:
        """Connect if there is one now; tell once that there is none, after no probe or a refusal."""
        declaration = self._registration.declaration
        if self._registration.possible:
            return self._connect(now, "a GPU is declared")
        if declaration is None or declaration.has_gpu or self._attempts.last_refusal == _NO_GPU:
            return []
        return self._await_gpu(now, _NO_GPU)

    def _asked(self, event: StopRequested | OwnerRequest, now: float) -> list[Action]:
        if isinstance(event, StopRequested):
            return self._stop_requested(event, now)
        return self._ordered(event, now)

    def _stop_requested(self, event: StopRequested, now: float) -> list[Action]:
        if self._talking:
            return self._unless_over(self._conversation.unregister(event, now), now)
        return self._leave(now, event.reason)

    def _ordered(self, order: OwnerRequest, now: float) -> list[Action]:
        """Take the owner's word: a drain is remembered until there is a registry to tell it to (§3.6)."""
        lifted = isinstance(order, ResumeRequested) and self._drain.lift()
        if isinstance(order, DrainRequested) and self.state is not State.LEAVING:  # which empties it anyhow
            self._drain.begin(order, now)
        if self._talking and (lifted or not isinstance(order, ResumeRequested)):
            return self._unless_over(self._conversation.order(order, now), now)
        if isinstance(order, RefreshRequested):
            return [Probe()]
        if isinstance(order, ResumeRequested) and self._apart in _RESUMABLE and not self._talking:
            return self._connect(now, "its owner resumed it")
        return []

    def _socket_changed(self, event: Connected | ConnectFailed | Disconnected, now: float) -> list[Action]:
        match event:
            case Connected():
                return self._connected(now)
            case ConnectFailed():
                return self._connect_failed(event, now)
            case Disconnected(code, detail):
                why = f"connection closed ({code}): {clipped(detail) or 'no reason given'}"
                leaving = self._conversation.state is State.LEAVING
                return self._after(SessionEnd(Outcome.LEAVE if leaving else Outcome.RETRY, why), now)
            case _ as unreachable:
                assert_never(unreachable)

    def _connected(self, now: float) -> list[Action]:
        if not self._registration.possible:
            return [Disconnect(_NORMAL, "the GPUs are gone"), *self._connect(now, "connected")]
        self._talking = True
        self._attempts.connected()
        return self._conversation.open(now)

    def _connect_failed(self, event: ConnectFailed, now: float) -> list[Action]:
        if self._attempts.fall_back_to_join_token(event):
            note = LogEvent("node_credential_refused", {"next": "the join token"}, problem=True)
            return [note, *self._connect(now, "the node token was refused")]
        why, lasting = self._attempts.explain(event)
        then = Outcome.RETRY_AT_CEILING if lasting else Outcome.RETRY
        return self._after(SessionEnd(then, why, event.retry_after_seconds), now)

    def _heard(self, event: MessageReceived, now: float) -> list[Action]:
        registering = self._conversation.state is State.AWAITING_ACK
        actions = self._conversation.hear(event.message, now)
        if registering and isinstance(event.message, NodeRegisterAck):
            self._attempts.registered(now, new_token=event.message.node_token is not None)
        return self._unless_over(actions, now)

    def _unless_over(self, actions: list[Action], now: float) -> list[Action]:
        """Go on talking, or close the socket and do what follows."""
        ending = self._conversation.ending
        if ending is None:
            return actions
        return [*actions, Disconnect(_NORMAL, ending.then.value), *self._after(ending, now)]

    def _after(self, ending: SessionEnd, now: float) -> list[Action]:
        match ending.then:
            case Outcome.RETRY | Outcome.RETRY_AT_CEILING:
                return self._back_off(ending, now)
            case Outcome.AWAIT_GPU if self._registration.possible:
                return self._connect(now, "other GPUs are declared than those refused")
            case Outcome.AWAIT_GPU:
                return self._await_gpu(now, ending.why)
            case Outcome.YIELD:
                self._part(State.YIELDED, now, ending.why)
                self._attempts.last_refusal = ending.why
                return [LogEvent("session_yielded", {"why": ending.why}, problem=True)]
            case Outcome.DRAINED:
                return self._rest(now, ending.why)
            case Outcome.LEAVE | Outcome.FAIL:
                return self._leave(now, ending.why, failed=ending.then is Outcome.FAIL)
            case _ as unreachable:
                assert_never(unreachable)

    def _back_off(self, ending: SessionEnd, now: float) -> list[Action]:
        delay = self._attempts.next_delay(
            now,
            at_ceiling=ending.then is Outcome.RETRY_AT_CEILING,
            retry_after=ending.retry_after_seconds,
        )
        self._attempts.last_refusal = ending.why
        self._part(State.BACKING_OFF, now, ending.why, until=now + delay)
        return [LogEvent("session_backing_off", {"delay_seconds": delay, "why": ending.why}, problem=True)]

    def _rest(self, now: float, why: str) -> list[Action]:
        self._part(State.DRAINED, now, why)
        self._attempts.last_refusal = why
        return [LogEvent("node_drained", {"why": why})]

    def _connect(self, now: float, cause: str) -> list[Action]:
        if now >= self._drain.until:
            return self._rest(now, "the drain's deadline passed while no registry was reached")
        if not self._registration.possible:
            probed = self._registration.declaration is not None
            return self._await_gpu(now, _NO_GPU if probed else "not probed yet")
        self._part(State.CONNECTING, now, cause)
        return [Connect(self._attempts.credential)]

    def _await_gpu(self, now: float, why: str) -> list[Action]:
        self._part(State.WAITING_GPU, now, why)
        self._attempts.last_refusal = why
        return [LogEvent("waiting_for_gpu", {"why": why})]

    def _leave(self, now: float, reason: str, *, failed: bool = False) -> list[Action]:
        connecting = self.state is State.CONNECTING
        given_up: list[Action] = [Disconnect(_NORMAL, "leaving")] if connecting else []
        self._part(State.STOPPED, now, reason)
        return [*given_up, Exit(reason, failed=failed)]

    def _part(self, state: State, now: float, cause: str, *, until: float = math.inf) -> None:
        """Move to a state without a conversation."""
        self._story.record(now, (self.state, state), cause)
        self._talking = False
        self._apart, self._try_at = state, until


# What is said on an open WebSocket: register, beat, heed the registry, say goodbye.
#
# Opens and closes nothing: when it is over it says so by an `Ending`, and the machine acts on it.
#
# An error that comes while registered may be about a single beat: it is noted, and the next beat goes
# out in its turn. When three beats in a row are answered so, the conversation ends as its code asks
# (§3.3): around the ceiling for `INVALID_MESSAGE`, else by backing off. `retry_after_seconds` never
# holds back a beat, which is the sign of life; it counts once the conversation has ended.


MAX_PENDING_FAULTS = 16
"""Faults kept for a registry that is away; of more, the newest."""

_OWNERS_WORD = "the owner changed what only a registration tells"


class OpenConnection:
    """One at a time, on whichever socket is open; lives as long as the machine."""

    def __init__(
        self,
        settings: SessionSettings,
        *,
        registration: Registration,
        drain: OwnerDrain,
        story: TransitionLog,
    ) -> None:
        self._settings = settings
        self._registration = registration
        self._drain = drain
        self._story = story
        self._wait_until = math.inf
        """When the ack, or the end of a drain, is overdue."""
        self._refresh_until = math.inf
        """When a `refresh` gets its full beat even without a new probe."""
        self._registered_again_at = -math.inf
        self._complaints = ErrorCounter()
        self._jobs_told: tuple[str, ...] | None = None
        """Those in flight when it last beat."""
        self._untold: list[FaultFound] = []
        self.beats = Heartbeats(settings)
        self.state = State.AWAITING_ACK
        self.ending: SessionEnd | None = None
        self.verdict: NodeStatusMessage | None = None

    @property
    def due_at(self) -> float:
        """When something is to be said, or given up waiting for."""
        if self.state is State.AWAITING_ACK:
            return self._wait_until
        return min(self._wait_until, self._refresh_until, self._drain.overdue_at, self.beats.due_at)

    def open(self, now: float) -> list[Action]:
        """Begin: `node_register` is the first thing said."""
        self.ending, self.state = None, State.CONNECTING
        self._registration.connection_opened()
        return self._register(now, "connected")

    def declared(self, now: float) -> list[Action]:
        """Tell what is new, when it is; answer a `refresh` that waits for it."""
        if self.state is State.AWAITING_ACK or self._registration.declaration is None:
            return []
        if self.state is State.REGISTERED and self._registration.outdated:
            return self._register(now, _OWNERS_WORD)
        if self._refresh_until < math.inf:
            self._refresh_until = now
        self.beats.send_early_if_changed(self._registration.declaration, now)
        draining = self.verdict is not None and self.verdict.status == NodeStatus.DRAINING
        if draining and self._registration.running_jobs != self._jobs_told:
            self.beats.hurry(now)  # with its last job the drain ends
        return self.act_if_due(now)

    def report(self, fault: FaultFound, *, talking: bool) -> list[Action]:
        """Tell the registry of a fault, or keep it until there is one that knows of faults (§3.3)."""
        self._untold = [*self._untold, fault][-MAX_PENDING_FAULTS:]
        return self._tell_faults() if talking else []

    def hear(self, message: FromRegistry, now: float) -> list[Action]:
        """Take what the registry said; anything may come at any time."""
        match message:
            case NodeRegisterAck() if self.state is State.AWAITING_ACK:
                return self._acknowledged(message, now)
            case NodeError():
                return self._refused(message, now)
            case NodeStatusMessage() if message.node_id == self._registration.node_id:
                return self._status_given(message, now)
            case NodeControl() if self.state is State.REGISTERED:
                return self._commanded(message, now)
            case NodeRegisterAck() | NodeStatusMessage() | NodeControl():
                return [LogEvent("message_ignored", {"type": message.type, "state": self.state.value})]
            case _ as unreachable:
                assert_never(unreachable)

    def act_if_due(self, now: float) -> list[Action]:
        """Beat, or give up waiting, when it is time."""
        if self.state is State.AWAITING_ACK:
            if now >= self._wait_until:
                patience = self._settings.ack_timeout_seconds
                self._registration.unanswered()
                self._end(Outcome.RETRY, f"no answer to node_register within {patience:g} s")
            return []
        if now >= min(self._wait_until, self._drain.overdue_at):
            then = Outcome.LEAVE if self.state is State.LEAVING else Outcome.DRAINED
            self._end(then, "the drain's deadline passed")
            return []
        full = now >= self._refresh_until
        return self._beat(now, full=full) if full or now >= self.beats.due_at else []

    def unregister(self, event: StopRequested, now: float) -> list[Action]:
        """Announce the shutdown (§3.6); ends at once unless a drain is asked and not yet under way."""
        node_id = self._registration.node_id
        self._drain.lift()  # to leave goes before it
        drain = event.drain and self.state is State.REGISTERED
        deadline = event.deadline_seconds if drain else None
        if drain:
            patience = self._settings.drain_deadline_seconds if deadline is None else deadline
            until = now + patience + self._settings.drain_grace_seconds
            self._move(State.LEAVING, now, f"asked to drain: {event.reason}", until=until)
        else:
            self._end(Outcome.LEAVE, event.reason)
        if node_id is None:
            return []
        goodbye = NodeUnregister(node_id=node_id, reason=event.reason, drain=drain, deadline_seconds=deadline)
        return [*(self._beat(now) if drain else []), Send(goodbye)]

    def order(self, order: OwnerRequest, now: float) -> list[Action]:
        """Do what the owner asks, as far as it is the conversation's; a drain is told once registered."""
        match order:
            case RefreshRequested():
                return self._refresh(now) if self.state is State.REGISTERED else [Probe()]
            case DrainRequested() if self.state is State.REGISTERED:
                return [*self._beat(now), *self._ask_for_drain(now)]
            case DrainRequested():
                return []  # asked for once the registration is acknowledged
            case ResumeRequested() if self.state is State.REGISTERED:
                return self._register(now, "its owner resumed it")
            case ResumeRequested():
                return []  # the registration that is under way lifts the drain
            case _ as unreachable:
                assert_never(unreachable)

    def _acknowledged(self, ack: NodeRegisterAck, now: float) -> list[Action]:
        node_id, schema = ack.node_id, self._registration.schema_version
        names_schema = ack.capability_schema_version is not None
        told = self._registration.accepted(node_id, names_schema=names_schema)
        self.verdict = NodeStatusMessage(node_id=node_id, status=NodeStatus.REGISTERING, reason="registered")
        self.beats.begin(ack, told, now)
        self._complaints.registered()
        self._move(State.REGISTERED, now, f"acknowledged as {node_id}")
        raises = names_schema and self._registration.raise_schema()
        return [
            StoreIdentity(node_id=node_id, node_token=ack.node_token),
            LogEvent("node_registered", {"node_id": node_id, "schema": schema, "epoch": ack.session_epoch}),
            *self._go_on(now, raises=raises),
            *self._tell_faults(),
            *self._ask_for_drain(now),
        ]

    def _go_on(self, now: float, *, raises: bool) -> list[Action]:
        """Register once more where there is more to tell than was heard, else beat."""
        if raises:
            return self._register(now, "the registry knows schemas")
        return self._register(now, _OWNERS_WORD) if self._registration.outdated else self.act_if_due(now)

    def _beat(self, now: float, *, full: bool = False) -> list[Action]:
        """Beat now: before a drain, so that the registry knows of all jobs that it has to wait for."""
        node_id, declaration = self._registration.node_id, self._registration.declaration
        if node_id is None or declaration is None:
            return []
        if full:
            self._refresh_until = math.inf
        self._complaints.heartbeat_sent()
        self._jobs_told = self._registration.running_jobs
        return [self.beats.compose(node_id, declaration, now, full=full)]

    def _tell_faults(self) -> list[Action]:
        """Say what waits; an older scheduler would take it for something else (§9)."""
        if self.state is State.AWAITING_ACK or not self._registration.knows_schemas:
            return []
        told, self._untold = self._untold, []
        node_id = self._registration.node_id
        return [Send(NodeError(node_id=node_id, code=fault.code, message=fault.message)) for fault in told]

    def _ask_for_drain(self, now: float) -> list[Action]:
        node_id = self._registration.node_id
        if self.state is not State.REGISTERED or node_id is None:
            return []
        request = self._drain.request(node_id, now)
        return [] if request is None else [Send(request)]

    def _refused(self, error: NodeError, now: float) -> list[Action]:
        note = refusal_log_event(error, registering=self.state is State.AWAITING_ACK)
        if self.state is State.LEAVING:
            self._end(Outcome.LEAVE, refusal_sentence(error))
            return [note]
        if self.state is State.REGISTERED:
            return [note, *self._react_to_complaint(error, now)]
        return [note, *self._react_to_refusal(error, now)]

    def _react_to_refusal(self, error: NodeError, now: float) -> list[Action]:
        """Answer a refused `node_register`: on the same socket where §3.3 says so, else end."""
        reaction, old_id = reaction_to(error.code), self._registration.node_id
        if reaction is Reaction.REGISTER_AGAIN:
            return []  # the late answer to a beat that went out before this registration
        if reaction is Reaction.DOWNGRADE_SCHEMA and self._registration.downgrade(error.details):
            return self._register(now, f"retrying with schema {self._registration.schema_version}")
        if reaction is Reaction.FORGET_ID and self._registration.forget_id():
            return [ArchiveIdentity(old_id), *self._register(now, f"{old_id} is held by another")]
        self._end(
            OUTCOME_OF_REACTION[reaction], refusal_sentence(error), retry_after=error.retry_after_seconds
        )
        return []

    def _react_to_complaint(self, error: NodeError, now: float) -> list[Action]:
        """Answer an error that comes while registered; a few about single beats change nothing."""
        reaction = reaction_to(error.code)
        if reaction is Reaction.REGISTER_AGAIN:
            return self._register_again(now, refusal_sentence(error))
        if reaction in FINAL_REACTIONS or blames_credential(error):
            self._end(
                OUTCOME_OF_REACTION[reaction], refusal_sentence(error), retry_after=error.retry_after_seconds
            )
        elif self._complaints.persist():
            # What is wrong with the id or the schema, if it is, shows when it registers anew.
            at_ceiling = reaction is Reaction.RETRY_AT_CEILING
            then = Outcome.RETRY_AT_CEILING if at_ceiling else Outcome.RETRY
            self._end(then, refusal_sentence(error), retry_after=error.retry_after_seconds)
        return []

    def _status_given(self, message: NodeStatusMessage, now: float) -> list[Action]:
        before, self.verdict = self.verdict, message
        self.beats.follow(message)
        if self.state is State.LEAVING and message.status == NodeStatus.OFFLINE:
            self._end(Outcome.LEAVE, "drained")
        elif self._drain.heed(message, now):
            self._end(Outcome.DRAINED, "drained, as its owner asked")
        changed = before is None or before.status != message.status
        return [status_log_event(before, message)] if changed else []

    def _commanded(self, control: NodeControl, now: float) -> list[Action]:
        facts = {"command": clipped(control.command), "reason": clipped(control.reason or "")}
        match control.command:
            case "reregister":
                return [
                    LogEvent("control_obeyed", facts),
                    *self._register_again(now, "the registry asked for it"),
                ]
            case "refresh" if self._refresh_until == math.inf:
                return [LogEvent("control_obeyed", facts), *self._refresh(now)]
            case "refresh":
                return []  # one is under way
            case _:
                return [LogEvent("control_unknown", facts, problem=True)]

    def _refresh(self, now: float) -> list[Action]:
        self._refresh_until = min(self._refresh_until, now + self._settings.refresh_patience_seconds)
        return [Probe()]

    def _register(self, now: float, cause: str) -> list[Action]:
        self._refresh_until = math.inf
        self._drain.forgotten()
        self._move(State.AWAITING_ACK, now, cause, until=now + self._settings.ack_timeout_seconds)
        return [Send(self._registration.compose())]

    def _register_again(self, now: float, cause: str) -> list[Action]:
        """Register on the same socket at once; twice in a short time is a loop, and backs off."""
        since, self._registered_again_at = now - self._registered_again_at, now
        if since < self._settings.register_again_guard_seconds:
            self._end(Outcome.RETRY, f"to register again twice in {since:.1f} s is a loop: {cause}")
            return []
        return self._register(now, cause)

    def _end(self, then: Outcome, why: str, *, retry_after: float | None = None) -> None:
        if then is Outcome.AWAIT_GPU:
            self._registration.gpus_refused()
        self.ending = SessionEnd(then, why, retry_after)

    def _move(self, state: State, now: float, cause: str, *, until: float = math.inf) -> None:
        self._story.record(now, (self.state, state), cause)
        self.state, self._wait_until = state, until
