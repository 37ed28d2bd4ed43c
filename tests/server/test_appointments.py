from gpu_agent.server.appointments import LATEST_SECONDS, SOONEST_SECONDS, Appointments


def test_everybody_gets_the_next_place_as_fast_as_others_are_served() -> None:
    appointments, now = Appointments(), 100.0
    for _ in range(800):
        now += 0.01  # a hundred a second
        appointments.served(now)
    given = [appointments.next_in(now) for _ in range(1000)]
    assert given[0] == SOONEST_SECONDS + 1
    assert given == sorted(given)
    assert 11 <= given[-1] <= 14  # a thousand take ten seconds


def test_places_that_nobody_asked_for_are_not_kept() -> None:
    appointments = Appointments()
    for _ in range(500):
        appointments.next_in(100.0)
    assert appointments.next_in(200.0) == SOONEST_SECONDS + 1


def test_nobody_is_kept_away_for_long_however_many_ask() -> None:
    appointments = Appointments()
    assert max(appointments.next_in(100.0) for _ in range(100_000)) == LATEST_SECONDS
