"""A weekly schedule as an owner writes it: `mon-fri 18:00-08:00`, `sat-sun`, `22:00-06:00`.

Hours that pass midnight belong to the day on which they begin.
"""

import re
import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BeforeValidator
from pydantic_settings import NoDecode

from gpu_agent.records import dataclass

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY, _HOUR = 24 * 60, 60
_WEEK = len(DAYS) * _DAY
_HOURS = re.compile(r"(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})", re.ASCII)
_EXAMPLE = "write it like mon-fri 18:00-08:00, sat-sun or 22:00-06:00"


@dataclass(frozen=True, slots=True)
class Window:
    """A span of the week, in minutes since Monday, 0:00."""

    begins: int
    lasts: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """When something is allowed: in any of its windows."""

    windows: tuple[Window, ...]

    def allows(self, local: datetime) -> bool:
        """Whether a moment of local time is in a window."""
        minute = _minute_of(local)
        return any((minute - window.begins) % _WEEK < window.lasts for window in self.windows)

    def next_opening(self, local: datetime) -> str:
        """When the next window begins, as `mon 18:00`. A schedule has at least one."""
        minute = _minute_of(local)
        begins = min((window.begins for window in self.windows), key=lambda at: (at - minute) % _WEEK)
        return f"{DAYS[begins // _DAY]} {begins % _DAY // _HOUR:02}:{begins % _HOUR:02}"


def parse(entries: Iterable[str]) -> Schedule:
    """Read a schedule; raises `ValueError` with the next step."""
    return Schedule(tuple(window for entry in entries for window in _windows(entry)))


def local_time(zone: str | None) -> datetime:
    """The time in a zone; None means the machine's zone, which may change while the program runs."""
    if zone is not None:
        return datetime.fromtimestamp(time.time(), ZoneInfo(zone))
    if hasattr(time, "tzset"):  # not on Windows
        time.tzset()
    return datetime.fromtimestamp(time.time())  # noqa: DTZ006 - the machine's own zone, as it is now


def _minute_of(local: datetime) -> int:
    return local.weekday() * _DAY + local.hour * _HOUR + local.minute


def _windows(entry: str) -> Iterator[Window]:
    words = entry.lower().split()
    hours = words.pop() if words and ":" in words[-1] else None
    if len(words) > 1 or not (words or hours):
        raise ValueError(f"{entry!r} is no part of a week: {_EXAMPLE}")
    days = _days(words[0], entry) if words else range(len(DAYS))
    begins, lasts = (0, _DAY) if hours is None else _span(hours, entry)
    return (Window(day * _DAY + begins, lasts) for day in days)


def _days(written: str, entry: str) -> list[int]:
    found: list[int] = []
    for part in written.split(","):
        first, dash, last = part.partition("-")
        begin, end = _day(first, entry), _day(last if dash else first, entry)
        found += [(begin + ahead) % len(DAYS) for ahead in range((end - begin) % len(DAYS) + 1)]
    return found


def _day(written: str, entry: str) -> int:
    if written not in DAYS:
        raise ValueError(f"{entry!r}: {written!r} is no day; there are {', '.join(DAYS)}")
    return DAYS.index(written)


def _span(written: str, entry: str) -> tuple[int, int]:
    match = _HOURS.fullmatch(written)
    if match is None:
        raise ValueError(f"{entry!r}: {written!r} are no hours: {_EXAMPLE}")
    begin_hour, begin_minute, end_hour, end_minute = map(int, match.groups())
    begins, ends = begin_hour * _HOUR + begin_minute, end_hour * _HOUR + end_minute
    if max(begin_minute, end_minute) >= _HOUR or begins >= _DAY or ends > _DAY:
        raise ValueError(f"{entry!r}: {written!r} are no hours of a day, which go from 0:00 to 24:00")
    if begins == ends:
        raise ValueError(f"{entry!r}: it begins as it ends; leave the hours out to mean the whole day")
    return begins, (ends - begins) % _DAY or _DAY


def _split_hours(value: object) -> object:
    """Accept `a; b` where a list of hours is meant: a variable has no lists."""
    if not isinstance(value, str):
        return value
    return tuple(entry.strip() for entry in value.split(";") if entry.strip())


def _check_hours(entry: str) -> str:
    parse([entry])
    return entry


def _check_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(_unknown_zone()) from None
    return name


def _unknown_zone() -> str:
    try:
        ZoneInfo("UTC")
    except ZoneInfoNotFoundError:  # as in many slim images
        return "this machine has no time zones; install its package tzdata, or `pip install tzdata`"
    return "this machine knows no such time zone; write it like Europe/Berlin"


Hours = Annotated[
    tuple[Annotated[str, AfterValidator(_check_hours)], ...], BeforeValidator(_split_hours), NoDecode
]
"""A setting: the hours of a week."""
TimeZone = Annotated[str, AfterValidator(_check_zone)]
"""A setting: the name of a time zone."""
