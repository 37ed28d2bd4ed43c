"""When heartbeats go out, and which changed parts of the declaration each one carries (§3.4).

It never drifts: a heartbeat is due one interval after the last one was due. It never bursts: after a stall,
missed heartbeats are skipped. The shell adds time and figures.
"""

import math

from gpu_agent.records import replace
from gpu_agent.session.types import SendHeartbeat, SessionSettings
from gpu_agent.wire.codes import NodeStatus
from gpu_agent.wire.declaration import Declaration, DeclarationChanges, changes
from gpu_agent.wire.messages import NodeRegisterAck, NodeStatusMessage

_NO_CHANGES = DeclarationChanges()


class Heartbeats:
    """The interval of one registration, and the declaration that the registry has received."""

    def __init__(self, settings: SessionSettings) -> None:
        self._settings = settings
        self._steady = settings.heartbeat_interval_seconds
        self._warmup = settings.warmup_interval_seconds
        self._warming = True
        self._sent: Declaration | None = None
        self._knows_schemas = False
        self._last_at = -math.inf
        self._regular_at = math.inf
        self._early_at = math.inf
        self.sequence = 0

    @property
    def due_at(self) -> float:
        """When the next heartbeat is due; infinity before the first ack."""
        return min(self._regular_at, self._early_at)

    @property
    def interval_seconds(self) -> float:
        """The present interval."""
        return self._warmup if self._warming else self._steady

    def begin(self, ack: NodeRegisterAck, sent: Declaration, now: float) -> None:
        """Take the intervals of an ack; the first heartbeat is due at once."""
        steady, warmup = ack.heartbeat_interval_seconds, ack.warmup_heartbeat_interval_seconds
        settings = self._settings
        if steady is None and warmup is None:
            steady = warmup = settings.fallback_interval_seconds
        self._steady = self._clamped(settings.heartbeat_interval_seconds if steady is None else steady)
        self._warmup = self._clamped(settings.warmup_interval_seconds if warmup is None else warmup)
        self._warming = True
        self._sent = replace(sent, checks=None)  # a registration does not carry them
        self._knows_schemas = ack.capability_schema_version is not None
        self._regular_at, self._early_at = now, math.inf

    def follow(self, status: NodeStatusMessage) -> None:
        """Take the interval that a status asks for: warm-up while `registering`, steady after."""
        before = self.interval_seconds
        if status.heartbeat_interval_seconds is not None:
            self._steady = self._clamped(status.heartbeat_interval_seconds)
        self._warming = status.status == NodeStatus.REGISTERING
        if self.interval_seconds != before and self._last_at > -math.inf:
            self._regular_at = self._last_at + self.interval_seconds

    def send_early_if_changed(self, current: Declaration, now: float) -> None:
        """Send the next heartbeat early when the declaration has changed, but never in a burst."""
        if self._sent is not None and changes(self._sent, current) != _NO_CHANGES:
            self.send_early(now)

    def send_early(self, now: float) -> None:
        """Send the next heartbeat early, but never in a burst."""
        self._early_at = max(now, self._last_at + self._settings.change_heartbeat_seconds)

    def compose(self, node_id: str, current: Declaration, now: float, *, full: bool = False) -> SendHeartbeat:
        """Make the heartbeat that is due, and set when the next is."""
        self._regular_at, self._early_at = self._next_after(now), math.inf
        self._last_at = now
        self.sequence += 1
        changed = _all_parts(current) if full or self._sent is None else changes(self._sent, current)
        self._sent = current
        return SendHeartbeat(
            node_id=node_id, sequence=self.sequence, changed=changed, knows_schemas=self._knows_schemas
        )

    def _next_after(self, now: float) -> float:
        interval = self.interval_seconds
        if now < self._regular_at:
            return now + interval
        missed = math.floor((now - self._regular_at) / interval)
        soonest = now + self._settings.minimum_interval_seconds
        return max(self._regular_at + (missed + 1) * interval, soonest)

    def _clamped(self, seconds: float) -> float:
        settings = self._settings
        return min(max(seconds, settings.minimum_interval_seconds), settings.maximum_interval_seconds)


def _all_parts(declaration: Declaration) -> DeclarationChanges:
    owner = declaration.owner
    return DeclarationChanges(
        installed_models=declaration.installed_models,
        capability_state=dict(declaration.capability_state),
        accept_public_jobs=owner.accept_public_jobs,
        labels=dict(owner.labels),
        max_concurrent_jobs=owner.max_concurrent_jobs,
        hardware=declaration.hardware,
        checks=declaration.checks,
    )
