from gpu_agent.registry.record import NodeRecord
from gpu_agent.registry.roster import Roster
from tests.registry.fleets import declaration, hardware


def roster_with_node() -> tuple[Roster, NodeRecord]:
    roster = Roster()
    record = NodeRecord(node_id="n", registration=declaration(), hardware=hardware(), registered_at=0.0)
    roster.add(record)
    roster.bind(record, 1)
    return roster, record


def test_a_bound_connection_stands_for_its_node_until_it_ends() -> None:
    roster, record = roster_with_node()
    assert (roster.bound, record.connection) == ({1: record}, 1)
    assert roster.ended(1) is record
    assert (roster.bound, record.connection) == ({}, None)
    assert roster.ended(1) is None


def test_a_dismissed_connection_is_not_listened_to_and_is_forgotten_when_it_ends() -> None:
    roster, record = roster_with_node()
    roster.dismiss(1)
    assert roster.dismissed(1)
    assert record.connection is None
    assert roster.ended(1) is None
    assert not roster.dismissed(1)


def test_a_dismissal_can_be_taken_back_while_the_connection_is_there() -> None:
    roster, _ = roster_with_node()
    roster.dismiss(1)
    assert roster.recall(1)
    assert not roster.dismissed(1)
    assert not roster.recall(1)


def test_a_dropped_node_is_not_known_and_its_connection_stands_for_nobody() -> None:
    roster, record = roster_with_node()
    roster.drop(record)
    roster.drop(record)
    assert (roster.records, roster.bound) == ({}, {})
