import json

import pytest

from gpu_agent.registry.events import RegistrationArrived
from gpu_agent.registry.fleet import Fleet
from gpu_agent.registry.record import NodeRecord
from gpu_agent.registry.thresholds import Thresholds
from gpu_agent.server.node_filter import EVERYBODY, NodeFilter
from gpu_agent.wire.codec import decode_from_node
from gpu_agent.wire.codes import NodeStatus
from gpu_agent.wire.messages import NodeRegister
from tests.server.harness import registration


def record() -> NodeRecord:
    message = decode_from_node(json.dumps(registration(node_id="node-1", labels={"zone": "a", "rack": "7"})))
    assert isinstance(message, NodeRegister)
    fleet = Fleet(Thresholds(), lambda: 0.5, auth_off=True)
    fleet.handle(RegistrationArrived(1, message, fresh_id="node-X"), 0.0)
    found = fleet.node("node-1")
    assert found is not None
    return found


@pytest.mark.parametrize(
    "wanted",
    [
        EVERYBODY,
        NodeFilter(statuses=frozenset({NodeStatus.REGISTERING, NodeStatus.READY})),
        NodeFilter(model="m"),
        NodeFilter(labels={"zone": "a", "rack": "7"}),
        NodeFilter(gpu_name="nvidia l"),
        NodeFilter(connected=True),
    ],
)
def test_a_node_that_meets_every_wish_is_wanted(wanted: NodeFilter) -> None:
    assert wanted.admits(record())


@pytest.mark.parametrize(
    "wanted",
    [
        NodeFilter(statuses=frozenset({NodeStatus.READY})),
        NodeFilter(model="other"),
        NodeFilter(labels={"zone": "a", "rack": "8"}),
        NodeFilter(labels={"row": "1"}),
        NodeFilter(gpu_name="H100"),
        NodeFilter(connected=False),
    ],
)
def test_one_wish_that_is_not_met_is_enough(wanted: NodeFilter) -> None:
    assert not wanted.admits(record())
