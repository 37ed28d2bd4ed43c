"""Nodes whose status stands on a wish that is gone, or not on one that is there.

That comes about where what an operator asked could not be kept, and was undone after the registry had moved
the node on: emptied by a drain that never was, or ready although its drain was not lifted. Moves nobody.
"""

from gpu_agent.registry.record import NodeRecord
from gpu_agent.wire.codes import NodeStatus, ReasonCode

_EMPTIED = (ReasonCode.DRAIN_COMPLETE, ReasonCode.DRAIN_DEADLINE)


def is_adrift(record: NodeRecord) -> bool:
    """Say whether a node must be led on to where it would have gone by the wish that counts."""
    if record.drain is not None:
        return record.status in (NodeStatus.READY, NodeStatus.DEGRADED)
    emptied = record.status is NodeStatus.OFFLINE and record.reason_code in _EMPTIED
    return record.status is NodeStatus.DRAINING or (emptied and record.connection is not None)
