import pytest

from gpu_agent.registry.adrift import is_adrift
from gpu_agent.registry.record import Drain, NodeRecord
from gpu_agent.wire.codes import NodeStatus, ReasonCode
from tests.registry.fleets import declaration, hardware

DRAIN = Drain(by_operator=True, deadline=0.0)


def node(
    status: NodeStatus, reason: ReasonCode, *, drain: Drain | None = None, connection: int | None = 1
) -> NodeRecord:
    return NodeRecord(
        node_id="node-1",
        registration=declaration(),
        hardware=hardware(),
        registered_at=0.0,
        status=status,
        reason_code=reason,
        drain=drain,
        connection=connection,
    )


@pytest.mark.parametrize(
    ("record", "adrift"),
    [
        (node(NodeStatus.READY, ReasonCode.RECOVERED), False),
        (node(NodeStatus.READY, ReasonCode.RECOVERED, drain=DRAIN), True),
        (node(NodeStatus.DEGRADED, ReasonCode.FLAPPING, drain=DRAIN), True),
        (node(NodeStatus.REGISTERING, ReasonCode.REGISTERED, drain=DRAIN), False),
        (node(NodeStatus.DRAINING, ReasonCode.DRAIN_REQUESTED, drain=DRAIN), False),
        (node(NodeStatus.DRAINING, ReasonCode.DRAIN_REQUESTED), True),
        (node(NodeStatus.OFFLINE, ReasonCode.DRAIN_COMPLETE, drain=DRAIN), False),
        (node(NodeStatus.OFFLINE, ReasonCode.DRAIN_COMPLETE), True),
        (node(NodeStatus.OFFLINE, ReasonCode.DRAIN_COMPLETE, connection=None), False),
        (node(NodeStatus.OFFLINE, ReasonCode.HEARTBEAT_TIMEOUT), False),
    ],
)
def test_a_node_is_adrift_where_its_status_stands_on_no_wish_or_ignores_one(
    record: NodeRecord, *, adrift: bool
) -> None:
    assert is_adrift(record) is adrift
