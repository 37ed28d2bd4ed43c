"""The life of one node as the node sees it: connect, register, send heartbeats, back off, drain, leave.

`TRANSITIONS` has every change of state that can happen, with its cause. The usual path is

    idle → backing_off → connecting → awaiting_ack → registered → backing_off → connecting → …

The machine never awaits, logs, draws or reads a clock, and sets no status of the node: that is the registry's
task. A peer may send anything at any time and never causes an exception; an event that the shell must not
send raises `IllegalEventError` and changes nothing.

While a node is registered, an error may be about a single heartbeat: it is logged, and the next heartbeat
goes out in time. When the registry answers three heartbeats in a row with errors, the session ends as the
code asks (§3.3). `retry_after_seconds` never delays a heartbeat; it counts once the connection is closed.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
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
    Credential,
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
    Probe,
    RefreshRequested,
    ResumeRequested,
    RunChecks,
    Send,
    SessionError,
    SessionSettings,
    SessionSnapshot,
    Started,
    State,
    StopRequested,
    StoreIdentity,
)
from gpu_agent.wire.codes import NodeStatus, Reaction, reaction_to
from gpu_agent.wire.declaration import Declaration
from gpu_agent.wire.messages import (
    NodeControl,
    NodeError,
    NodeRegisterAck,
    NodeStatusMessage,
    NodeUnregister,
)

MAX_PENDING_FAULTS = 16
"""Faults stored for a registry that is away; of more, the newest."""

_NORMAL = 1000
"""The WebSocket close code of a peer that leaves as planned."""
_NO_GPU = "no usable GPU to declare"
_OWNER_CHANGED = "the owner changed what only a registration carries"
_RESUMED = "its owner resumed it"
_MAX_TRANSITIONS = 32

TRANSITIONS: Mapping[State, Mapping[State, str]] = {
    State.IDLE: {
        State.BACKING_OFF: "started: a random part of a second before the first attempt",
        State.STOPPED: "a stop",
    },
    State.BACKING_OFF: {
        State.CONNECTING: "the delay is over, or the owner resumed the node",
        State.WAITING_GPU: "the delay is over and there is no GPU",
        State.DRAINED: "the delay is over and the owner's drain is too",
        State.STOPPED: "a stop",
    },
    State.WAITING_GPU: {
        State.CONNECTING: "a GPU is declared",
        State.WAITING_GPU: "a probe found no GPU",
        State.DRAINED: "a GPU is declared, and the owner's drain is over",
        State.STOPPED: "a stop",
    },
    State.CONNECTING: {
        State.AWAITING_ACK: "connected: `node_register` goes out",
        State.CONNECTING: "the node token was refused: once more with the join token",
        State.BACKING_OFF: "the attempt failed",
        State.WAITING_GPU: "the GPUs are gone",
        State.DRAINED: "the owner's drain is over before a registry was reached",
        State.STOPPED: "a stop",
    },
    State.AWAITING_ACK: {
        State.REGISTERED: "`node_register_ack`",
        State.AWAITING_ACK: "refused, and tried again: older schema, or no id",
        State.BACKING_OFF: "refused, unanswered or disconnected",
        State.WAITING_GPU: "`GPU_REQUIRED`",
        State.CONNECTING: "`GPU_REQUIRED`, and other GPUs are declared by now",
        State.YIELDED: "`SESSION_SUPERSEDED`",
        State.DRAINED: "`offline` during the owner's drain",
        State.STOPPED: "a stop, or a refusal that is final",
    },
    State.REGISTERED: {
        State.AWAITING_ACK: "`UNKNOWN_NODE`, `reregister`, a newer schema, or a change by the owner",
        State.LEAVING: "a stop that drains first",
        State.BACKING_OFF: "disconnected, too many errors, or a loop of registrations",
        State.WAITING_GPU: "`GPU_REQUIRED`",
        State.CONNECTING: "`GPU_REQUIRED`, and other GPUs are declared by now",
        State.YIELDED: "`SESSION_SUPERSEDED`",
        State.DRAINED: "the owner's drain is complete",
        State.STOPPED: "a stop, or an error that is final",
    },
    State.LEAVING: {State.STOPPED: "offline, overdue, refused, disconnected, or a second stop"},
    State.YIELDED: {
        State.CONNECTING: _RESUMED,
        State.WAITING_GPU: "resumed without a GPU",
        State.STOPPED: "a stop",
    },
    State.DRAINED: {
        State.CONNECTING: _RESUMED,
        State.WAITING_GPU: "resumed without a GPU",
        State.STOPPED: "a stop",
    },
    State.STOPPED: {},
}
"""From, to, and why. A test plays random events until every entry has happened, and none besides."""

_OPEN = frozenset({State.AWAITING_ACK, State.REGISTERED, State.LEAVING})
"""States with an open socket."""
_SENDS_HEARTBEATS = frozenset({State.REGISTERED, State.LEAVING})
_RESUMABLE = frozenset({State.BACKING_OFF, State.YIELDED, State.DRAINED})
"""States without a socket in which a resume by the owner connects."""
_EVENT_STATES: Mapping[type[Event], frozenset[State]] = {
    Started: frozenset({State.IDLE}),
    Connected: frozenset({State.CONNECTING}),
    ConnectFailed: frozenset({State.CONNECTING}),
    MessageReceived: _OPEN,
    Disconnected: _OPEN,
}
"""The states in which an event may happen; any other event may happen in all of them."""


class SessionMachine:
    """One session for the life of a process. `draw` returns a random number in [0, 1)."""

    def __init__(
        self,
        settings: SessionSettings,
        *,
        addresses: Sequence[str],
        node_id: str | None,
        has_token: bool,
        draw: Callable[[], float],
    ) -> None:
        """`addresses` are those of one registry: it has the same identity and credentials at each."""
        self._settings = settings
        self._state = State.IDLE
        self._transitions: deque[str] = deque(maxlen=_MAX_TRANSITIONS)
        self._until = math.inf
        """When the state ends by itself: the next attempt, the ack's deadline, or the end of leaving."""
        self._attempts = ConnectionAttempts(settings, addresses=addresses, has_token=has_token, draw=draw)
        self._registration = Registration(node_id=node_id)
        self._heartbeats = Heartbeats(settings)
        self._drain = OwnerDrain(settings)
        self._errors = ErrorCounter()
        self._registry_status: NodeStatusMessage | None = None
        self._refresh_until = math.inf
        """When a `refresh` gets its full heartbeat even without a new probe."""
        self._registered_again_at = -math.inf
        self._reported_jobs: tuple[str, ...] | None = None
        """The jobs in flight at the last heartbeat."""
        self._pending_faults: list[FaultFound] = []

    @property
    def state(self) -> State:
        """The state of the session."""
        return self._state

    @property
    def deadline(self) -> float | None:
        """When to call `wake`, in monotonic seconds; None when only an event can change anything."""
        due = self._until
        if self._state in _SENDS_HEARTBEATS:
            due = min(due, self._refresh_until, self._drain.overdue_at, self._heartbeats.due_at)
        return due if due < math.inf else None

    @property
    def snapshot(self) -> SessionSnapshot:
        """The session at this moment."""
        declaration, drain = self._registration.declaration, self._drain
        heartbeats = self._heartbeats
        return SessionSnapshot(
            state=self._state,
            address=self._attempts.address,
            node_id=self._registration.node_id,
            registry_status=self._registry_status,
            next_attempt_at=self._until if self._state is State.BACKING_OFF else None,
            last_refusal=self._attempts.last_refusal,
            sequence=heartbeats.sequence,
            interval_seconds=heartbeats.interval_seconds if self._state in _SENDS_HEARTBEATS else None,
            models_left_out=declaration.left_out if declaration else (),
            drain_reason=drain.reason,
            drain_until=drain.until if drain.reason is not None else None,
        )

    def transition_log(self) -> str:
        """Write the last transitions, one a line, the oldest first."""
        return "\n".join(self._transitions) or "none yet"

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take an event; returns the actions, in order. Raises `IllegalEventError`."""
        if self._state not in _EVENT_STATES.get(type(event), frozenset(State)):
            raise IllegalEventError(event, self.transition_log())
        if self._state is State.STOPPED:
            return []
        match event:
            case Started():
                self._move(State.BACKING_OFF, now, "started", until=now + self._attempts.startup_delay())
                return self.wake(now)
            case Connected() | ConnectFailed() | Disconnected():
                return self._on_socket(event, now)
            case MessageReceived():
                return self._on_message(event, now)
            case Declared() | OwnerChanged() | FaultFound():
                return self._on_machine_change(event, now)
            case StopRequested():
                return self._on_stop(event, now)
            case DrainRequested() | ResumeRequested() | RefreshRequested():
                return self._on_owner_request(event, now)
            case _ as unreachable:
                assert_never(unreachable)

    def wake(self, now: float) -> list[Action]:
        """Act on a deadline; harmless when early."""
        if self.deadline is None or now < self.deadline:
            return []
        match self._state:
            case State.BACKING_OFF:
                return self._connect(now, "the delay is over")
            case State.AWAITING_ACK:
                self._registration.unanswered()
                patience = self._settings.ack_timeout_seconds
                why = f"no answer to node_register within {patience:g} s"
                return self._end(Outcome.RETRY_ELSEWHERE, now, why)
            case _:
                return self._send_what_is_due(now)

    # Connecting

    def _on_socket(self, event: Connected | ConnectFailed | Disconnected, now: float) -> list[Action]:
        match event:
            case Connected():
                return self._connected(now)
            case ConnectFailed():
                return self._connect_failed(event, now)
            case Disconnected(code, detail):
                why = f"connection closed ({code}): {clipped(detail) or 'no reason given'}"
                outcome = Outcome.LEAVE if self._state is State.LEAVING else Outcome.RETRY_ELSEWHERE
                return self._after(SessionEnd(outcome, why), now)
            case _ as unreachable:
                assert_never(unreachable)

    def _connected(self, now: float) -> list[Action]:
        if not self._registration.possible:
            return [Disconnect(_NORMAL, "the GPUs are gone"), *self._connect(now, "connected")]
        self._attempts.connected()
        self._registration.connection_opened()
        return self._register(now, "connected")

    def _connect_failed(self, event: ConnectFailed, now: float) -> list[Action]:
        if self._attempts.fall_back_to_join_token(event):
            refused = LogEvent("node_credential_refused", {"next": "the join token"}, problem=True)
            return [refused, *self._connect(now, "the node token was refused")]
        why, lasting = self._attempts.explain(event, self._registration.node_id)
        outcome = Outcome.RETRY_AT_CEILING if lasting else Outcome.RETRY_ELSEWHERE
        return self._after(SessionEnd(outcome, why, event.retry_after_seconds), now)

    def _connect(self, now: float, cause: str) -> list[Action]:
        if now >= self._drain.until:
            return self._rest(now, "the drain's deadline passed while no registry was reached")
        if not self._registration.possible:
            probed = self._registration.declaration is not None
            return self._wait_for_gpu(now, _NO_GPU if probed else "not probed yet")
        self._move(State.CONNECTING, now, cause)
        return [Connect(self._attempts.credential, address=self._attempts.address)]

    # What the probe and the owner's configuration say

    def _on_machine_change(self, event: Declared | OwnerChanged | FaultFound, now: float) -> list[Action]:
        match event:
            case Declared():
                return self._declared(event, now)
            case OwnerChanged():
                self._registration.owner_changed()
                return []
            case FaultFound():
                self._pending_faults = [*self._pending_faults, event][-MAX_PENDING_FAULTS:]
                return self._send_faults() if self._state in _SENDS_HEARTBEATS else []
            case _ as unreachable:
                assert_never(unreachable)

    def _declared(self, event: Declared, now: float) -> list[Action]:
        before = self._registration.declaration
        self._registration.declaration = event.declaration
        self._registration.running_jobs = event.running_jobs
        left_out = event.declaration.left_out
        log: list[Action] = []
        if left_out and (before is None or before.left_out != left_out):
            log.append(LogEvent("models_left_out", {"models": left_out}, problem=True))
        if self._state in _SENDS_HEARTBEATS:
            return [*log, *self._send_changes(event.declaration, now)]
        if self._state is State.WAITING_GPU:
            return [*log, *self._connect_if_gpu(now)]
        return log

    def _send_changes(self, declaration: Declaration, now: float) -> list[Action]:
        """Send what has changed when it may be sent; complete a `refresh` that waits for the probe."""
        if self._state is State.REGISTERED and self._registration.outdated:
            return self._register(now, _OWNER_CHANGED)
        if self._refresh_until < math.inf:
            self._refresh_until = now
        self._heartbeats.send_early_if_changed(declaration, now)
        status = self._registry_status
        draining = status is not None and status.status == NodeStatus.DRAINING
        if draining and self._registration.running_jobs != self._reported_jobs:
            self._heartbeats.send_early(now)  # the drain ends with the last job
        return self._send_what_is_due(now)

    def _connect_if_gpu(self, now: float) -> list[Action]:
        """Connect if there is a GPU now; log once that there is none."""
        declaration = self._registration.declaration
        if self._registration.possible:
            return self._connect(now, "a GPU is declared")
        if declaration is None or declaration.has_gpu or self._attempts.last_refusal == _NO_GPU:
            return []
        return self._wait_for_gpu(now, _NO_GPU)

    # Registering

    def _register(self, now: float, cause: str) -> list[Action]:
        self._refresh_until = math.inf
        self._drain.registration_sent()
        self._move(State.AWAITING_ACK, now, cause, until=now + self._settings.ack_timeout_seconds)
        return [Send(self._registration.compose())]

    def _register_again(self, now: float, cause: str) -> list[Action]:
        """Register on the same socket at once; twice in a short time is a loop, and backs off."""
        since, self._registered_again_at = now - self._registered_again_at, now
        if since < self._settings.register_again_guard_seconds:
            return self._end(
                Outcome.RETRY, now, f"a second registration within {since:.1f} s is a loop: {cause}"
            )
        return self._register(now, cause)

    def _on_message(self, event: MessageReceived, now: float) -> list[Action]:
        match event.message:
            case NodeRegisterAck() as ack if self._state is State.AWAITING_ACK:
                return self._acknowledged(ack, now)
            case NodeError() as error:
                return self._on_error(error, now)
            case NodeStatusMessage() as status if status.node_id == self._registration.node_id:
                return self._on_status(status, now)
            case NodeControl() as control if self._state is State.REGISTERED:
                return self._on_control(control, now)
            case NodeRegisterAck() | NodeStatusMessage() | NodeControl() as message:
                return [LogEvent("message_ignored", {"type": message.type, "state": self._state.value})]
            case _ as unreachable:
                assert_never(unreachable)

    def _acknowledged(self, ack: NodeRegisterAck, now: float) -> list[Action]:
        node_id, schema = ack.node_id, self._registration.schema_version
        names_schema = ack.capability_schema_version is not None
        sent = self._registration.accepted(node_id, names_schema=names_schema)
        self._attempts.registered(now, new_token=ack.node_token is not None)
        self._registry_status = NodeStatusMessage(
            node_id=node_id, status=NodeStatus.REGISTERING, reason="registered"
        )
        self._heartbeats.begin(ack, sent, now)
        self._errors.registered()
        self._move(State.REGISTERED, now, f"acknowledged as {node_id}")
        facts = {"node_id": node_id, "schema": schema, "epoch": ack.session_epoch, **self._attempts.where}
        actions: list[Action] = [StoreIdentity(node_id, ack.node_token), LogEvent("node_registered", facts)]
        if names_schema and self._registration.raise_schema():
            return [*actions, *self._register(now, "the registry knows schemas")]
        if self._registration.outdated:
            return [*actions, *self._register(now, _OWNER_CHANGED)]
        actions += self._send_what_is_due(now)
        if self._state is not State.REGISTERED:
            return actions  # the owner's drain was over
        return [*actions, *self._send_faults(), *self._send_drain(now)]

    # Registered

    def _send_what_is_due(self, now: float) -> list[Action]:
        if now >= min(self._until, self._drain.overdue_at):
            outcome = Outcome.LEAVE if self._state is State.LEAVING else Outcome.DRAINED
            return self._end(outcome, now, "the drain's deadline passed")
        full = now >= self._refresh_until
        return self._send_heartbeat(now, full=full) if full or now >= self._heartbeats.due_at else []

    def _send_heartbeat(self, now: float, *, full: bool = False) -> list[Action]:
        node_id, declaration = self._registration.node_id, self._registration.declaration
        if node_id is None or declaration is None:
            return []
        if full:
            self._refresh_until = math.inf
        self._errors.heartbeat_sent()
        self._reported_jobs = self._registration.running_jobs
        return [self._heartbeats.compose(node_id, declaration, now, full=full)]

    def _send_faults(self) -> list[Action]:
        """Report the faults found so far; an older scheduler would read them as something else (§9)."""
        if not self._registration.knows_schemas:
            return []
        faults, self._pending_faults = self._pending_faults, []
        node_id = self._registration.node_id
        return [Send(NodeError(node_id=node_id, code=fault.code, message=fault.message)) for fault in faults]

    def _send_drain(self, now: float) -> list[Action]:
        node_id = self._registration.node_id
        message = None if node_id is None else self._drain.message(node_id, now)
        return [] if message is None else [Send(message)]

    def _on_status(self, status: NodeStatusMessage, now: float) -> list[Action]:
        before, self._registry_status = self._registry_status, status
        self._heartbeats.follow(status)
        changed = before is None or before.status != status.status
        log: list[Action] = [status_log_event(before, status)] if changed else []
        if self._state is State.LEAVING and status.status == NodeStatus.OFFLINE:
            return [*log, *self._end(Outcome.LEAVE, now, "drained")]
        if self._drain.ended_by(status, now):
            return [*log, *self._end(Outcome.DRAINED, now, "the drain that its owner asked for is complete")]
        return log

    def _on_control(self, control: NodeControl, now: float) -> list[Action]:
        facts = {"command": clipped(control.command), "reason": clipped(control.reason or "")}
        match control.command:
            case "reregister":
                accepted = LogEvent("control_accepted", facts)
                return [accepted, *self._register_again(now, "the registry asked for it")]
            case "refresh" if self._refresh_until == math.inf:
                return [LogEvent("control_accepted", facts), *self._refresh(now)]
            case "refresh":
                return []  # one is under way
            case "check":
                return [LogEvent("control_accepted", facts), RunChecks()]
            case _:
                return [LogEvent("control_unknown", facts, problem=True)]

    def _refresh(self, now: float) -> list[Action]:
        self._refresh_until = min(self._refresh_until, now + self._settings.refresh_patience_seconds)
        return [Probe()]

    # Errors of the registry

    def _on_error(self, error: NodeError, now: float) -> list[Action]:
        log = refusal_log_event(error, registering=self._state is State.AWAITING_ACK)
        if self._state is State.LEAVING:
            return [log, *self._end(Outcome.LEAVE, now, refusal_sentence(error))]
        if self._state is State.REGISTERED:
            return [log, *self._error_while_registered(error, now)]
        return [log, *self._registration_refused(error, now)]

    def _registration_refused(self, error: NodeError, now: float) -> list[Action]:
        """React to a refused `node_register`: on the same socket where §3.3 says so, else end."""
        reaction, old_id = reaction_to(error.code), self._registration.node_id
        if reaction is Reaction.REGISTER_AGAIN:
            return []  # the late answer to a heartbeat that went out before this registration
        if reaction is Reaction.DOWNGRADE_SCHEMA and self._registration.downgrade(error.details):
            return self._register(now, f"retrying with schema {self._registration.schema_version}")
        if reaction is Reaction.FORGET_ID and self._token_was_ended(error):
            return self._end_by_error(Outcome.RETRY_AT_CEILING, error, now)
        if reaction is Reaction.FORGET_ID and self._registration.drop_id():
            return [ArchiveIdentity(old_id), *self._register(now, f"another node holds {old_id}")]
        return self._end_by_error(OUTCOME_OF_REACTION[reaction], error, now)

    def _token_was_ended(self, error: NodeError) -> bool:
        """Whether an operator ended the token of this very node: its id is not another's, and it waits."""
        fell_back = self._attempts.credential is Credential.JOIN
        return fell_back and (error.details or {}).get("token_ended") is True

    def _error_while_registered(self, error: NodeError, now: float) -> list[Action]:
        """React to an error while registered; a few about single heartbeats change nothing."""
        reaction = reaction_to(error.code)
        if reaction is Reaction.REGISTER_AGAIN:
            return self._register_again(now, refusal_sentence(error))
        if reaction in FINAL_REACTIONS or blames_credential(error):
            return self._end_by_error(OUTCOME_OF_REACTION[reaction], error, now)
        if self._errors.exceeded_by_error():
            # A wrong id or schema shows at the next registration.
            at_ceiling = reaction is Reaction.RETRY_AT_CEILING
            return self._end_by_error(Outcome.RETRY_AT_CEILING if at_ceiling else Outcome.RETRY, error, now)
        return []

    # What the owner and the operating system ask for

    def _on_owner_request(
        self, request: DrainRequested | ResumeRequested | RefreshRequested, now: float
    ) -> list[Action]:
        match request:
            case DrainRequested():
                return self._drain_requested(request, now)
            case ResumeRequested():
                return self._resume_requested(now)
            case RefreshRequested():
                return self._refresh(now) if self._state is State.REGISTERED else [Probe()]
            case _ as unreachable:
                assert_never(unreachable)

    def _drain_requested(self, request: DrainRequested, now: float) -> list[Action]:
        """Start a drain, or remember it until a registry has acknowledged this node (§3.6)."""
        if self._state is State.LEAVING:
            return []  # which drains in any case
        self._drain.begin(request, now)
        if self._state is not State.REGISTERED:
            return []
        # The heartbeat first, so that the registry knows of all jobs that it has to wait for.
        return [*self._send_heartbeat(now), *self._send_drain(now)]

    def _resume_requested(self, now: float) -> list[Action]:
        ended = self._drain.end()
        if self._state is State.REGISTERED and ended:
            return self._register(now, _RESUMED)
        return self._connect(now, _RESUMED) if self._state in _RESUMABLE else []

    def _on_stop(self, event: StopRequested, now: float) -> list[Action]:
        """Unregister and leave (§3.6); with `drain` stay until the registry says `offline`."""
        if self._state not in _OPEN:
            return self._leave(now, event.reason)
        node_id = self._registration.node_id
        self._drain.end()  # the stop replaces it
        drain = event.drain and self._state is State.REGISTERED
        deadline = event.deadline_seconds if drain else None
        unregister: list[Action] = []
        if node_id is not None:
            message = NodeUnregister(
                node_id=node_id, reason=event.reason, drain=drain, deadline_seconds=deadline
            )
            unregister.append(Send(message))
        if not drain:
            return [*unregister, *self._end(Outcome.LEAVE, now, event.reason)]
        patience = self._settings.drain_deadline_seconds if deadline is None else deadline
        until = now + patience + self._settings.drain_grace_seconds
        self._move(State.LEAVING, now, f"asked to drain: {event.reason}", until=until)
        return [*self._send_heartbeat(now), *unregister]

    # The end of a connection, and what follows

    def _end_by_error(self, outcome: Outcome, error: NodeError, now: float) -> list[Action]:
        return self._end(outcome, now, refusal_sentence(error), retry_after=error.retry_after_seconds)

    def _end(
        self, outcome: Outcome, now: float, why: str, *, retry_after: float | None = None
    ) -> list[Action]:
        """Close the socket, and do what follows."""
        if outcome is Outcome.AWAIT_GPU:
            self._registration.gpus_refused()
        return [
            Disconnect(_NORMAL, outcome.value),
            *self._after(SessionEnd(outcome, why, retry_after), now),
        ]

    def _after(self, end: SessionEnd, now: float) -> list[Action]:
        match end.outcome:
            case Outcome.RETRY | Outcome.RETRY_ELSEWHERE | Outcome.RETRY_AT_CEILING:
                return self._back_off(end, now)
            case Outcome.AWAIT_GPU if self._registration.possible:
                return self._connect(now, "other GPUs are declared than those refused")
            case Outcome.AWAIT_GPU:
                return self._wait_for_gpu(now, end.why)
            case Outcome.YIELD:
                self._move(State.YIELDED, now, end.why)
                self._attempts.last_refusal = end.why
                return [LogEvent("session_yielded", {"why": end.why}, problem=True)]
            case Outcome.DRAINED:
                return self._rest(now, end.why)
            case Outcome.LEAVE | Outcome.FAIL:
                return self._leave(now, end.why, failed=end.outcome is Outcome.FAIL)
            case _ as unreachable:
                assert_never(unreachable)

    def _back_off(self, end: SessionEnd, now: float) -> list[Action]:
        where = self._attempts.where
        delay = self._attempts.next_delay(end, now)
        self._attempts.last_refusal = end.why
        self._move(State.BACKING_OFF, now, end.why, until=now + delay)
        fields = {"delay_seconds": delay, "why": end.why, **where}
        return [LogEvent("session_backing_off", fields, problem=True)]

    def _wait_for_gpu(self, now: float, why: str) -> list[Action]:
        self._move(State.WAITING_GPU, now, why)
        self._attempts.last_refusal = why
        return [LogEvent("waiting_for_gpu", {"why": why})]

    def _rest(self, now: float, why: str) -> list[Action]:
        """Stay away, drained, until the owner resumes the node."""
        self._move(State.DRAINED, now, why)
        self._attempts.last_refusal = why
        return [LogEvent("node_drained", {"why": why})]

    def _leave(self, now: float, reason: str, *, failed: bool = False) -> list[Action]:
        connecting = self._state is State.CONNECTING
        given_up: list[Action] = [Disconnect(_NORMAL, "leaving")] if connecting else []
        self._move(State.STOPPED, now, reason)
        return [*given_up, Exit(reason, failed=failed)]

    def _move(self, state: State, now: float, cause: str, *, until: float = math.inf) -> None:
        if state not in TRANSITIONS[self._state]:
            raise IllegalTransitionError(self._state, state, self.transition_log())
        self._transitions.append(f"{now:.3f} {self._state} → {state}: {cause}")
        self._state, self._until = state, until


class IllegalTransitionError(SessionError):
    """The machine would change its state against its table: our fault."""

    def __init__(self, before: State, after: State, transitions: str) -> None:
        super().__init__(f"no transition {before} → {after}. The last transitions:\n{transitions}")
