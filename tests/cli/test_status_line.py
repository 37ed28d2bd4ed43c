import pytest

from gpu_agent.cli.status_line import StatusLine
from tests.cli.a_terminal import terminal


def test_without_a_terminal_each_change_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with StatusLine() as line:
        for words, extra in (("2 jobs", ", 9 s"), ("2 jobs", ", 8 s"), ("1 job", "")):
            line.say(words, extra=extra)
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "2 jobs\n1 job\n")


def test_on_a_terminal_the_line_is_redrawn_within_its_width_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch, "stderr", columns=12) as person:
        with StatusLine() as line:
            line.say("2 jobs", extra=", 9 s at the latest")
        assert person.said() == "\r\x1b[K2 jobs, 9 s\r\x1b[K"


def test_a_quiet_line_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with StatusLine(quiet=True) as line:
        line.say("2 jobs")
    assert capsys.readouterr().err == ""
