import pytest

from tools import roff


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("--out FILE", "\\-\\-out FILE"),
        ("C:\\new", "C:\\enew"),
        ("it's ~/x ^C", "it\\(aqs \\(ti/x \\(haC"),
        ("plain words, 80 %", "plain words, 80 %"),
    ],
)
def test_nothing_in_plain_words_steers_roff(text: str, written: str) -> None:
    assert roff.escaped(text) == written


@pytest.mark.parametrize("line", [".SH no heading", "'br no request"])
def test_a_line_that_looks_like_a_request_is_none(line: str) -> None:
    assert not roff.words_of(line).startswith((".", "'"))
    assert all(not one.startswith(("'", ".SH")) for one in roff.example([line]).splitlines())


def test_what_stands_in_backquotes_is_bold() -> None:
    assert roff.words_of("see `gpu-agent run`\n now") == "see \\fBgpu\\-agent run\\fR now"


def test_blank_lines_part_paragraphs() -> None:
    assert roff.paragraphs("One\nline.\n\nAnother.\n") == "One line.\n.PP\nAnother."


def test_a_page_is_made_of_headings_sections_and_entries() -> None:
    head = roff.heading("gpu-agent", 1, date="2026-01-31", source='x "1"')
    assert head == '.TH "GPU\\-AGENT" 1 "2026-01-31" "x \\(dq1\\(dq"'
    assert roff.titled("NAME", "x") == '.SH "NAME"\nx'
    assert roff.subtitled("on a machine", "x") == '.SS "on a machine"\nx'
    assert roff.entry(roff.bold("-h"), "help") == ".TP\n\\fB\\-h\\fR\nhelp"
    assert roff.italic("x") == "\\fIx\\fR"
