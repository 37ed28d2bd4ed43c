from itertools import product

import pytest

from gpu_agent.registry.lifecycle import (
    ARROWS,
    STORY_LENGTH,
    IllegalTransitionError,
    move,
    status_of,
    told,
)
from gpu_agent.registry.record import NodeRecord, Transition
from gpu_agent.wire.codes import NodeStatus, ReasonCode
from tests.registry.fleets import declaration, hardware

REGISTERING, READY, DEGRADED, DRAINING, OFFLINE = NodeStatus

ARROWS_OF_THE_PAGE = {
    (None, REGISTERING): "registered",
    (REGISTERING, REGISTERING): "registered",
    (READY, REGISTERING): "registered",
    (DEGRADED, REGISTERING): "registered",
    (OFFLINE, REGISTERING): "registered resumed",
    (DRAINING, REGISTERING): "resumed",
    (REGISTERING, READY): "health_checks_passed",
    (REGISTERING, DEGRADED): "model_missing gpu_unavailable warmup_timeout",
    (READY, DEGRADED): "gpu_unavailable model_missing health_checks_failed flapping",
    (DEGRADED, READY): "recovered",
    (READY, DRAINING): "drain_requested",
    (DEGRADED, DRAINING): "drain_requested",
    (DRAINING, OFFLINE): "drain_complete drain_deadline heartbeat_timeout unregistered removed",
    (REGISTERING, OFFLINE): "heartbeat_timeout unregistered removed",
    (READY, OFFLINE): "heartbeat_timeout unregistered removed",
    (DEGRADED, OFFLINE): "heartbeat_timeout unregistered removed",
}
"""The table of §4, written down a second time."""


def node(status: NodeStatus | None) -> NodeRecord:
    record = NodeRecord(node_id="node-1", registration=declaration(), hardware=hardware(), registered_at=0.0)
    if status is not None:
        record.status = status
        record.story = (Transition(at=1.0, source=None, target=status, reason_code=ReasonCode.REGISTERED),)
    return record


@pytest.mark.parametrize(
    ("source", "target", "reason_code"),
    list(product((None, *NodeStatus), NodeStatus, ReasonCode)),
    ids=str,
)
def test_every_arrow_of_the_page_exists_and_no_other(
    source: NodeStatus | None, target: NodeStatus, reason_code: ReasonCode
) -> None:
    record = node(source)
    before = repr(record)
    if reason_code in ARROWS_OF_THE_PAGE.get((source, target), "").split():
        move(record, target, reason_code=reason_code, reason="because", now=7.0)
        assert (record.status, record.reason_code, record.reason) == (target, reason_code, "because")
        assert (record.previous_status, record.since) == (source, 7.0)
    else:
        with pytest.raises(IllegalTransitionError):
            move(record, target, reason_code=reason_code, reason="because", now=7.0)
        assert repr(record) == before


def test_the_table_holds_nothing_beyond_the_page() -> None:
    assert ARROWS.keys() == ARROWS_OF_THE_PAGE.keys()


def test_an_illegal_arrow_is_refused_with_the_nodes_story() -> None:
    record = node(None)
    move(record, REGISTERING, reason_code=ReasonCode.REGISTERED, reason="", now=10.0)
    move(record, READY, reason_code=ReasonCode.HEALTH_CHECKS_PASSED, reason="", now=16.0)
    with pytest.raises(IllegalTransitionError) as refused:
        move(record, READY, reason_code=ReasonCode.RECOVERED, reason="", now=17.0)
    assert str(refused.value) == (
        "node node-1: no arrow ready → ready for recovered; its story: "
        "none → registering (registered, -6.000 s) → ready (health_checks_passed, 0.000 s)"
    )


def test_a_record_without_a_story_has_no_status_yet() -> None:
    assert status_of(node(None)) is None
    assert status_of(node(READY)) is READY
    assert told(()) == "not begun"


def test_a_story_keeps_only_the_last_changes() -> None:
    record = node(None)
    for turn in range(STORY_LENGTH + 3):
        move(record, REGISTERING, reason_code=ReasonCode.REGISTERED, reason="", now=float(turn))
    assert len(record.story) == STORY_LENGTH
    assert record.story[-1].at == STORY_LENGTH + 2
