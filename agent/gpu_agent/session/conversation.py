"""What is said on an open WebSocket: register, beat, heed the registry, say goodbye.

Opens and closes nothing: when it is over it says so by an `Ending`, and the machine acts on it.

An error that comes while registered may be about a single beat: it is noted, and the next beat goes
out in its turn. When three beats in a row are answered so, the conversation ends as its code asks
(§3.3): around the ceiling for `INVALID_MESSAGE`, else by backing off. `retry_after_seconds` never
holds back a beat, which is the sign of life; it counts once the conversation has ended.
"""

import math
from typing import assert_never

from gpu_agent.session.actions import Action, ForgetIdentity, Note, Probe, SaveIdentity, Send
from gpu_agent.session.beats import Beats
from gpu_agent.session.complaints import Complaints
from gpu_agent.session.draining import OwnDrain
from gpu_agent.session.ending import ENDS, FINAL_AT_ANY_TIME, Ending, Then
from gpu_agent.session.events import DrainAsked, FaultFound, Order, RefreshAsked, ResumeAsked, StopRequested
from gpu_agent.session.registration import Registration
from gpu_agent.session.settings import SessionSettings
from gpu_agent.session.story import State, Story
from gpu_agent.session.words import blames_credential, clipped, refusal, refusal_note, status_note
from gpu_agent.wire.codes import NodeStatus, Reaction, reaction_to
from gpu_agent.wire.messages import (
    FromRegistry,
    NodeControl,
    NodeError,
    NodeRegisterAck,
    NodeStatusMessage,
    NodeUnregister,
)

MOST_FAULTS_WAITING = 16
"""Faults kept for a registry that is away; of more, the newest."""

_OWNERS_WORD = "the owner changed what only a registration tells"


class Conversation:
    """One at a time, on whichever socket is open; lives as long as the machine."""

    def __init__(
        self, settings: SessionSettings, *, registration: Registration, drain: OwnDrain, story: Story
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
        self._complaints = Complaints()
        self._jobs_told: tuple[str, ...] | None = None
        """Those in flight when it last beat."""
        self._untold: list[FaultFound] = []
        self.beats = Beats(settings)
        self.state = State.AWAITING_ACK
        self.ending: Ending | None = None
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
        self.beats.hurry_if_changed(self._registration.declaration, now)
        draining = self.verdict is not None and self.verdict.status == NodeStatus.DRAINING
        if draining and self._registration.running_jobs != self._jobs_told:
            self.beats.hurry(now)  # with its last job the drain ends
        return self.act_if_due(now)

    def report(self, fault: FaultFound, *, talking: bool) -> list[Action]:
        """Tell the registry of a fault, or keep it until there is one that knows of faults (§3.3)."""
        self._untold = [*self._untold, fault][-MOST_FAULTS_WAITING:]
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
                return [Note("message_ignored", {"type": message.type, "state": self.state.value})]
            case _ as unreachable:
                assert_never(unreachable)

    def act_if_due(self, now: float) -> list[Action]:
        """Beat, or give up waiting, when it is time."""
        if self.state is State.AWAITING_ACK:
            if now >= self._wait_until:
                patience = self._settings.ack_timeout_seconds
                self._registration.unanswered()
                self._end(Then.RETRY, f"no answer to node_register within {patience:g} s")
            return []
        if now >= min(self._wait_until, self._drain.overdue_at):
            then = Then.LEAVE if self.state is State.LEAVING else Then.DRAINED
            self._end(then, "the drain's deadline passed")
            return []
        full = now >= self._refresh_until
        return self._beat(now, full=full) if full or now >= self.beats.due_at else []

    def say_goodbye(self, event: StopRequested, now: float) -> list[Action]:
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
            self._end(Then.LEAVE, event.reason)
        if node_id is None:
            return []
        goodbye = NodeUnregister(node_id=node_id, reason=event.reason, drain=drain, deadline_seconds=deadline)
        return [*(self._beat(now) if drain else []), Send(goodbye)]

    def order(self, order: Order, now: float) -> list[Action]:
        """Do what the owner asks, as far as it is the conversation's; a drain is told once registered."""
        match order:
            case RefreshAsked():
                return self._refresh(now) if self.state is State.REGISTERED else [Probe()]
            case DrainAsked() if self.state is State.REGISTERED:
                return [*self._beat(now), *self._ask_for_drain(now)]
            case DrainAsked():
                return []  # asked for once the registration is acknowledged
            case ResumeAsked() if self.state is State.REGISTERED:
                return self._register(now, "its owner resumed it")
            case ResumeAsked():
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
            SaveIdentity(node_id=node_id, node_token=ack.node_token),
            Note("node_registered", {"node_id": node_id, "schema": schema, "epoch": ack.session_epoch}),
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
        self._complaints.beat_sent()
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
        note = refusal_note(error, registering=self.state is State.AWAITING_ACK)
        if self.state is State.LEAVING:
            self._end(Then.LEAVE, refusal(error))
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
            return [ForgetIdentity(old_id), *self._register(now, f"{old_id} is held by another")]
        self._end(ENDS[reaction], refusal(error), retry_after=error.retry_after_seconds)
        return []

    def _react_to_complaint(self, error: NodeError, now: float) -> list[Action]:
        """Answer an error that comes while registered; a few about single beats change nothing."""
        reaction = reaction_to(error.code)
        if reaction is Reaction.REGISTER_AGAIN:
            return self._register_again(now, refusal(error))
        if reaction in FINAL_AT_ANY_TIME or blames_credential(error):
            self._end(ENDS[reaction], refusal(error), retry_after=error.retry_after_seconds)
        elif self._complaints.persist():
            # What is wrong with the id or the schema, if it is, shows when it registers anew.
            at_ceiling = reaction is Reaction.RETRY_AT_CEILING
            then = Then.RETRY_AT_CEILING if at_ceiling else Then.RETRY
            self._end(then, refusal(error), retry_after=error.retry_after_seconds)
        return []

    def _status_given(self, message: NodeStatusMessage, now: float) -> list[Action]:
        before, self.verdict = self.verdict, message
        self.beats.follow(message)
        if self.state is State.LEAVING and message.status == NodeStatus.OFFLINE:
            self._end(Then.LEAVE, "drained")
        elif self._drain.heed(message, now):
            self._end(Then.DRAINED, "drained, as its owner asked")
        changed = before is None or before.status != message.status
        return [status_note(before, message)] if changed else []

    def _commanded(self, control: NodeControl, now: float) -> list[Action]:
        facts = {"command": clipped(control.command), "reason": clipped(control.reason or "")}
        match control.command:
            case "reregister":
                return [
                    Note("control_obeyed", facts),
                    *self._register_again(now, "the registry asked for it"),
                ]
            case "refresh" if self._refresh_until == math.inf:
                return [Note("control_obeyed", facts), *self._refresh(now)]
            case "refresh":
                return []  # one is under way
            case _:
                return [Note("control_unknown", facts, problem=True)]

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
            self._end(Then.RETRY, f"to register again twice in {since:.1f} s is a loop: {cause}")
            return []
        return self._register(now, cause)

    def _end(self, then: Then, why: str, *, retry_after: float | None = None) -> None:
        if then is Then.AWAIT_GPU:
            self._registration.gpus_refused()
        self.ending = Ending(then, why, retry_after)

    def _move(self, state: State, now: float, cause: str, *, until: float = math.inf) -> None:
        self._story.record(now, (self.state, state), cause)
        self.state, self._wait_until = state, until
