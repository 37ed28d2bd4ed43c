"""A drain that the machine's owner requested (§3.6): its reason, its deadline and its end.

The request outlives a lost connection: a registration lifts a drain of the node's own (§4), so the session sends
the request again behind each ack. The registry's deadline counts, and an operator who resumes the node ends the
drain. A drain that an operator requested is not handled here.
"""

import math

from gpu_agent.session.types import DrainRequested, SessionSettings
from gpu_agent.wire.codes import NodeStatus
from gpu_agent.wire.messages import NodeStatusMessage, NodeUnregister


class OwnerDrain:
    """The wish, from being asked for until it is lifted. Instants are monotonic seconds."""

    def __init__(self, settings: SessionSettings) -> None:
        self._settings = settings
        self._wish: DrainRequested | None = None
        self._bounded = False
        """True once the owner or the registry has said how long it may take."""
        self._confirmed = False
        """True once the registry has shown that it knows of it, since it was last asked."""
        self.until = math.inf

    @property
    def reason(self) -> str | None:
        """Why it was asked for; None where it was not."""
        return None if self._wish is None else self._wish.reason

    @property
    def overdue_at(self) -> float:
        """When the registry's verdict is waited for no longer; infinity without a wish."""
        return self.until + self._settings.drain_grace_seconds

    def begin(self, wish: DrainRequested, now: float) -> None:
        """Take the wish; a newer one replaces the older."""
        stated = wish.deadline_seconds
        self._wish, self._bounded, self._confirmed = wish, stated is not None, False
        self.until = now + (self._settings.drain_deadline_seconds if stated is None else stated)

    def lift(self) -> bool:
        """End the wish; False where there was none."""
        lifted = self._wish is not None
        self._wish, self.until = None, math.inf
        return lifted

    def forgotten(self) -> None:
        """The node registers, which lifts the drain at the registry (§4) until it is asked for anew."""
        self._confirmed = False

    def request(self, node_id: str, now: float) -> NodeUnregister | None:
        """Say it to the registry; None without a wish."""
        if self._wish is None:
            return None
        self._confirmed = False
        left = max(0.0, self.until - now) if self._bounded else None
        return NodeUnregister(node_id=node_id, reason=self._wish.reason, drain=True, deadline_seconds=left)

    def heed(self, status: NodeStatusMessage, now: float) -> bool:
        """Follow what the registry says; True when the drain is over: the node is offline by it."""
        if self._wish is None:
            return False
        if status.status == NodeStatus.OFFLINE:
            return True
        details = status.details
        if details is None:
            return False
        if details.drain_deadline is not None:
            self._confirmed = True
            if status.timestamp is not None:
                self._bounded = True
                self.until = now + max(0.0, details.drain_deadline - status.timestamp)
        elif self._confirmed:
            self.lift()  # the registry knew of it, and does no more: an operator has resumed the node
        return False
