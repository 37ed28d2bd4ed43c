"""What operators request for a node: drain, resume, cordon, uncordon, remove, refresh, reregister (§3.6, §4).

The desired state of a node survives restarts of both sides. A control message is not stored: a node that is not
connected cannot receive it, so the request is refused.
"""

from typing import assert_never

from gpu_agent.registry.actions import Level, Send, unknown_node_message
from gpu_agent.registry.events import (
    ControlRequested,
    CordonRequested,
    DrainRequested,
    NodeRequest,
    RemovalRequested,
    ResumeRequested,
)
from gpu_agent.registry.node import LONGEST_DRAIN_SECONDS, Drain, NodeRecord, NodeTable
from gpu_agent.registry.registration import remove_node, restart_warmup
from gpu_agent.registry.status import House
from gpu_agent.registry.step import Step
from gpu_agent.wire.codes import ErrorCode, NodeStatus, ReasonCode
from gpu_agent.wire.messages import NodeControl

# What operators wish of a node: empty it, take it back, give it no new jobs, let go of its record (§4).
#
# A wish outlives restarts of both sides. Every wish is saved before it is answered, and
# undone when the save fails.


class Operations:
    """Takes operators' wishes."""

    def __init__(self, house: House) -> None:
        self._house = house

    def asked(self, event: NodeRequest, step: Step) -> None:
        """Do what an operator asks."""
        match event:
            case DrainRequested():
                self._drain(event, step)
            case ResumeRequested():
                self._resume(event, step)
            case CordonRequested():
                self._cordon(event, step)
            case RemovalRequested():
                self._removal(event, step)
            case ControlRequested():
                send_control(event, self._house.roster, step)
            case _ as unreachable:
                assert_never(unreachable)

    def _drain(self, event: DrainRequested, step: Step) -> None:
        """Empty a node: at once where its status allows, else as soon as it may work."""
        record = self._asked_of(event.ref, event.node_id, step)
        if record is None:
            return
        seconds = event.deadline_seconds
        if seconds is None:
            seconds = self._house.thresholds.drain_deadline_seconds
        seconds = min(seconds, LONGEST_DRAIN_SECONDS)
        record.drain = Drain(by_operator=True, deadline=step.now + seconds, reason=event.reason)
        step.log(
            "drain_requested",
            {"node_id": record.node_id, "reason": event.reason, "deadline_seconds": seconds},
        )
        if record.status in (NodeStatus.READY, NodeStatus.DEGRADED):
            self._house.verdicts.drain(record, step)
        elif record.status is NodeStatus.DRAINING:
            self._house.verdicts.update_drain(record, step)
        step.answer(event.ref)

    def _resume(self, event: ResumeRequested, step: Step) -> None:
        """Take a node back: it proves itself anew where its session is open, else once it registers."""
        record = self._asked_of(event.ref, event.node_id, step)
        if record is None:
            return
        record.drain = None
        step.log("resume_requested", {"node_id": record.node_id})
        emptied = record.status is NodeStatus.OFFLINE and record.connection is not None
        if record.status is NodeStatus.DRAINING or emptied:
            restart_warmup(record, self._house.thresholds, step.now)
            self._house.verdicts.give(
                record,
                NodeStatus.REGISTERING,
                ReasonCode.RESUMED,
                reason="an operator resumed it; its health is not proven yet",
                step=step,
            )
        step.answer(event.ref)

    def _cordon(self, event: CordonRequested, step: Step) -> None:
        """Give a node no new jobs, or lift that; its status stays."""
        record = self._asked_of(event.ref, event.node_id, step)
        if record is None:
            return
        record.cordoned = event.reason
        self._house.dispatch.refresh(record)
        wish = "node_uncordoned" if event.reason is None else "node_cordoned"
        step.log(wish, {"node_id": record.node_id, "reason": event.reason})
        step.answer(event.ref)

    def _removal(self, event: RemovalRequested, step: Step) -> None:
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
        remove_node(record, self._house, step)
        step.log("node_removed", {"node_id": record.node_id}, Level.WARNING)
        step.answer(event.ref)

    def _asked_of(self, ref: int, node_id: str, step: Step) -> NodeRecord | None:
        """Find the node a wish is about, and remember how it was; refuse where there is none."""
        record = self._house.roster.records.get(node_id)
        if record is None:
            step.refuse(ref, ErrorCode.UNKNOWN_NODE, unknown_node_message(node_id))
            return None
        step.change_node(record)
        return record


# What an operator tells a node to do now: probe again, or register again (§3.6).
#
# Nothing of it is kept and no status changes by it: a node that is not connected has nobody who would
# hear, so the order is refused rather than remembered.


NODE_NOT_CONNECTED = "NODE_NOT_CONNECTED"
"""No session of the node is open."""

_REASON = "an operator asked for it"


def send_control(event: ControlRequested, roster: NodeTable, step: Step) -> None:
    """Pass an operator's order on to a node, or say why nobody would hear it."""
    record = roster.records.get(event.node_id)
    if record is None:
        step.refuse(event.ref, ErrorCode.UNKNOWN_NODE, unknown_node_message(event.node_id))
        return
    if record.connection is None:
        step.refuse(
            event.ref,
            NODE_NOT_CONNECTED,
            f"node {event.node_id!r} has no open session ({record.status}), so nobody would hear: "
            "it registers by itself once its agent runs and reaches the registry",
        )
        return
    step.add(Send(record.connection, NodeControl(command=event.command.value, reason=_REASON)))
    step.log("node_control_sent", {"node_id": record.node_id, "command": event.command.value})
    step.answer(event.ref)
