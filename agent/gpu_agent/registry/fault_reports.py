"""Internal faults that a node reports with `node_error`: logged into its history, a few a minute (§3.3).

A node whose driver hangs may report the same fault with every reading. So the rest of a minute is counted,
and the count is logged once the minute is over.
"""

from gpu_agent.registry.actions import Level, Step
from gpu_agent.registry.events import FaultReported
from gpu_agent.registry.node import NodeRecord, NodeTable
from gpu_agent.registry.quoting import clip_quote

WINDOW_SECONDS = 60.0
FAULTS_PER_WINDOW = 10


def log_fault(event: FaultReported, nodes: NodeTable, step: Step) -> None:
    """Log a fault into its node's history; ignore one from a connection that registered no node."""
    record = nodes.by_connection.get(event.connection)
    if record is None:
        return
    log_left_out_faults(record, step)
    counter = record.faults
    if step.now >= counter.until:
        counter.until, counter.noted = step.now + WINDOW_SECONDS, 0
    if counter.noted >= FAULTS_PER_WINDOW:
        counter.left_out += 1
        step.touched[record.node_id] = None
        return
    counter.noted += 1
    fault = event.message
    fields = {
        "node_id": record.node_id,
        "code": clip_quote(fault.code),
        "message": clip_quote(fault.message),
    }
    step.log("node_fault_reported", fields, Level.WARNING)


def log_left_out_faults(record: NodeRecord, step: Step) -> None:
    """Log how many faults were left out, once their minute is over."""
    counter = record.faults
    if counter.left_out and step.now >= counter.until:
        fields = {"node_id": record.node_id, "count": counter.left_out}
        step.log("node_faults_left_out", fields, Level.WARNING)
        counter.left_out = 0
