import io

import pytest

from gpu_agent.cli.output.screen import LiveLines, timed_lines
from gpu_agent.cli.output.streams import StatusLine
from gpu_agent.cli.output.text import line, plain_text
from tests.cli.terminal import terminal


@pytest.mark.parametrize("whole_screen", [False, True])
def test_lines_are_redrawn_and_the_terminal_is_restored(
    monkeypatch: pytest.MonkeyPatch, *, whole_screen: bool
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    written = io.StringIO()
    with LiveLines(whole_screen=whole_screen, terminal=written) as live:
        live.draw([line("first")])
        live.draw([line("second " * 20)])
    said = written.getvalue()
    assert "first" in said
    assert f"{('second ' * 20)[:39]}…" in said
    assert ("\x1b[?1049h" in said) == whole_screen
    assert said.rfind("\x1b[?25h") > said.rfind("\x1b[?25l")


def test_what_is_printed_above_stays_above_the_lines() -> None:
    written = io.StringIO()
    with LiveLines(terminal=written) as live:
        live.draw([line("table"), line("sum")])
        live.print_above([line("happened")])
    _, _, after = written.getvalue().partition("happened")
    assert written.getvalue().endswith("\r\n")
    assert after.index("table") < after.index("sum")
    _, _, moved = written.getvalue().partition("sum")
    assert moved.index("\x1b[1A") < moved.index("happened")


def test_what_does_not_fit_behind_the_time_goes_on_below_it() -> None:
    first, second = map(plain_text, timed_lines(line("no node takes it now: 1 gpu_unavailable"), 40))
    assert first.endswith("  no node takes it now: 1")
    assert second == f"{' ' * 10}gpu_unavailable"


def test_without_a_terminal_each_change_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with StatusLine() as line:
        for words, left in (("2 jobs", ", 9 s left"), ("2 jobs", ", 8 s left"), ("1 job", "")):
            line.show(words, left=left, more=": a, b")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "2 jobs, 9 s left: a, b\n1 job: a, b\n")


def test_on_a_terminal_the_line_is_redrawn_within_its_width_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch, "stderr", columns=18) as person:
        with StatusLine() as line:
            line.show("2 jobs", left=", 9 s left", more=": a, b")
        assert person.said() == "\r\x1b[K2 jobs, 9 s left:\r\x1b[K"


def test_a_quiet_line_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with StatusLine(quiet=True) as line:
        line.show("2 jobs")
    assert capsys.readouterr().err == ""
