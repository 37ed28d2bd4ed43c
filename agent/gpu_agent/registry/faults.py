"""Internal faults that nodes report (§3.3): noted into the node's history, at most so many a minute.

A node that reports one fault over and over would push everything else out of its history. What
is left out is counted, and told when the minute is over. Judges no fault; changes no status.
"""

from gpu_agent.registry.actions import Level
from gpu_agent.registry.quoting import quoted
from gpu_agent.registry.record import NodeRecord
from gpu_agent.registry.step import Step
from gpu_agent.wire.messages import NodeError

MINUTE_SECONDS = 60.0
NOTED_PER_MINUTE = 10


def report(record: NodeRecord, fault: NodeError, step: Step) -> None:
    """Note a fault, or count it where the minute has had enough of them."""
    sum_up(record, step)
    heard = record.faults
    if step.now >= heard.until:
        heard.until, heard.noted = step.now + MINUTE_SECONDS, 0
    if heard.noted >= NOTED_PER_MINUTE:
        heard.left_out += 1
        step.touched[record.node_id] = None
        return
    heard.noted += 1
    step.note(
        "node_fault_reported",
        {"node_id": record.node_id, "code": quoted(fault.code), "message": quoted(fault.message)},
        Level.WARNING,
    )


def sum_up(record: NodeRecord, step: Step) -> None:
    """Say how many faults were left out, once their minute is over."""
    heard = record.faults
    if heard.left_out and step.now >= heard.until:
        step.note("node_faults_left_out", {"node_id": record.node_id, "count": heard.left_out}, Level.WARNING)
        heard.left_out = 0
