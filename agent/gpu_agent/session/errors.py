"""Errors that the registry sends: what each leads to (§3.3), how many in a row are tolerated, and their words."""

from dataclasses import dataclass
from enum import StrEnum

from gpu_agent.session.types import LogEvent
from gpu_agent.wire.codes import ErrorCode, Reaction, known
from gpu_agent.wire.messages import NodeError, NodeStatusMessage

# How a conversation with a registry ends, and what follows: an ending for each reaction to a refusal.
#
# A table and two types. Whether it has ended is the conversation's to say, and what is done then the
# machine's.


class Outcome(StrEnum):
    """What follows when a conversation is over."""

    RETRY = "retry"
    RETRY_AT_CEILING = "retry_at_ceiling"
    AWAIT_GPU = "await_gpu"
    YIELD = "yield"
    DRAINED = "drained"
    LEAVE = "leave"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class SessionEnd:
    """How a conversation ended, and why."""

    then: Outcome
    why: str
    retry_after_seconds: float | None = None


OUTCOME_OF_REACTION: dict[Reaction, Outcome] = {
    Reaction.AWAIT_GPU: Outcome.AWAIT_GPU,
    Reaction.DOWNGRADE_SCHEMA: Outcome.FAIL,
    Reaction.FORGET_ID: Outcome.RETRY,
    Reaction.RETRY_AT_CEILING: Outcome.RETRY_AT_CEILING,
    Reaction.REGISTER_AGAIN: Outcome.RETRY,
    Reaction.YIELD: Outcome.YIELD,
    Reaction.STOP: Outcome.FAIL,
    Reaction.BACK_OFF: Outcome.RETRY,
}
"""What a refusal comes to when nothing can be tried on the same socket (§3.3)."""

FINAL_REACTIONS = frozenset({Reaction.AWAIT_GPU, Reaction.YIELD, Reaction.STOP})
"""Reactions to which a code leads even where single beats are forgiven."""


# Errors that come while registered, counted by the beats that they follow.
#
# One about a single beat is forgiven: the next may be right. Several beats in a row that were
# complained about are no accident. Decides nothing about what is done then.


TOLERATED_HEARTBEATS = 2
"""So many beats in a row may be complained about; the next one that is has gone too far."""


class ErrorCounter:
    """How many beats in a row the registry complained about; several errors about one count once."""

    def __init__(self) -> None:
        self._beats = 0
        self._about_the_last = False

    def registered(self) -> None:
        """Begin anew."""
        self._beats, self._about_the_last = 0, False

    def heartbeat_sent(self) -> None:
        """Take note of a beat; if nothing was said about the one before, what came earlier is forgiven."""
        if not self._about_the_last:
            self._beats = 0
        self._about_the_last = False

    def persist(self) -> bool:
        """Take note of an error; returns True when it is not forgiven."""
        if not self._about_the_last:
            self._beats += 1
        self._about_the_last = True
        return self._beats > TOLERATED_HEARTBEATS


# How a session tells of refusals: sentences for `status`, notes for the log. Both bounded.


_LONGEST = 500
_CREDENTIAL_CODES = frozenset({ErrorCode.UNAUTHORIZED, ErrorCode.FORBIDDEN})


def refusal_sentence(error: NodeError) -> str:
    """Say a refusal as a sentence, with the code it came under."""
    return f"{clipped(error.message) or 'no reason given'} ({clipped(error.code)})"


def refusal_log_event(error: NodeError, *, registering: bool) -> LogEvent:
    """Log a refusal; one of malformed messages with the paths that were wrong."""
    fields: dict[str, object] = {"code": clipped(error.code), "message": clipped(error.message)}
    if known(error.code) is ErrorCode.INVALID_MESSAGE and error.details:
        fields["errors"] = clipped(repr(error.details.get("errors")))
    return LogEvent("node_register_refused" if registering else "registry_error", fields, problem=True)


def status_log_event(before: NodeStatusMessage | None, after: NodeStatusMessage) -> LogEvent:
    """Log a change of status."""
    fields = {
        "node_id": after.node_id,
        "from": None if before is None else clipped(before.status),
        "to": clipped(after.status),
        "reason_code": None if after.reason_code is None else clipped(after.reason_code),
        "reason": clipped(after.reason),
    }
    return LogEvent("node_status_changed", fields)


def blames_credential(error: NodeError) -> bool:
    """Tell whether a refusal is about who the agent is, not about what it said."""
    return known(error.code) in _CREDENTIAL_CODES


def clipped(text: str) -> str:
    """Bound what a peer wrote."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
