"""A session as its owner may look at it: one frozen picture, for `status`."""

from dataclasses import dataclass

from gpu_agent.session.story import State
from gpu_agent.wire.messages import NodeStatusMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionView:
    """Where a session stands. Instants are monotonic seconds."""

    state: State
    node_id: str | None
    verdict: NodeStatusMessage | None
    """The status that the registry gave this node last, with its reason; None before the first ack."""
    next_attempt_at: float | None
    """When the session tries again, while it is backing off."""
    last_refusal: str | None
    """Why the last attempt failed, or no other is made, as a sentence; None once registered."""
    sequence: int
    """Number of the last beat sent."""
    interval_seconds: float | None
    """Between beats, while registered."""
    models_left_out: tuple[str, ...] = ()
    drain_reason: str | None = None
    """Why the owner wants the machine emptied; None where he does not."""
    drain_until: float | None = None
    """When that drain ends, whatever still runs."""
