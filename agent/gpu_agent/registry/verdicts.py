"""A verdict on a node, carried through: the move, its note and save, what is told, and what follows from it.

What follows is fixed: a node that may work although somebody wants it empty drains in the
same step, one that flaps is degraded in it, and one that drains with nothing left to finish goes
offline. Whether a verdict is due is decided by those who watch beats, clocks and wishes.
"""

from gpu_agent.registry import flapping, lifecycle, telling
from gpu_agent.registry.actions import CloseConnection
from gpu_agent.registry.claiming import Claiming
from gpu_agent.registry.dispatch.dispatch import Dispatch
from gpu_agent.registry.quoting import sentence
from gpu_agent.registry.record import Drain, NodeRecord
from gpu_agent.registry.roster import Roster
from gpu_agent.registry.step import STATUS_CHANGED, Step
from gpu_agent.registry.thresholds import Thresholds
from gpu_agent.wire.codes import CloseCode, NodeStatus, ReasonCode


class Verdicts:
    """Moves nodes along the arrows of `lifecycle`, with all that a move entails."""

    def __init__(
        self, thresholds: Thresholds, roster: Roster, *, dispatch: Dispatch, claiming: Claiming
    ) -> None:
        self._thresholds = thresholds
        self._roster = roster
        self._dispatch = dispatch
        self._claiming = claiming

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

    def drain_anew(self, record: NodeRecord, step: Step) -> None:
        """Go by what is wished now of a node that drains already: another asker, another deadline."""
        if record.drain is None:
            return
        record.reason = sentence(_asked(record.drain))
        self.settle(record, step)
        if record.status is NodeStatus.DRAINING and record.connection is not None:
            step.tell(telling.status_of(record, self._thresholds, connection=record.connection, now=step.now))

    def settle(self, record: NodeRecord, step: Step) -> None:
        """Let a draining node go offline once its jobs have ended or its deadline has passed.

        A node that has yet to say what runs, as after a restart of the registry, is waited for: that no
        job is known of is not that none runs.
        """
        if record.status is not NodeStatus.DRAINING:
            return
        jobs = record.jobs_to_finish
        if jobs == 0 and record.tells_its_jobs:
            code, reason = ReasonCode.DRAIN_COMPLETE, "no job is in flight any more"
        elif record.drain is not None and step.now >= record.drain.deadline:
            code = ReasonCode.DRAIN_DEADLINE
            left = f"with {jobs} in flight" if jobs else "before the node said what runs"
            reason = f"the drain's deadline passed {left}"
        else:
            return
        self.give(record, NodeStatus.OFFLINE, code, reason=reason, step=step)

    def _hold(self, record: NodeRecord, step: Step) -> None:
        """Take a node that has left `ready` too often back out of it, before a job can see it there."""
        why = flapping.holds(record, self._thresholds, step.now)
        if why is None:
            return
        exits = record.exits
        self._move(record, NodeStatus.DEGRADED, ReasonCode.FLAPPING, reason=why, step=step)
        record.exits = exits  # it did nothing

    def _move(
        self, record: NodeRecord, target: NodeStatus, reason_code: ReasonCode, *, reason: str, step: Step
    ) -> None:
        step.remember(record)
        said = sentence(reason)
        move = lifecycle.move(record, target, reason_code=reason_code, reason=said, now=step.now)
        flapping.count(record, move, self._thresholds)
        step.note(
            STATUS_CHANGED,
            {
                "node_id": record.node_id,
                "from": None if move.source is None else move.source.value,
                "to": target.value,
                "reason_code": reason_code.value,
            },
        )
        step.keep_node(record)
        if target is NodeStatus.OFFLINE:
            self._claiming.lose(record, step)
        if record.connection is None:
            return
        step.tell(telling.status_of(record, self._thresholds, connection=record.connection, now=step.now))
        if target is NodeStatus.OFFLINE and not _may_stay(record):
            self.close(record, record.reason, step)

    def close(self, record: NodeRecord, reason: str, step: Step) -> None:
        """Close an offline node's connection: it comes back by registering."""
        connection = record.connection
        if connection is None:
            return
        self._roster.dismiss(connection)
        step.tell(CloseConnection(connection, CloseCode.GOING_AWAY, reason))
        step.touched[record.node_id] = None


def _asked(drain: Drain) -> str:
    asker = "an operator" if drain.by_operator else "the node itself"
    return f"{asker} asked for it to be emptied" + (f": {drain.reason}" if drain.reason else "")


def _may_stay(record: NodeRecord) -> bool:
    """After an operator's drain the session stays open until `resume` (§4)."""
    emptied = record.reason_code in (ReasonCode.DRAIN_COMPLETE, ReasonCode.DRAIN_DEADLINE)
    return emptied and record.drain is not None and record.drain.by_operator
