from dataclasses import replace

from gpu_agent.node.snapshot import SessionTimes
from gpu_agent.session.types import State
from tests.node.control_harness import READY, VIEW


def test_before_anything_happened_nothing_is_known() -> None:
    course = SessionTimes()
    assert (course.state_since, course.status_received_at, course.last_heartbeat_at) == (None, None, None)


def test_a_state_stands_since_it_was_entered_and_a_verdict_since_it_was_told_last() -> None:
    course = SessionTimes()
    course.note(VIEW, 1.0)
    course.note(VIEW, 2.0)
    assert (course.state_since, course.status_received_at) == (1.0, 1.0)
    course.note(replace(VIEW, registry_status=READY.model_copy()), 3.0)
    assert (course.state_since, course.status_received_at) == (1.0, 3.0)
    course.note(replace(VIEW, state=State.BACKING_OFF), 4.0)
    assert course.state_since == 4.0


def test_the_last_beat_counts() -> None:
    course = SessionTimes()
    course.beat(5.0)
    course.beat(7.0)
    assert course.last_heartbeat_at == 7.0


def test_the_link_stands_since_the_registry_heard_this_node_or_no_longer_did() -> None:
    course = SessionTimes()
    moves = [
        State.IDLE,
        State.CONNECTING,
        State.REGISTERED,
        State.LEAVING,
        State.BACKING_OFF,
        State.CONNECTING,
    ]
    since = []
    for now, state in enumerate(moves):
        course.note(replace(VIEW, state=state), float(now))
        since.append(course.link_since)
    assert since == [0.0, 0.0, 2.0, 2.0, 4.0, 4.0]
