from math import inf

from gpu_agent.registry.deadlines import Deadlines, next_look, purge_at, silent_until
from gpu_agent.registry.record import Drain, NodeRecord
from gpu_agent.registry.thresholds import Thresholds
from gpu_agent.wire.codes import NodeStatus
from tests.registry.fleets import declaration, hardware

SETTINGS = Thresholds()


def node(status: NodeStatus, *, connection: int | None = 1) -> NodeRecord:
    return NodeRecord(
        node_id="node-1",
        registration=declaration(),
        hardware=hardware(),
        registered_at=100.0,
        heard_at=100.0,
        since=100.0,
        status=status,
        connection=connection,
        next_status_at=160.0,
        warmup_until=130.0,
    )


def test_a_node_is_reached_once_at_its_time() -> None:
    deadlines = Deadlines()
    deadlines.at("a", 10.0)
    deadlines.at("b", 5.0)
    assert deadlines.earliest == 5.0
    assert list(deadlines.reached(4.9)) == []
    assert list(deadlines.reached(10.0)) == ["b", "a"]
    assert list(deadlines.reached(99.0)) == []
    assert deadlines.earliest is None


def test_an_earlier_look_replaces_a_later_one_and_not_the_other_way_round() -> None:
    deadlines = Deadlines()
    deadlines.at("a", 10.0)
    deadlines.at("a", 20.0)
    assert list(deadlines.reached(10.0)) == ["a"]
    deadlines.at("a", 20.0)
    deadlines.at("a", 15.0)
    assert list(deadlines.reached(30.0)) == ["a"]


def test_a_forgotten_node_is_not_reached() -> None:
    deadlines = Deadlines()
    deadlines.at("a", 10.0)
    deadlines.forget("a")
    assert list(deadlines.reached(99.0)) == []


def test_looks_that_were_given_up_take_no_room_for_long() -> None:
    deadlines = Deadlines()
    for node_id in ("a", "b"):
        deadlines.at(node_id, 7.0)
    for _ in range(10_000):
        deadlines.at("c", 604_800.0)
        deadlines.forget("c")
    deadlines.at("c", 8.0)
    assert deadlines.entries < 100
    assert list(deadlines.reached(9.0)) == ["a", "b", "c"]


def test_nobody_waits_for_ever() -> None:
    deadlines = Deadlines()
    deadlines.at("a", inf)
    assert deadlines.earliest is None


def test_silence_is_judged_by_one_timeout_and_of_a_suspected_node_by_two() -> None:
    record = node(NodeStatus.READY)
    assert silent_until(record) == 145.0
    record.suspected = True
    assert silent_until(record) == 190.0


def test_the_next_look_is_the_first_thing_that_time_may_change() -> None:
    assert next_look(node(NodeStatus.REGISTERING), SETTINGS) == 130.0
    assert next_look(node(NodeStatus.READY), SETTINGS) == 145.0
    draining = node(NodeStatus.DRAINING)
    draining.drain = Drain(by_operator=True, deadline=120.0)
    assert next_look(draining, SETTINGS) == 120.0
    assert next_look(node(NodeStatus.OFFLINE), SETTINGS) == 145.0
    assert next_look(node(NodeStatus.OFFLINE, connection=None), SETTINGS) == 100.0 + 604800.0


def test_a_record_is_let_go_only_when_offline_alone_and_unwished() -> None:
    assert purge_at(node(NodeStatus.READY, connection=None), SETTINGS) == inf
    assert purge_at(node(NodeStatus.OFFLINE), SETTINGS) == inf
    cordoned = node(NodeStatus.OFFLINE, connection=None)
    cordoned.cordoned = ""
    assert purge_at(cordoned, SETTINGS) == inf
    by_itself = node(NodeStatus.OFFLINE, connection=None)
    by_itself.drain = Drain(by_operator=False, deadline=0.0)
    assert purge_at(by_itself, SETTINGS) < inf
