import pytest

from gpu_agent.registry.actions import Refusal, Save, Send
from gpu_agent.registry.controls import NODE_NOT_CONNECTED
from gpu_agent.registry.events import Command, ConnectionLost, ControlAsked
from gpu_agent.wire.messages import NodeControl
from tests.registry.fleets import Registry, answer, notes, of


@pytest.mark.parametrize("command", list(Command))
def test_an_order_is_passed_on_to_the_nodes_connection_and_noted(command: Command) -> None:
    registry = Registry()
    record = registry.ready()
    done = registry.do(ControlAsked(registry.ref(), "node-1", command))
    assert [(one.connection, one.message) for one in of(Send, done)] == [
        (1, NodeControl(command=command.value, reason="an operator asked for it"))
    ]
    assert answer(done) is None
    (note,) = notes(done, "node_control_sent")
    assert note.fields == {"node_id": "node-1", "command": command.value}
    assert (of(Save, done), record.status) == ([], "ready")


def test_an_order_to_a_node_without_an_open_session_is_refused_with_what_to_expect() -> None:
    registry = Registry()
    registry.ready()
    registry.do(ConnectionLost(1))
    refused = answer(registry.do(ControlAsked(registry.ref(), "node-1", Command.REFRESH)))
    assert isinstance(refused, Refusal)
    assert refused.code == NODE_NOT_CONNECTED
    assert refused.message == (
        "node 'node-1' has no open session (ready), so nobody would hear: "
        "it registers by itself once its agent runs and reaches the registry"
    )


def test_a_drained_node_whose_session_is_open_hears_orders() -> None:
    registry = Registry()
    registry.ready()
    registry.drain()
    assert answer(registry.do(ControlAsked(registry.ref(), "node-1", Command.REREGISTER))) is None


def test_an_order_to_a_node_that_is_not_known_is_refused() -> None:
    refused = answer(Registry().do(ControlAsked(7, "node-9", Command.REFRESH)))
    assert isinstance(refused, Refusal)
    assert (refused.code, "node-9" in refused.message) == ("UNKNOWN_NODE", True)
