import math
from typing import Any

import pytest

from gpu_agent.session.draining import OwnDrain
from gpu_agent.session.events import DrainAsked
from gpu_agent.session.settings import SessionSettings
from gpu_agent.wire.messages import NodeStatusMessage, NodeUnregister


def told(status: str, **more: Any) -> NodeStatusMessage:  # noqa: ANN401 - fields of the message
    return NodeStatusMessage.model_validate({"node_id": "n", "status": status, **more})


def asked(deadline_seconds: float | None = None) -> OwnDrain:
    """A drain asked for at 100."""
    drain = OwnDrain(SessionSettings())
    drain.begin(DrainAsked("new fans", deadline_seconds), 100.0)
    return drain


def deadline_of(drain: OwnDrain, now: float) -> float | None:
    request = drain.request("n", now)
    assert request is not None
    return request.deadline_seconds


def test_without_a_wish_nothing_is_asked_and_nothing_is_over() -> None:
    drain = OwnDrain(SessionSettings())
    assert (drain.reason, drain.request("n", 1.0), drain.overdue_at) == (None, None, math.inf)
    assert not drain.heed(told("offline"), 1.0)
    assert not drain.lift()


def test_a_wish_is_told_with_what_is_left_of_its_deadline() -> None:
    drain = asked(60)
    request = drain.request("n", 100.0)
    assert request == NodeUnregister(node_id="n", reason="new fans", drain=True, deadline_seconds=60)
    assert deadline_of(drain, 150.0) == 10
    assert deadline_of(drain, 500.0) == 0


def test_without_a_deadline_the_registry_is_left_to_say_and_its_word_counts_from_then_on() -> None:
    drain = asked()
    assert deadline_of(drain, 100.0) is None
    assert drain.until == 700
    assert not drain.heed(told("draining", timestamp=5000, details={"drain_deadline": 5030}), 110.0)
    assert drain.until == 140
    assert deadline_of(drain, 120.0) == 20


def test_a_newer_wish_replaces_the_older() -> None:
    drain = asked(60)
    drain.begin(DrainAsked("newer", 5), 110.0)
    assert (drain.reason, drain.until) == ("newer", 115)


def test_an_offline_verdict_is_its_end() -> None:
    assert asked(60).heed(told("offline"), 101.0)


def test_a_registry_that_knows_of_it_no_more_has_lifted_it() -> None:
    drain = asked(60)
    drain.heed(told("draining", timestamp=1, details={"drain_deadline": 61}), 101.0)
    assert not drain.heed(told("registering", reason_code="resumed", details={}), 102.0)
    assert drain.reason is None


def test_a_status_from_before_the_registry_heard_of_it_lifts_nothing() -> None:
    drain = asked(60)
    drain.heed(told("draining", timestamp=1, details={"drain_deadline": 61}), 101.0)
    drain.request("n", 110.0)  # over a new connection, where the ack comes with a status of its own
    assert not drain.heed(told("registering", reason_code="resumed", details={}), 110.1)
    assert drain.reason == "new fans"


@pytest.mark.parametrize("status", ["draining", "ready"])
def test_a_scheduler_that_tells_no_details_lifts_nothing(status: str) -> None:
    drain = asked(60)
    assert not drain.heed(told(status), 101.0)
    assert (drain.reason, drain.until) == ("new fans", 160)
