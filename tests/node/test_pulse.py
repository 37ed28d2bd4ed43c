from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_agent.node.pulse import MOST_HELD_UP_SECONDS, PROBE_SLACK_SECONDS, Signs, ailment

NOW = 1000.0
LATE = MOST_HELD_UP_SECONDS + 1
WELL = Signs(busy_since=None, deadline=NOW + 5, probed_at=NOW - 4, probe_patience_seconds=25)


def test_an_agent_that_waits_for_its_deadline_is_well() -> None:
    assert ailment(WELL, NOW) is None


def test_a_registry_that_is_away_makes_nobody_ill_however_long_the_session_backs_off() -> None:
    assert ailment(replace(WELL, deadline=NOW + 3600), NOW) is None
    assert ailment(replace(WELL, deadline=None), NOW) is None


def test_an_event_that_does_not_end_is_told_with_its_age() -> None:
    stuck = replace(WELL, busy_since=NOW - LATE)
    assert ailment(stuck, NOW) == f"one event has been under way for {LATE:.0f} s"
    assert ailment(replace(WELL, busy_since=NOW - MOST_HELD_UP_SECONDS), NOW) is None


def test_a_deadline_that_passed_and_woke_nobody_is_told() -> None:
    missed = replace(WELL, deadline=NOW - LATE)
    assert ailment(missed, NOW) == f"the session's deadline passed {LATE:.0f} s ago"
    assert ailment(replace(WELL, deadline=NOW - MOST_HELD_UP_SECONDS), NOW) is None


def test_a_deadline_that_passes_while_an_event_is_carried_out_has_that_event_s_time() -> None:
    assert ailment(replace(WELL, deadline=NOW - LATE, busy_since=NOW - 1), NOW) is None


def test_a_probe_that_does_not_come_round_is_told() -> None:
    age = WELL.probe_patience_seconds + PROBE_SLACK_SECONDS
    assert ailment(replace(WELL, probed_at=NOW - age), NOW) is None
    standing = replace(WELL, probed_at=NOW - age - 1)
    assert ailment(standing, NOW) == f"the probe has not come round for {age + 1:.0f} s"


@pytest.mark.parametrize("name", ["busy_since", "deadline", "probed_at"])
@given(later=st.floats(0, 1e6))
def test_whoever_is_ill_does_not_get_well_by_waiting(name: str, later: float) -> None:
    ill = replace(WELL, **{name: NOW - 1000})
    assert ailment(ill, NOW) is not None
    assert ailment(ill, NOW + later) is not None
