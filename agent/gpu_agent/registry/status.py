"""A node's status changes: the transition, its log event, the message, and what follows (§3.5, §4).

Three things follow in the same step. A node that may drain, and of which a drain is requested, starts to
drain. A node that becomes ready too often becomes degraded again. A node that drains with no job left goes
offline. Heartbeats, timers and operators' requests decide whether a transition is due.
"""

from gpu_agent.registry import health, lifecycle
from gpu_agent.registry.actions import STATUS_CHANGED, CloseConnection, SendStatus, Step
from gpu_agent.registry.claims import ClaimRequests
from gpu_agent.registry.dispatch.dispatch import Dispatch
from gpu_agent.registry.node import LONGEST_DRAIN_SECONDS, Drain, NodeRecord, NodeTable
from gpu_agent.registry.persistence import UnstoredChanges
from gpu_agent.registry.quoting import clip_sentence
from gpu_agent.registry.settings import Thresholds
from gpu_agent.wire.codes import CloseCode, NodeStatus, ReasonCode


class StatusTransitions:
    """Makes the transitions of `lifecycle`, with all that follows from one."""

    def __init__(
        self,
        thresholds: Thresholds,
        nodes: NodeTable,
        *,
        dispatch: Dispatch,
        claims: ClaimRequests,
        unstored: UnstoredChanges,
    ) -> None:
        self._thresholds = thresholds
        self._nodes = nodes
        self._dispatch = dispatch
        self._claims = claims
        self._unstored = unstored

    def change(
        self, record: NodeRecord, target: NodeStatus, reason_code: ReasonCode, *, reason: str, step: Step
    ) -> None:
        """Give a node a status, and the one that follows from it at once."""
        self._change(record, target, reason_code, reason=reason, step=step)
        if record.desired.drain is not None and _may_drain(record):
            self._start_drain(record, step)
        elif target is NodeStatus.READY:
            self._degrade_if_flapping(record, step)
        self._dispatch.update(record)

    def begin_session(self, record: NodeRecord, step: Step) -> None:
        """Give a node that has registered its first status; a drain that it requested ends with that."""
        desired = record.desired
        if desired.drain is not None and not desired.drain.by_operator:
            desired.drain = None
        if lifecycle.allows(record, NodeStatus.REGISTERING, ReasonCode.REGISTERED):
            reason = "registered; its health is not proven yet"
            self.change(record, NodeStatus.REGISTERING, ReasonCode.REGISTERED, reason=reason, step=step)
        elif record.status is NodeStatus.DRAINING and desired.drain is None:
            reason = "registered again, which ends the drain that it requested"
            self.resume(record, reason=reason, step=step)
        else:
            self.send(record, step)
            self._dispatch.update(record)
        self._claims.attach_lost(record, step)

    def set_drain(
        self, record: NodeRecord, *, by_operator: bool, seconds: float | None, reason: str, now: float
    ) -> float:
        """Write that a drain is requested; `seconds` None takes the default.

        Returns the seconds until its deadline.
        """
        granted = self._thresholds.drain_deadline_seconds if seconds is None else seconds
        granted = min(granted, LONGEST_DRAIN_SECONDS)
        record.desired.drain = Drain(by_operator=by_operator, deadline=now + granted, reason=reason)
        return granted

    def apply_drain(self, record: NodeRecord, step: Step) -> bool:
        """Start the drain that is requested, or go on with it under its new deadline and reason.

        False for a node that can do neither yet: it drains once its status allows.
        """
        if _may_drain(record):
            self._start_drain(record, step)
        elif record.status is NodeStatus.DRAINING and record.desired.drain is not None:
            record.reason = clip_sentence(_drain_reason(record.desired.drain))
            self.finish_drain(record, step)
            if record.status is NodeStatus.DRAINING:
                self.send(record, step)
        else:
            return False
        return True

    def finish_drain(self, record: NodeRecord, step: Step) -> None:
        """Let a draining node go offline once its jobs have ended or its deadline has passed.

        A node that has not reported its jobs yet, as after a restart of the registry, stays: jobs that the
        registry does not know of may run. While the store fails no deadline is decided (§4).
        """
        if record.status is not NodeStatus.DRAINING:
            return
        jobs, drain = record.in_flight_jobs, record.desired.drain
        if jobs == 0 and record.jobs_known:
            code, reason = ReasonCode.DRAIN_COMPLETE, "no job is in flight any more"
        elif drain is not None and step.now >= drain.deadline and not self._unstored.store_fails:
            code = ReasonCode.DRAIN_DEADLINE
            left = f"with {jobs} in flight" if jobs else "before the node reported its jobs"
            reason = f"the drain's deadline passed {left}"
        else:
            return
        self.change(record, NodeStatus.OFFLINE, code, reason=reason, step=step)

    def resume(self, record: NodeRecord, *, reason: str, step: Step) -> None:
        """Let a node prove itself again, without a registration."""
        record.liveness.restart_warmup(step.now + self._thresholds.warmup_timeout_seconds)
        self.change(record, NodeStatus.REGISTERING, ReasonCode.RESUMED, reason=reason, step=step)

    def send(self, record: NodeRecord, step: Step, *, periodic: bool = False) -> None:
        """Send a connected node its status."""
        if record.connection is not None:
            step.effects.append(current_status(record, self._thresholds, now=step.now, periodic=periodic))

    def close(self, record: NodeRecord, reason: str, step: Step) -> None:
        """Close an offline node's connection: it comes back by registering."""
        connection = record.connection
        if connection is None:
            return
        self._nodes.dismiss(connection)
        self._dispatch.update(record)
        step.effects.append(CloseConnection(connection, CloseCode.GOING_AWAY, reason))
        step.touched[record.node_id] = None

    def _start_drain(self, record: NodeRecord, step: Step) -> None:
        drain = record.desired.drain
        if drain is None:
            return
        reason = _drain_reason(drain)
        self._change(record, NodeStatus.DRAINING, ReasonCode.DRAIN_REQUESTED, reason=reason, step=step)
        self.finish_drain(record, step)
        self._dispatch.update(record)

    def _degrade_if_flapping(self, record: NodeRecord, step: Step) -> None:
        """Degrade a node that has left `ready` too often, before a job can be placed on it."""
        reason = health.flapping_reason(record, self._thresholds, step.now)
        if reason is None:
            return
        exits = record.exits
        self._change(record, NodeStatus.DEGRADED, ReasonCode.FLAPPING, reason=reason, step=step)
        record.exits = exits  # this is no failure of the node

    def _change(
        self, record: NodeRecord, target: NodeStatus, reason_code: ReasonCode, *, reason: str, step: Step
    ) -> None:
        clipped = clip_sentence(reason)
        change = lifecycle.change_status(
            record, target, reason_code=reason_code, reason=clipped, now=step.now
        )
        health.count_exit(record, change, self._thresholds)
        step.log(
            STATUS_CHANGED,
            {
                "node_id": record.node_id,
                "from": None if change.source is None else change.source.value,
                "to": target.value,
                "reason_code": reason_code.value,
            },
        )
        step.change_node(record)
        if target is NodeStatus.OFFLINE:
            self._lose_claims(record, step)
        self.send(record, step)
        if target is NodeStatus.OFFLINE and not may_stay(record):
            self.close(record, record.reason, step)

    def _lose_claims(self, record: NodeRecord, step: Step) -> None:
        """Lose the claims of a node that goes offline; other nodes of theirs may finish a drain."""
        for claim in self._claims.lose(record, step):
            for grant in claim.grants:
                other = self._nodes.records.get(grant.node_id)
                if other is not None and other is not record:
                    self.finish_drain(other, step)


