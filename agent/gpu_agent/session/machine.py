"""The life of one node as the node sees it: connect, converse, back off, re-attach, leave.

It never awaits, logs, draws or reads a clock, and sets no status: that is the registry's.
A peer may say anything at any time and is never the cause of an exception; an event that
the shell must not send raises `IllegalEventError` and changes nothing.
"""

import math
from collections.abc import Callable
from typing import assert_never

from gpu_agent.session.actions import Action, Connect, Disconnect, Exit, Note, Probe
from gpu_agent.session.attempts import Attempts
from gpu_agent.session.conversation import Conversation
from gpu_agent.session.draining import OwnDrain
from gpu_agent.session.ending import Ending, Then
from gpu_agent.session.events import (
    Connected,
    ConnectFailed,
    Declared,
    Disconnected,
    DrainAsked,
    Event,
    FaultFound,
    MessageReceived,
    Order,
    OwnerChanged,
    RefreshAsked,
    ResumeAsked,
    Started,
    StopRequested,
)
from gpu_agent.session.registration import Registration
from gpu_agent.session.settings import SessionSettings
from gpu_agent.session.story import IllegalEventError, State, Story
from gpu_agent.session.view import SessionView
from gpu_agent.session.words import clipped
from gpu_agent.wire.messages import NodeRegisterAck

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
        self._story = Story()
        self._registration = Registration(node_id=node_id)
        self._attempts = Attempts(settings, has_token=has_token, draw=draw)
        self._drain = OwnDrain(settings)
        self._conversation = Conversation(
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
    def view(self) -> SessionView:
        """The session as it stands."""
        declaration, beats = self._registration.declaration, self._conversation.beats
        return SessionView(
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
            case StopRequested() | DrainAsked() | ResumeAsked() | RefreshAsked():
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
            notes.append(Note("models_left_out", {"models": left_out}, problem=True))
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

    def _asked(self, event: StopRequested | Order, now: float) -> list[Action]:
        if isinstance(event, StopRequested):
            return self._stop_requested(event, now)
        return self._ordered(event, now)

    def _stop_requested(self, event: StopRequested, now: float) -> list[Action]:
        if self._talking:
            return self._unless_over(self._conversation.say_goodbye(event, now), now)
        return self._leave(now, event.reason)

    def _ordered(self, order: Order, now: float) -> list[Action]:
        """Take the owner's word: a drain is remembered until there is a registry to tell it to (§3.6)."""
        lifted = isinstance(order, ResumeAsked) and self._drain.lift()
        if isinstance(order, DrainAsked) and self.state is not State.LEAVING:  # which empties it anyhow
            self._drain.begin(order, now)
        if self._talking and (lifted or not isinstance(order, ResumeAsked)):
            return self._unless_over(self._conversation.order(order, now), now)
        if isinstance(order, RefreshAsked):
            return [Probe()]
        if isinstance(order, ResumeAsked) and self._apart in _RESUMABLE and not self._talking:
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
                return self._after(Ending(Then.LEAVE if leaving else Then.RETRY, why), now)
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
            note = Note("node_credential_refused", {"next": "the join token"}, problem=True)
            return [note, *self._connect(now, "the node token was refused")]
        why, lasting = self._attempts.explain(event)
        then = Then.RETRY_AT_CEILING if lasting else Then.RETRY
        return self._after(Ending(then, why, event.retry_after_seconds), now)

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

    def _after(self, ending: Ending, now: float) -> list[Action]:
        match ending.then:
            case Then.RETRY | Then.RETRY_AT_CEILING:
                return self._back_off(ending, now)
            case Then.AWAIT_GPU if self._registration.possible:
                return self._connect(now, "other GPUs are declared than those refused")
            case Then.AWAIT_GPU:
                return self._await_gpu(now, ending.why)
            case Then.YIELD:
                self._part(State.YIELDED, now, ending.why)
                self._attempts.last_refusal = ending.why
                return [Note("session_yielded", {"why": ending.why}, problem=True)]
            case Then.DRAINED:
                return self._rest(now, ending.why)
            case Then.LEAVE | Then.FAIL:
                return self._leave(now, ending.why, failed=ending.then is Then.FAIL)
            case _ as unreachable:
                assert_never(unreachable)

    def _back_off(self, ending: Ending, now: float) -> list[Action]:
        delay = self._attempts.next_delay(
            now,
            at_ceiling=ending.then is Then.RETRY_AT_CEILING,
            retry_after=ending.retry_after_seconds,
        )
        self._attempts.last_refusal = ending.why
        self._part(State.BACKING_OFF, now, ending.why, until=now + delay)
        return [Note("session_backing_off", {"delay_seconds": delay, "why": ending.why}, problem=True)]

    def _rest(self, now: float, why: str) -> list[Action]:
        self._part(State.DRAINED, now, why)
        self._attempts.last_refusal = why
        return [Note("node_drained", {"why": why})]

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
        return [Note("waiting_for_gpu", {"why": why})]

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
