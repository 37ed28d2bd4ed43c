import pytest

from gpu_agent.cli.bars import PLAIN, RICH, bar, letters
from gpu_agent.cli.lines import BLANK, plain


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "no-such-encoding"])
def test_an_encoding_without_blocks_gets_plain_letters(encoding: str) -> None:
    assert letters(encoding) is PLAIN


def test_an_encoding_with_blocks_gets_them() -> None:
    assert letters("utf-8") is RICH


@pytest.mark.parametrize(
    ("share", "drawn"),
    [(0.0, "░░░░"), (0.001, "█░░░"), (0.5, "██░░"), (1.0, "████"), (7.0, "████"), (-1.0, "░░░░")],
)
def test_a_bar_has_its_length_whatever_the_share(share: float, drawn: str) -> None:
    assert plain(bar(share, 4, RICH)) == drawn


def test_an_unknown_share_has_no_bar() -> None:
    assert bar(None, 4, RICH) == BLANK


def test_a_full_bar_warns_by_its_colour() -> None:
    assert [bar(share, 8, PLAIN)[0].style for share in (0.5, 0.8, 0.95)] == ["cyan", "yellow", "red"]
