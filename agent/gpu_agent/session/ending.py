"""How a conversation with a registry ends, and what follows: an ending for each reaction to a refusal.

A table and two types. Whether it has ended is the conversation's to say, and what is done then the
machine's.
"""

from dataclasses import dataclass
from enum import StrEnum

from gpu_agent.wire.codes import Reaction


class Then(StrEnum):
    """What follows when a conversation is over."""

    RETRY = "retry"
    RETRY_AT_CEILING = "retry_at_ceiling"
    AWAIT_GPU = "await_gpu"
    YIELD = "yield"
    DRAINED = "drained"
    LEAVE = "leave"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Ending:
    """How a conversation ended, and why."""

    then: Then
    why: str
    retry_after_seconds: float | None = None


ENDS: dict[Reaction, Then] = {
    Reaction.AWAIT_GPU: Then.AWAIT_GPU,
    Reaction.DOWNGRADE_SCHEMA: Then.FAIL,
    Reaction.FORGET_ID: Then.RETRY,
    Reaction.RETRY_AT_CEILING: Then.RETRY_AT_CEILING,
    Reaction.REGISTER_AGAIN: Then.RETRY,
    Reaction.YIELD: Then.YIELD,
    Reaction.STOP: Then.FAIL,
    Reaction.BACK_OFF: Then.RETRY,
}
"""What a refusal comes to when nothing can be tried on the same socket (§3.3)."""

FINAL_AT_ANY_TIME = frozenset({Reaction.AWAIT_GPU, Reaction.YIELD, Reaction.STOP})
"""Reactions to which a code leads even where single beats are forgiven."""
