import pytest

from gpu_agent.cli.lines import Piece, line
from gpu_agent.cli.terminal import columns, show
from tests.cli.a_terminal import terminal

LINES = [line(Piece("[red]", "green"), "  ", Piece("x" * 200))]


def test_a_pipe_gets_plain_words_and_has_no_width(capsys: pytest.CaptureFixture[str]) -> None:
    assert columns() is None
    show(LINES)
    assert capsys.readouterr().out == f"[red]  {'x' * 200}\n"


def test_a_terminal_gets_colours_and_lines_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    with terminal(monkeypatch, "stdout", columns=100) as person:
        assert columns() == 100
        show(LINES)
        assert person.said() == f"\x1b[32m[red]\x1b[0m  {'x' * 200}\r\n"


def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    with terminal(monkeypatch, "stdout") as person:
        show(LINES)
        assert "\x1b" not in person.said()
