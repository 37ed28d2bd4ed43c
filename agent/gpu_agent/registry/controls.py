"""What an operator tells a node to do now: probe again, or register again (§3.6).

Nothing of it is kept and no status changes by it: a node that is not connected has nobody who would
hear, so the order is refused rather than remembered.
"""

from gpu_agent.registry.actions import Send
from gpu_agent.registry.events import ControlAsked
from gpu_agent.registry.roster import Roster
from gpu_agent.registry.step import Step
from gpu_agent.registry.unknown import there_is_no_node
from gpu_agent.wire.codes import ErrorCode
from gpu_agent.wire.messages import NodeControl

NODE_NOT_CONNECTED = "NODE_NOT_CONNECTED"
"""No session of the node is open."""

_REASON = "an operator asked for it"


def order(event: ControlAsked, roster: Roster, step: Step) -> None:
    """Pass an operator's order on to a node, or say why nobody would hear it."""
    record = roster.records.get(event.node_id)
    if record is None:
        step.refuse(event.ref, ErrorCode.UNKNOWN_NODE, there_is_no_node(event.node_id))
        return
    if record.connection is None:
        step.refuse(
            event.ref,
            NODE_NOT_CONNECTED,
            f"node {event.node_id!r} has no open session ({record.status}), so nobody would hear: "
            "it registers by itself once its agent runs and reaches the registry",
        )
        return
    step.tell(Send(record.connection, NodeControl(command=event.command.value, reason=_REASON)))
    step.note("node_control_sent", {"node_id": record.node_id, "command": event.command.value})
    step.answer(event.ref)
