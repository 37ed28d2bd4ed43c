import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_agent.cli.lines import Line, Piece, line, plain, room, width, wrapped

WORDS = st.lists(
    st.tuples(st.text(st.sampled_from("ab 机\u0301é"), max_size=12), st.sampled_from(["", "red"])), max_size=5
)


def test_a_line_holds_pieces_and_leaves_out_what_is_empty() -> None:
    assert line("a", "", None, Piece("b", "red"), 7) == (Piece("a"), Piece("b", "red"), Piece("7"))


def test_what_could_act_on_a_terminal_is_written_out() -> None:
    assert plain(line("\x1b[2J", Piece("\r", "red"))) == "\\x1b[2J\\r"


@pytest.mark.parametrize(("text", "columns"), [("abc", 3), ("机械", 4), ("e\u0301", 1), ("é", 1), ("", 0)])
def test_letters_take_the_room_that_a_terminal_gives_them(text: str, columns: int) -> None:
    assert room(text) == columns
    assert width((Piece(text),)) == columns


@pytest.mark.parametrize(
    ("text", "columns", "parts"),
    [
        ("one two three", 7, ["one two", "three"]),
        ("one two three", 80, ["one two three"]),
        ("onetwothree", 4, ["onet", "woth", "ree"]),
        ("机械机械", 5, ["机械", "机械"]),
        ("  ", 5, [""]),
        ("", 5, [""]),
    ],
)
def test_lines_break_between_words_and_inside_only_those_that_cannot_fit(
    text: str, columns: int, parts: list[str]
) -> None:
    assert [plain(part) for part in wrapped((Piece(text),), columns)] == parts


def test_words_keep_their_style_when_a_line_breaks() -> None:
    assert wrapped((Piece("red red", "red"), Piece(" plain")), 5) == [
        (Piece("red", "red"),),
        (Piece("red", "red"),),
        (Piece("plain"),),
    ]


@given(WORDS, st.integers(2, 20))
def test_no_part_is_wider_than_asked_and_no_letter_is_lost(
    words: list[tuple[str, str]], columns: int
) -> None:
    whole: Line = tuple(Piece(*one) for one in words)
    parts = wrapped(whole, columns)
    assert all(width(part) <= columns for part in parts)
    assert "".join(map(plain, parts)).replace(" ", "") == plain(whole).replace(" ", "")
