"""What operators wish of a node: empty it, take it back, give it no new jobs, let go of its record (§4).

A wish outlives restarts of both sides. Every wish is saved before it is answered, and
undone when the save fails.
"""

from typing import assert_never

from gpu_agent.registry import controls
from gpu_agent.registry.actions import Level
from gpu_agent.registry.events import ControlAsked, CordonAsked, DrainAsked, RemovalAsked, ResumeAsked, Wish
from gpu_agent.registry.house import House
from gpu_agent.registry.letting_go import let_go
from gpu_agent.registry.record import LONGEST_DRAIN_SECONDS, Drain, NodeRecord
from gpu_agent.registry.sessions import start_over
from gpu_agent.registry.step import Step
from gpu_agent.registry.unknown import there_is_no_node
from gpu_agent.wire.codes import ErrorCode, NodeStatus, ReasonCode


class Wishes:
    """Takes operators' wishes."""

    def __init__(self, house: House) -> None:
        self._house = house

    def asked(self, event: Wish, step: Step) -> None:
        """Do what an operator asks."""
        match event:
            case DrainAsked():
                self._drain(event, step)
            case ResumeAsked():
                self._resume(event, step)
            case CordonAsked():
                self._cordon(event, step)
            case RemovalAsked():
                self._removal(event, step)
            case ControlAsked():
                controls.order(event, self._house.roster, step)
            case _ as unreachable:
                assert_never(unreachable)

    def _drain(self, event: DrainAsked, step: Step) -> None:
        """Empty a node: at once where its status allows, else as soon as it may work."""
        record = self._asked_of(event.ref, event.node_id, step)
        if record is None:
            return
        seconds = event.deadline_seconds
        if seconds is None:
            seconds = self._house.thresholds.drain_deadline_seconds
        seconds = min(seconds, LONGEST_DRAIN_SECONDS)
        record.drain = Drain(by_operator=True, deadline=step.now + seconds, reason=event.reason)
        step.note(
            "drain_wished", {"node_id": record.node_id, "reason": event.reason, "deadline_seconds": seconds}
        )
        if record.status in (NodeStatus.READY, NodeStatus.DEGRADED):
            self._house.verdicts.drain(record, step)
        elif record.status is NodeStatus.DRAINING:
            self._house.verdicts.drain_anew(record, step)
        step.answer(event.ref)

    def _resume(self, event: ResumeAsked, step: Step) -> None:
        """Take a node back: it proves itself anew where its session is open, else once it registers."""
        record = self._asked_of(event.ref, event.node_id, step)
        if record is None:
            return
        record.drain = None
        step.note("resume_wished", {"node_id": record.node_id})
        emptied = record.status is NodeStatus.OFFLINE and record.connection is not None
        if record.status is NodeStatus.DRAINING or emptied:
            start_over(record, self._house.thresholds, step.now)
            self._house.verdicts.give(
                record,
                NodeStatus.REGISTERING,
                ReasonCode.RESUMED,
                reason="an operator resumed it; its health is not proven yet",
                step=step,
            )
        step.answer(event.ref)

    def _cordon(self, event: CordonAsked, step: Step) -> None:
        """Give a node no new jobs, or lift that; its status stays."""
        record = self._asked_of(event.ref, event.node_id, step)
        if record is None:
            return
        record.cordoned = event.reason
        self._house.dispatch.refresh(record)
        wish = "cordon_lifted" if event.reason is None else "cordon_wished"
        step.note(wish, {"node_id": record.node_id, "reason": event.reason})
        step.answer(event.ref)

    def _removal(self, event: RemovalAsked, step: Step) -> None:
        """Let go of a node's record; a node that still lives is sent away first."""
        record = self._asked_of(event.ref, event.node_id, step)
        if record is None:
            return
        reason = "an operator removed its record"
        if record.status is NodeStatus.OFFLINE:
            self._house.verdicts.close(record, reason, step)
        else:
            self._house.verdicts.give(
                record, NodeStatus.OFFLINE, ReasonCode.REMOVED, reason=reason, step=step
            )
        let_go(record, self._house, step)
        step.note("node_removed", {"node_id": record.node_id}, Level.WARNING)
        step.answer(event.ref)

    def _asked_of(self, ref: int, node_id: str, step: Step) -> NodeRecord | None:
        """Find the node a wish is about, and remember how it was; refuse where there is none."""
        record = self._house.roster.records.get(node_id)
        if record is None:
            step.refuse(ref, ErrorCode.UNKNOWN_NODE, there_is_no_node(node_id))
            return None
        step.remember(record)
        step.keep_node(record)
        step.refuse_unsaved(ref)
        return record
