"""A node's status changes: the transition, its log event, the node_status message, and what follows (§3.5, §4).

Three things follow in the same step. A node that becomes ready or degraded while a drain is requested starts to drain.
A node that flaps becomes degraded. A node that drains with no job left goes offline. Heartbeats, timers and operators'
requests decide whether a transition is due.
"""

from dataclasses import dataclass
from typing import assert_never

from gpu_agent.registry import health, lifecycle
from gpu_agent.registry import health as flapping
from gpu_agent.registry.actions import CloseConnection, SendStatus
from gpu_agent.registry.claims import ClaimRequests
from gpu_agent.registry.dispatch.dispatch import Dispatch
from gpu_agent.registry.node import Drain, NodeRecord, NodeTable
from gpu_agent.registry.pacing import Pacer
from gpu_agent.registry.quoting import sentence
from gpu_agent.registry.settings import Policy, Thresholds
from gpu_agent.registry.step import STATUS_CHANGED, Step
from gpu_agent.registry.tokens import TokenTable
from gpu_agent.registry.unstored import UnstoredChanges
from gpu_agent.wire.codes import CloseCode, NodeStatus, ReasonCode

# A verdict on a node, carried through: the move, its note and save, what is told, and what follows from
# it.
#
# What follows is fixed: a node that may work although somebody wants it empty drains in the
# same step, one that flaps is degraded in it, and one that drains with nothing left to finish goes
# offline. Whether a verdict is due is decided by those who watch beats, clocks and wishes.


class StatusTransitions:
    """Moves nodes along the arrows of `lifecycle`, with all that a move entails."""

    def __init__(
        self,
        thresholds: Thresholds,
        roster: NodeTable,
        *,
        dispatch: Dispatch,
        claiming: ClaimRequests,
        unstored: UnstoredChanges,
    ) -> None:
        self._thresholds = thresholds
        self._roster = roster
        self._dispatch = dispatch
        self._claiming = claiming
        self._unstored = unstored

    def give(
        self, record: NodeRecord, target: NodeStatus, reason_code: ReasonCode, *, reason: str, step: Step
    ) -> None:
        """Give a node a status, and whatever status follows from it at once."""
        self._move(record, target, reason_code, reason=reason, step=step)
        if record.drain is not None and target in (NodeStatus.READY, NodeStatus.DEGRADED):
            self.drain(record, step)
        elif target is NodeStatus.READY:
            self._hold(record, step)
        self._dispatch.refresh(record)

    def drain(self, record: NodeRecord, step: Step) -> None:
        """Begin the drain that somebody wished for, and end it where there is nothing to wait for."""
        if record.drain is None:
            return
        reason = _asked(record.drain)
        self._move(record, NodeStatus.DRAINING, ReasonCode.DRAIN_REQUESTED, reason=reason, step=step)
        self.settle(record, step)
        self._dispatch.refresh(record)

    def update_drain(self, record: NodeRecord, step: Step) -> None:
        """Go by what is wished now of a node that drains already: another asker, another deadline."""
        if record.drain is None:
            return
        record.reason = sentence(_asked(record.drain))
        self.settle(record, step)
        if record.status is NodeStatus.DRAINING and record.connection is not None:
            step.add(current_status(record, self._thresholds, connection=record.connection, now=step.now))

    def settle(self, record: NodeRecord, step: Step) -> None:
        """Let a draining node go offline once its jobs have ended or its deadline has passed.

        A node that has yet to say what runs, as after a restart of the registry, is waited for: that no
        job is known of is not that none runs.
        """
        if record.status is not NodeStatus.DRAINING:
            return
        jobs = record.jobs_to_finish
        if jobs == 0 and record.jobs_known:
            code, reason = ReasonCode.DRAIN_COMPLETE, "no job is in flight any more"
        elif self._drain_deadline_passed(record, step.now):
            code = ReasonCode.DRAIN_DEADLINE
            left = f"with {jobs} in flight" if jobs else "before the node said what runs"
            reason = f"the drain's deadline passed {left}"
        else:
            return
        self.give(record, NodeStatus.OFFLINE, code, reason=reason, step=step)

    def _drain_deadline_passed(self, record: NodeRecord, now: float) -> bool:
        """While the store fails no deadline is decided (§4)."""
        return record.drain is not None and now >= record.drain.deadline and not self._unstored.store_fails

    def _hold(self, record: NodeRecord, step: Step) -> None:
        """Take a node that has left `ready` too often back out of it, before a job can see it there."""
        why = flapping.flapping_reason(record, self._thresholds, step.now)
        if why is None:
            return
        exits = record.exits
        self._move(record, NodeStatus.DEGRADED, ReasonCode.FLAPPING, reason=why, step=step)
        record.exits = exits  # it did nothing

    def _move(
        self, record: NodeRecord, target: NodeStatus, reason_code: ReasonCode, *, reason: str, step: Step
    ) -> None:
        said = sentence(reason)
        move = lifecycle.transition(record, target, reason_code=reason_code, reason=said, now=step.now)
        flapping.count_exit(record, move, self._thresholds)
        step.log(
            STATUS_CHANGED,
            {
                "node_id": record.node_id,
                "from": None if move.source is None else move.source.value,
                "to": target.value,
                "reason_code": reason_code.value,
            },
        )
        step.change_node(record)
        if target is NodeStatus.OFFLINE:
            self._claiming.lose(record, step)
        if record.connection is None:
            return
        step.add(current_status(record, self._thresholds, connection=record.connection, now=step.now))
        if target is NodeStatus.OFFLINE and not _may_stay(record):
            self.close(record, record.reason, step)

    def close(self, record: NodeRecord, reason: str, step: Step) -> None:
        """Close an offline node's connection: it comes back by registering."""
        connection = record.connection
        if connection is None:
            return
        self._roster.dismiss(connection)
        step.add(CloseConnection(connection, CloseCode.GOING_AWAY, reason))
        step.touched[record.node_id] = None


