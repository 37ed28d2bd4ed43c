from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_agent.node.retry_after import retry_after_seconds

NOW = 1_795_517_679.0


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ([], None),
        (["7"], 7.0),
        ([" 7 "], 7.0),
        ([formatdate(NOW + 90, usegmt=True)], 90.0),
        ([formatdate(NOW - 90, usegmt=True)], 0.0),
        (["5", "6"], 5.0),
        (["soon", "", "6"], 6.0),
        (["-1"], None),
        (["1.5"], None),
        (["٣"], None),
        (["9" * 400], 999_999_999.0),
        (["Mon, 01 Jan 99999999999999999999 00:00:00 GMT"], None),
        (["Mon, 01 Jan 2024 00:00:00 +99999999999999999999"], None),
        (["Mon, 99 Foo 2024 25:61:61 GMT"], None),
    ],
)
def test_the_first_that_makes_sense_counts(written: list[str], seconds: float | None) -> None:
    assert retry_after_seconds(written, now=NOW) == seconds


_WORDS = st.sampled_from(["Mon,", "1", "Jan", "2024", "99999999999999999999", "00:00:00", "+9999", "-0", ":"])


@given(st.lists(st.text(max_size=20) | st.lists(_WORDS, max_size=8).map(" ".join), max_size=3))
def test_nothing_that_a_peer_writes_raises(written: list[str]) -> None:
    seconds = retry_after_seconds(written, now=NOW)
    assert seconds is None or seconds >= 0
