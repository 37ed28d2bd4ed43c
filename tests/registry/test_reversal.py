from dataclasses import replace

from gpu_agent.registry.keys import NodeKeys
from gpu_agent.registry.record import Drain, NodeRecord, Transition
from gpu_agent.registry.reversal import has_moved, parts_of_node, taken_back
from gpu_agent.wire.codes import NodeStatus, ReasonCode
from tests.registry.fleets import declaration, hardware

BEFORE = NodeRecord(
    node_id="node-1", registration=declaration(), hardware=hardware(), registered_at=0.0, connection=1
)
DRAIN = Drain(by_operator=True, deadline=9.0)


def moved(record: NodeRecord, status: NodeStatus) -> NodeRecord:
    move = Transition(
        at=5.0, source=record.status, target=status, reason_code=ReasonCode.HEALTH_CHECKS_PASSED
    )
    return replace(record, status=status, since=5.0, story=(*record.story, move))


def test_what_is_as_it_was_left_goes_back_whole() -> None:
    assert taken_back("before", "after", "after") == "before"
    assert taken_back("before", "after", "other") == "other"
    assert taken_back(None, BEFORE, BEFORE) is None
    assert taken_back(BEFORE, None, None) is BEFORE
    assert taken_back(None, BEFORE, replace(BEFORE, epoch=7)) == replace(BEFORE, epoch=7)


def test_each_part_goes_back_unless_it_has_changed_since() -> None:
    after = replace(BEFORE, cordoned="fans", drain=DRAIN)
    present = replace(after, cordoned="fans and dust", healthy_beats=3)
    assert taken_back(BEFORE, after, present) == replace(BEFORE, cordoned="fans and dust", healthy_beats=3)


def test_parts_of_a_part_go_back_by_themselves() -> None:
    before, after = NodeKeys(joined_by="old"), NodeKeys(joined_by="new")
    present = replace(after, spent=True)
    assert taken_back(before, after, present) == NodeKeys(joined_by="old", spent=True)


def test_a_status_goes_back_with_all_that_belongs_to_it_or_not_at_all() -> None:
    after = moved(BEFORE, NodeStatus.READY)
    assert not has_moved(after, after)
    assert taken_back(BEFORE, after, replace(after, epoch=2)) == replace(BEFORE, epoch=2)
    present = moved(after, NodeStatus.DEGRADED)
    assert has_moved(after, present)
    assert taken_back(BEFORE, after, present) == present


def test_what_happened_to_a_node_is_no_decision_and_stays() -> None:
    after = replace(BEFORE, epoch=1, heard_at=5.0, suspected=False)
    parts = parts_of_node(replace(BEFORE, heard_at=1.0, suspected=True), after, after)
    assert parts["epoch"] == 0
    assert not {"heard_at", "suspected", "connection", "claims"} & set(parts)


def test_a_connection_goes_back_in_what_is_only_remembered() -> None:
    after = replace(BEFORE, connection=2, epoch=1)
    assert taken_back(BEFORE, after, replace(after, cordoned="fans")).connection == 1
    assert taken_back(BEFORE, after, replace(after, cordoned="fans", connection=3)).connection == 3
