"""What a loop is told to carry out, and what it says when its store stands still, in a test."""

from gpu_agent.registry.actions import LogEvent, SendStatus
from gpu_agent.wire.codes import NodeStatus, ReasonCode

TELLING = LogEvent("told")
STALLED = "the store has not answered for 0.05 s; look at the disk that it lies on"
STATUS = SendStatus(
    connection=3,
    node_id="node-3",
    status=NodeStatus.READY,
    reason_code=ReasonCode.HEALTH_CHECKS_PASSED,
    reason="well",
    since=1.0,
)
