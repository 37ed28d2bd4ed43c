from random import Random

from gpu_agent.registry.census import Census
from gpu_agent.registry.events import ConnectionLost, RemovalAsked
from gpu_agent.registry.record import NodeRecord
from gpu_agent.wire.codes import NodeStatus
from tests.registry.dispatch.nodes import node
from tests.registry.fleets import Registry


def counts(*records: NodeRecord) -> tuple[int, int]:
    census = Census()
    for record in records:
        census.count(record)
    return census.live, census.warming


def test_a_settled_node_is_live_and_one_that_registers_warms_up() -> None:
    assert counts(node(), node("node-B", status=NodeStatus.REGISTERING)) == (2, 1)


def test_a_node_that_will_come_back_will_warm_up() -> None:
    assert counts(node(connection=None), node("node-B", suspected=True)) == (2, 2)


def test_a_node_that_is_offline_counts_while_its_session_is_open() -> None:
    gone = node(status=NodeStatus.OFFLINE, connection=None)
    emptied = node("node-B", status=NodeStatus.OFFLINE)
    assert counts(gone, emptied) == (1, 0)


def test_a_node_is_counted_as_it_was_last_and_not_once_it_is_forgotten() -> None:
    census, record = Census(), node(status=NodeStatus.REGISTERING)
    census.count(record)
    record.status = NodeStatus.READY
    census.count(record)
    assert (census.live, census.warming) == (1, 0)
    census.forget("node-A")
    census.forget("node-A")
    assert census.live == 0


def test_the_fleets_census_is_what_counting_anew_finds_whatever_happens() -> None:
    registry, dice = Registry(), Random(7)  # noqa: S311
    for _ in range(300):
        connection = dice.randrange(1, 9)
        known = registry.fleet.node(f"node-{connection}")
        match dice.randrange(6):
            case 0:
                registry.register(connection)
            case 1 if known is not None and known.connection is not None:
                registry.do(ConnectionLost(connection))
            case 2 if known is not None:
                registry.drain(f"node-{connection}")
            case 3 if known is not None and dice.random() < 0.2:
                registry.do(RemovalAsked(registry.ref(), f"node-{connection}"))
            case 4:
                registry.pass_time(10.0 * dice.random())
            case _:
                registry.beat(connection)
        census = registry.fleet._census
        assert (census.live, census.warming) == counts(*registry.fleet.nodes())
