from datetime import datetime

import pytest

from gpu_agent.runtime.schedule import DAYS, Window, parse


def at(moment: str) -> datetime:
    """A moment of a week that begins on a Monday, as `mon 18:00`."""
    day, hour = moment.split()
    return datetime.fromisoformat(f"2026-11-{23 + DAYS.index(day)}T{hour}")


@pytest.mark.parametrize(
    ("entries", "allowed", "not_allowed"),
    [
        (
            ["mon-fri 18:00-08:00"],
            ["mon 18:00", "tue 07:59", "sat 07:59"],
            ["mon 07:59", "mon 17:59", "sat 08:00"],
        ),
        (["sat-sun"], ["sat 00:00", "sun 23:59"], ["fri 23:59", "mon 00:00"]),
        (["22:00-06:00"], ["wed 22:00", "mon 05:59", "mon 00:00"], ["sun 21:59", "thu 06:00"]),
        (["sun 20:00-04:00"], ["sun 20:00", "mon 03:59"], ["mon 04:00", "sun 03:00"]),
        (["fri-mon 9:00-10:00"], ["fri 09:00", "mon 09:59"], ["tue 09:30"]),
        (["mon,wed 00:00-24:00"], ["mon 00:00", "wed 23:59"], ["tue 12:00"]),
        (["MON 01:00-02:00", "tue"], ["mon 01:00", "tue 23:00"], ["mon 02:00"]),
    ],
)
def test_a_moment_is_allowed_in_any_window(
    entries: list[str], allowed: list[str], not_allowed: list[str]
) -> None:
    schedule = parse(entries)
    assert [moment for moment in allowed if not schedule.allows(at(moment))] == []
    assert [moment for moment in not_allowed if schedule.allows(at(moment))] == []


@pytest.mark.parametrize(
    ("moment", "opens"), [("mon 12:00", "mon 18:00"), ("sat 09:00", "mon 18:00"), ("mon 07:00", "mon 18:00")]
)
def test_the_next_opening_is_named(moment: str, opens: str) -> None:
    assert parse(["mon-fri 18:00-08:00"]).next_opening(at(moment)) == opens


def test_a_window_that_runs_now_opens_next_when_it_next_begins() -> None:
    assert parse(["mon 10:00-11:00", "tue 09:05-10:00"]).next_opening(at("mon 11:00")) == "tue 09:05"


def test_a_schedule_is_minutes_of_the_week() -> None:
    assert parse(["tue 01:30-03:00"]).windows == (Window(1440 + 90, 90),)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("", "is no part of a week: write it like mon-fri 18:00-08:00"),
        ("mon fri 18:00-08:00", "is no part of a week"),
        ("mon-fry", "'fry' is no day; there are mon, tue"),
        ("mon-", "'' is no day"),
        ("\uff11\uff18:00-20:00", "are no hours"),
        ("mon 18-20", "is no part of a week"),
        ("mon 18:00", "'18:00' are no hours"),
        ("mon 24:00-25:00", "from 0:00 to 24:00"),
        ("mon 10:60-11:00", "from 0:00 to 24:00"),
        ("mon 10:00-10:00", "leave the hours out to mean the whole day"),
    ],
)
def test_what_is_no_schedule_is_refused_with_how_to_write_it(entry: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse([entry])
