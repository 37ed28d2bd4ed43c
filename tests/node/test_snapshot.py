from dataclasses import replace

from gpu_agent.node.snapshot import SessionTimes
from gpu_agent.session.types import State
from tests.node.control_harness import READY, VIEW


def test_before_the_first_event_no_time_is_known() -> None:
    times = SessionTimes()
    assert (times.state_since, times.status_received_at, times.last_heartbeat_at) == (None, None, None)


def test_a_state_counts_from_its_entry_and_a_status_from_its_last_message() -> None:
    times = SessionTimes()
    times.update(VIEW, 1.0)
    times.update(VIEW, 2.0)
    assert (times.state_since, times.status_received_at) == (1.0, 1.0)
    times.update(replace(VIEW, registry_status=READY.model_copy()), 3.0)
    assert (times.state_since, times.status_received_at) == (1.0, 3.0)
    times.update(replace(VIEW, state=State.BACKING_OFF), 4.0)
    assert times.state_since == 4.0


def test_the_link_counts_from_the_last_change_between_connected_and_not() -> None:
    times = SessionTimes()
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
        times.update(replace(VIEW, state=state), float(now))
        since.append(times.link_since)
    assert since == [0.0, 0.0, 2.0, 2.0, 4.0, 4.0]