def current_status(
    record: NodeRecord, thresholds: Thresholds, *, now: float, periodic: bool = False
) -> SendStatus:
    """Compose the node_status message of a connected node, as of its newest heartbeat."""
    if record.connection is None:
        raise ValueError(record.node_id)
    return SendStatus(
        connection=record.connection,
        node_id=record.node_id,
        status=record.status,
        reason_code=record.reason_code,
        reason=record.reason,
        since=record.since,
        previous_status=record.previous_status,
        periodic=periodic,
        heartbeat_interval_seconds=record.schedule.interval_seconds,
        checks=health.checks(record, thresholds),
        healthy_heartbeats=record.liveness.healthy_heartbeats,
        heartbeats_needed=lifecycle.heartbeats_needed(record, thresholds),
        in_flight_jobs=record.in_flight_jobs,
        drain_deadline=_deadline_ahead(record),
        clears_when=lifecycle.clears_when(record, thresholds, now),
    )


def _deadline_ahead(record: NodeRecord) -> float | None:
    """Return when a drain is to end; None where none is requested, or it is over."""
    drain = record.desired.drain
    return None if drain is None or record.status is NodeStatus.OFFLINE else drain.deadline


def _may_drain(record: NodeRecord) -> bool:
    return lifecycle.allows(record, NodeStatus.DRAINING, ReasonCode.DRAIN_REQUESTED)


def _drain_reason(drain: Drain) -> str:
    requester = "an operator" if drain.by_operator else "the node itself"
    return f"{requester} requested a drain" + (f": {drain.reason}" if drain.reason else "")


def may_stay(record: NodeRecord) -> bool:
    """Say whether the session of an offline node stays open: it does after an operator's drain (§4)."""
    drained = record.reason_code in (ReasonCode.DRAIN_COMPLETE, ReasonCode.DRAIN_DEADLINE)
    drain = record.desired.drain
    return drained and drain is not None and drain.by_operator
