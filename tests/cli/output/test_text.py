import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_agent.cli.output.text import (
    ASCII_GLYPHS,
    BLANK,
    UNICODE_GLYPHS,
    Line,
    Piece,
    bar,
    glyphs,
    line,
    line_width,
    plain_text,
    print_json,
    print_lines,
    printable,
    terminal_columns,
    text_width,
    wrap,
)
from tests.cli.terminal import terminal

WORDS = st.lists(
    st.tuples(st.text(st.sampled_from("ab 机\u0301é"), max_size=12), st.sampled_from(["", "red"])), max_size=5
)


def test_a_line_holds_pieces_and_leaves_out_what_is_empty() -> None:
    assert line("a", "", None, Piece("b", "red"), 7) == (Piece("a"), Piece("b", "red"), Piece("7"))


def test_what_could_act_on_a_terminal_is_written_out() -> None:
    assert plain_text(line("\x1b[2J", Piece("\r", "red"))) == "\\x1b[2J\\r"


@pytest.mark.parametrize(("text", "columns"), [("abc", 3), ("机械", 4), ("e\u0301", 1), ("é", 1), ("", 0)])
def test_letters_take_the_room_that_a_terminal_gives_them(text: str, columns: int) -> None:
    assert text_width(text) == columns
    assert line_width((Piece(text),)) == columns


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
    assert [plain_text(part) for part in wrap((Piece(text),), columns)] == parts


def test_words_keep_their_style_when_a_line_breaks() -> None:
    assert wrap((Piece("red red", "red"), Piece(" plain")), 5) == [
        (Piece("red", "red"),),
        (Piece("red", "red"),),
        (Piece("plain"),),
    ]


def test_a_change_of_style_is_no_place_to_break_a_line() -> None:
    words = (Piece("8 GPUs", "dim"), Piece(", 4 lost", "red"), Piece("; done", "dim"))
    assert [plain_text(part) for part in wrap(words, 14)] == ["8 GPUs, 4", "lost; done"]


@pytest.mark.parametrize("figure", ["4 s", "15 min", "80 GiB", "12 %"])
def test_a_figure_stays_with_its_unit(figure: str) -> None:
    assert [plain_text(part) for part in wrap(line(f"aged {figure} long"), 7)] == ["aged", figure, "long"]


@given(WORDS, st.integers(2, 20))
def test_no_part_is_wider_than_asked_and_no_letter_is_lost(
    words: list[tuple[str, str]], columns: int
) -> None:
    whole: Line = tuple(Piece(*one) for one in words)
    parts = wrap(whole, columns)
    assert all(line_width(part) <= columns for part in parts)
    assert "".join(map(plain_text, parts)).replace(" ", "") == plain_text(whole).replace(" ", "")


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        ("GPU-1 “zwölf” 機械", "GPU-1 “zwölf” 機械"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("two\nlines\r", "two\\nlines\\r"),
        ("\u202eturned", "\\u202eturned"),
        (7, "7"),
    ],
)
def test_what_could_act_on_a_terminal_is_written_out__printable(words: object, printed: str) -> None:
    assert printable(words) == printed


LINES = [line(Piece("[red]", "green"), "  ", Piece("x" * 200))]


def test_a_pipe_gets_plain_words_and_has_no_width(capsys: pytest.CaptureFixture[str]) -> None:
    assert terminal_columns() is None
    print_lines(LINES)
    assert capsys.readouterr().out == f"[red]  {'x' * 200}\n"


def test_a_terminal_gets_colours_and_lines_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    with terminal(monkeypatch, "stdout", columns=100) as person:
        assert terminal_columns() == 100
        print_lines(LINES)
        assert person.said() == f"\x1b[32m[red]\x1b[0m  {'x' * 200}\r\n"


def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    with terminal(monkeypatch, "stdout") as person:
        print_lines(LINES)
        assert "\x1b" not in person.said()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "no-such-encoding"])
def test_an_encoding_without_blocks_gets_plain_letters(encoding: str) -> None:
    assert glyphs(encoding) is ASCII_GLYPHS


def test_an_encoding_with_blocks_gets_them() -> None:
    assert glyphs("utf-8") is UNICODE_GLYPHS


@pytest.mark.parametrize(
    ("share", "drawn"),
    [(0.0, "░░░░"), (0.001, "█░░░"), (0.5, "██░░"), (1.0, "████"), (7.0, "████"), (-1.0, "░░░░")],
)
def test_a_bar_has_its_length_whatever_the_share(share: float, drawn: str) -> None:
    assert plain_text(bar(share, 4, UNICODE_GLYPHS)) == drawn


def test_an_unknown_share_has_no_bar() -> None:
    assert bar(None, 4, UNICODE_GLYPHS) == BLANK


def test_a_full_bar_warns_by_its_colour() -> None:
    assert [bar(share, 8, ASCII_GLYPHS)[0].style for share in (0.5, 0.8, 0.95)] == ["cyan", "yellow", "red"]


def test_json_keeps_every_word(capsys: pytest.CaptureFixture[str]) -> None:
    document = {"b": ["é\x1b"], "a": None}
    print_json(document)
    said = capsys.readouterr().out
    assert json.loads(said) == document
    assert said.isascii()
