"""Errors that the registry sends: what each leads to (§3.3), how many are tolerated, and their words."""

from enum import StrEnum

from gpu_agent.records import dataclass
from gpu_agent.session.types import LogEvent
from gpu_agent.wire.codes import ErrorCode, Reaction, known
from gpu_agent.wire.messages import NodeError, NodeStatusMessage

TOLERATED_HEARTBEATS = 2
"""So many heartbeats in a row may be answered with an error; the next one that is ends the session."""

_MAX_TEXT = 500
_CREDENTIAL_CODES = frozenset({ErrorCode.UNAUTHORIZED, ErrorCode.FORBIDDEN})


class Outcome(StrEnum):
    """What follows the end of a connection."""

    RETRY = "retry"
    RETRY_ELSEWHERE = "retry_elsewhere"
    """Only what is behind this address may be at fault: another of the registry's is tried first."""
    RETRY_AT_CEILING = "retry_at_ceiling"
    AWAIT_GPU = "await_gpu"
    YIELD = "yield"
    DRAINED = "drained"
    LEAVE = "leave"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class SessionEnd:
    """How a connection, or an attempt at one, ended, and why."""

    outcome: Outcome
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
"""What a refusal leads to when nothing else can be tried on the same socket (§3.3)."""

FINAL_REACTIONS = frozenset({Reaction.AWAIT_GPU, Reaction.YIELD, Reaction.STOP})
"""Reactions that end a session even where errors about single heartbeats are tolerated."""


class ErrorCounter:
    """How many heartbeats in a row the registry answered with errors; several about one count once."""

    def __init__(self) -> None:
        self._heartbeats = 0
        self._last_failed = False

    def registered(self) -> None:
        """Count from 0."""
        self._heartbeats, self._last_failed = 0, False

    def heartbeat_sent(self) -> None:
        """Note a heartbeat; if the one before caused no error, earlier errors no longer count."""
        if not self._last_failed:
            self._heartbeats = 0
        self._last_failed = False

    def exceeded_by_error(self) -> bool:
        """Count an error; True when there are too many."""
        if not self._last_failed:
            self._heartbeats += 1
        self._last_failed = True
        return self._heartbeats > TOLERATED_HEARTBEATS


def refusal_sentence(error: NodeError) -> str:
    """Write a refusal as a sentence, with its code."""
    return f"{clipped(error.message) or 'no reason given'} ({clipped(error.code)})"


def refusal_log_event(error: NodeError, *, registering: bool) -> LogEvent:
    """Log a refusal; one of a malformed message with the paths that were wrong."""
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
    """Whether an error is about the agent's credential, not about a message."""
    return known(error.code) in _CREDENTIAL_CODES


def clipped(text: str) -> str:
    """Limit the length of a peer's text."""
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}…"
