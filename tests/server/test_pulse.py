import pytest

from gpu_agent.server.pulse import MOST_LATE_SECONDS, MOST_WRITING_SECONDS, Signs, ailment

NOW = 1_000_000.0


def test_a_registry_whose_clock_is_yet_to_wake_gets_on() -> None:
    assert ailment(Signs(wakes_at=NOW + 1, writing_since=None), NOW) is None


def test_a_loop_that_is_merely_busy_is_not_ill() -> None:
    assert ailment(Signs(wakes_at=NOW - MOST_LATE_SECONDS, writing_since=None), NOW) is None


def test_a_clock_that_is_not_looked_after_is_an_ailment() -> None:
    problem = ailment(Signs(wakes_at=NOW - 40, writing_since=None), NOW)
    assert problem == "the fleet's clock is 40 s late"


@pytest.mark.parametrize("seconds", [0, 10, MOST_WRITING_SECONDS])
def test_a_disk_that_takes_its_time_is_no_ailment(seconds: float) -> None:
    assert ailment(Signs(wakes_at=NOW, writing_since=NOW - seconds), NOW) is None


def test_a_store_that_does_not_come_back_is_an_ailment() -> None:
    problem = ailment(Signs(wakes_at=NOW, writing_since=NOW - 301), NOW)
    assert problem == "the store has been at one commit for 301 s"


def test_a_registry_that_stops_keeps_no_time_and_is_not_ill() -> None:
    assert ailment(Signs(wakes_at=None, writing_since=None), NOW) is None
