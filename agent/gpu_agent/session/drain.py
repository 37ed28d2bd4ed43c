"""A drain that the machine's owner requested (§3.6): its reason, its deadline and its end.

The request outlives a lost connection: a registration ends a drain of the node's own (§4), so the session
sends the request again after each ack. The registry's deadline counts, and an operator who resumes the node
ends the drain. A drain that an operator requested is not handled here.
"""

import math

from gpu_agent.session.types import DrainRequested, SessionSettings
from gpu_agent.wire.codes import NodeStatus
from gpu_agent.wire.messages import NodeStatusMessage, NodeUnregister


class OwnerDrain:
    """The request, from `begin` until `end`."""

    def __init__(self, settings: SessionSettings) -> None:
        self._settings = settings
        self._request: DrainRequested | None = None
        self._has_deadline = False
        """True once the owner or the registry has set a deadline."""
        self._confirmed = False
        """True once the registry has shown that it knows of the drain, since it was last sent."""
        self.until = math.inf

    @property
    def reason(self) -> str | None:
        """The owner's reason; None without a drain."""
        return None if self._request is None else self._request.reason

    @property
    def overdue_at(self) -> float:
        """When the session stops waiting for the registry's status; infinity without a drain."""
        return self.until + self._settings.drain_grace_seconds

    def begin(self, request: DrainRequested, now: float) -> None:
        """Take a request; it replaces an older one."""
        stated = request.deadline_seconds
        self._request, self._has_deadline, self._confirmed = request, stated is not None, False
        self.until = now + (self._settings.drain_deadline_seconds if stated is None else stated)

    def end(self) -> bool:
        """End the drain; False where there was none."""
        ended = self._request is not None
        self._request, self.until = None, math.inf
        return ended

    def registration_sent(self) -> None:
        """Note a registration, which ends the drain at the registry (§4) until it is sent again."""
        self._confirmed = False

    def message(self, node_id: str, now: float) -> NodeUnregister | None:
        """Write the request for the registry; None without a drain."""
        if self._request is None:
            return None
        self._confirmed = False
        left = max(0.0, self.until - now) if self._has_deadline else None
        return NodeUnregister(node_id=node_id, reason=self._request.reason, drain=True, deadline_seconds=left)

    def ended_by(self, status: NodeStatusMessage, now: float) -> bool:
        """Follow the registry's status; True when the drain is complete: the node is offline by it."""
        if self._request is None:
            return False
        if status.status == NodeStatus.OFFLINE:
            return True
        details = status.details
        if details is None:
            return False
        if details.drain_deadline is not None:
            self._confirmed = True
            if status.timestamp is not None:
                self._has_deadline = True
                self.until = now + max(0.0, details.drain_deadline - status.timestamp)
        elif self._confirmed:
            self.end()  # the registry no longer drains: an operator has resumed the node
        return False
