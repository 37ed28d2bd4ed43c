"""Times as people write and read them: `90s`, `10m`, `24h`, `7d`; "3 h", "2 d"; `14:05:09`.

A number without a unit is refused: it would be easy to mean another one.
"""

import re
import time
from collections.abc import Callable

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_WORDS = {"s": "s", "m": "min", "h": "h", "d": "d"}
_PART = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)([smhd])")
_WHOLE = re.compile(rf"(?:{_PART.pattern})+")
_ENOUGH = 2
"""How many of a unit there must be before a length is given in it: "90 min", then "2 h"."""

LONGEST_SECONDS = 10 * 365 * 86400.0
"""The most that the registry accepts."""


def parse_duration(text: str) -> float:
    """Read a length of time; raises `ValueError` with what is wrong."""
    written = text.strip().lower()
    if _WHOLE.fullmatch(written) is None:
        raise ValueError(_duration_fault(text))
    length = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(written))
    if length > LONGEST_SECONDS:
        raise ValueError(f"{text!r} is too long: ten years (3650d) at the most")
    return length


def duration_between(shortest: str, longest: str) -> Callable[[str], float]:
    """Return what reads a length of time between two, both included."""
    least, most = parse_duration(shortest), parse_duration(longest)

    def parse(text: str) -> float:
        length = parse_duration(text)
        if least <= length <= most:
            return length
        raise ValueError(f"{text!r} is not between {shortest} and {longest}")

    return parse


def duration_in_words(length: float) -> str:
    """Give a length in the largest unit of which there are two, in whole units."""
    unit = next((unit for unit in "dhm" if length >= _ENOUGH * _UNITS[unit]), "s")
    return f"{max(0.0, length) // _UNITS[unit]:.0f} {_WORDS[unit]}"


def clock(at: float, now: float) -> str:
    """Give the local time of day; with the date when that is more than a day ago."""
    pattern = "%H:%M:%S" if abs(now - at) < _UNITS["d"] else "%Y-%m-%d %H:%M:%S"
    return time.strftime(pattern, time.localtime(at))


def local_time(at: float) -> str:
    """Give the local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _duration_fault(text: str) -> str:
    number = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*", text)
    if number:
        return f"{text!r} has no unit: write {number[1]}s, {number[1]}m, {number[1]}h or {number[1]}d"
    return f"{text!r} is no length of time: write it like 90s, 10m, 24h or 7d"