def _asked(drain: Drain) -> str:
    asker = "an operator" if drain.by_operator else "the node itself"
    return f"{asker} asked for it to be emptied" + (f": {drain.reason}" if drain.reason else "")


def _may_stay(record: NodeRecord) -> bool:
    """After an operator's drain the session stays open until `resume` (§4)."""
    emptied = record.reason_code in (ReasonCode.DRAIN_COMPLETE, ReasonCode.DRAIN_DEADLINE)
    return emptied and record.drain is not None and record.drain.by_operator


# What a node is told of its status, and the sentence that says what would change it (§3.5).
#
# Composes; decides nothing.


def current_status(
    record: NodeRecord, thresholds: Thresholds, *, connection: int, now: float, periodic: bool = False
) -> SendStatus:
    """Compose the status that a node has, as of its newest beat."""
    return SendStatus(
        connection=connection,
        node_id=record.node_id,
        status=record.status,
        reason_code=record.reason_code,
        reason=record.reason,
        since=record.since,
        previous_status=record.previous_status,
        periodic=periodic,
        heartbeat_interval_seconds=record.interval_seconds,
        checks=health.checks(record, thresholds),
        healthy_beats=record.healthy_beats,
        beats_needed=heartbeats_needed(record, thresholds),
        in_flight_jobs=record.in_flight_jobs,
        drain_deadline=_deadline_ahead(record),
        clears_when=clears_when(record, thresholds, now),
    )


def heartbeats_needed(record: NodeRecord, thresholds: Thresholds) -> int:
    """Return how many more healthy beats in a row make the node ready; 0 where beats do not decide."""
    if record.status in (NodeStatus.REGISTERING, NodeStatus.DEGRADED):
        return max(0, thresholds.healthy_heartbeats_needed - record.healthy_beats)
    return 0


def clears_when(record: NodeRecord, thresholds: Thresholds, now: float) -> str | None:
    """Say what would change the status; None for a ready node, from which nothing is wanted."""
    match record.status:
        case NodeStatus.READY:
            return None
        case NodeStatus.REGISTERING | NodeStatus.DEGRADED:
            return _after_healthy_beats(record, thresholds, now)
        case NodeStatus.DRAINING:
            return _when_drained(record)
        case NodeStatus.OFFLINE:
            return _when_it_may_return(record)
        case _ as unreachable:
            assert_never(unreachable)


def _deadline_ahead(record: NodeRecord) -> float | None:
    """Return when a drain is to end; None where none is wished, or it is over."""
    over = record.status is NodeStatus.OFFLINE
    return None if record.drain is None or over else record.drain.deadline


def _after_healthy_beats(record: NodeRecord, thresholds: Thresholds, now: float) -> str:
    needed = heartbeats_needed(record, thresholds)
    wanted = f"{needed} more healthy beats in a row" if needed > 1 else "one more healthy beat"
    until = flapping.damped_until(record, thresholds)
    if until is not None and now < until:
        exits = f"fewer than {thresholds.flap_limit} exits within {thresholds.flap_window_seconds:g} s"
        wanted = f"{wanted if needed else 'its beats stay healthy'}, and in {until - now:.0f} s, when {exits}"
        wanted += " are left"
    if record.drain is not None:
        wanted += ", and then it drains, as asked"
    failing = [check for check in health.checks(record, thresholds) if not check.ok]
    if failing:
        wanted += "; failing now: " + "; ".join(f"{check.name} ({check.detail})" for check in failing)
    return sentence(wanted)


def _when_it_may_return(record: NodeRecord) -> str:
    if record.drain is None or not record.drain.by_operator:
        return "the node registers again"
    back = "" if record.connection is not None else ", and it registers again"
    return "an operator resumes the node" + back


def _when_drained(record: NodeRecord) -> str:
    jobs = record.jobs_to_finish
    if jobs == 0 and not record.jobs_known:
        return "a beat shows that no job runs, or the deadline passes: then it goes offline"
    if jobs == 0:
        return "nothing runs any more: it goes offline at once"
    running = "its last job ends" if jobs == 1 else f"its {jobs} jobs end"
    return f"{running} or the deadline passes: then it goes offline"


# What all who handle nodes share: one object handed down instead of five. Holds nothing of its own.


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """The parts of one fleet."""

    thresholds: Thresholds
    policy: Policy
    pacer: Pacer
    roster: NodeTable
    tokens: TokenTable
    dispatch: Dispatch
    claiming: ClaimRequests
    verdicts: StatusTransitions
