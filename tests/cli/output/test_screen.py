import io

import pytest
from rich.console import Console

from gpu_agent.cli.output.screen import LiveLines
from gpu_agent.cli.output.streams import StatusLine
from gpu_agent.cli.output.text import line
from tests.cli.terminal import terminal


@pytest.mark.parametrize("whole_screen", [False, True])
def test_lines_are_redrawn_and_the_terminal_is_restored(*, whole_screen: bool) -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=40, height=10)
    with LiveLines(console, whole_screen=whole_screen) as live:
        live.draw([line("first")])
        live.draw([line("second " * 20)])
    said = written.getvalue()
    assert "first" in said
    assert "second" in said
    assert ("\x1b[?1049h" in said) == whole_screen
    assert said.rfind("\x1b[?25h") > said.rfind("\x1b[?25l")


def test_without_a_terminal_each_change_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with StatusLine() as line:
        for words, left in (("2 jobs", ", 9 s left"), ("2 jobs", ", 8 s left"), ("1 job", "")):
            line.show(words, left=left, more=": a, b")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "2 jobs: a, b\n1 job: a, b\n")


def test_on_a_terminal_the_line_is_redrawn_within_its_width_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch, "stderr", columns=18) as person:
        with StatusLine() as line:
            line.show("2 jobs", left=", 9 s left", more=": a, b")
        assert person.said() == "\r\x1b[K2 jobs, 9 s left:\r\x1b[K"


def test_a_quiet_line_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with StatusLine(quiet=True) as line:
        line.show("2 jobs")
    assert capsys.readouterr().err == ""
