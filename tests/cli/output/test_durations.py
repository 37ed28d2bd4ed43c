import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_agent.cli.output.units import duration_in_words, parse_duration


@pytest.mark.parametrize(
    ("written", "length"),
    [
        ("90s", 90),
        ("10m", 600),
        ("24h", 86400),
        ("7d", 604800),
        ("1.5h", 5400),
        ("1h30m", 5400),
        (" 2D ", 172800),
    ],
)
def test_a_length_of_time_is_a_number_with_its_unit(written: str, length: float) -> None:
    assert parse_duration(written) == length


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("10", "has no unit: write 10s, 10m, 10h or 10d"),
        ("", "90s, 10m, 24h or 7d"),
        ("soon", "90s, 10m, 24h or 7d"),
        ("-5m", "90s, 10m, 24h or 7d"),
        ("nan", "90s, 10m, 24h or 7d"),
        ("5 m", "90s, 10m, 24h or 7d"),
        ("1e9s", "90s, 10m, 24h or 7d"),
        ("٣m", "90s, 10m, 24h or 7d"),
        ("99999d", "too long"),
    ],
)
def test_what_is_none_is_refused_with_how_to_write_it(written: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        parse_duration(written)


@pytest.mark.parametrize(
    ("length", "words"),
    [
        (0, "0 s"),
        (0.9, "0 s"),
        (-3, "0 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7199, "119 min"),
        (7200, "2 h"),
        (172799, "47 h"),
        (172800, "2 d"),
        (31e6, "358 d"),
    ],
)
def test_a_length_is_reported_in_a_unit_of_which_there_are_a_few(length: float, words: str) -> None:
    assert duration_in_words(length) == words


@given(st.text(max_size=12))
def test_any_text_is_a_length_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert parse_duration(text) >= 0
