from collections.abc import Mapping

import pytest

from gpu_agent.cli.command import Failure
from gpu_agent.cli.output.text import Line, Piece, line
from gpu_agent.cli.output.watch import Page, Show, State, Update, watch
from tests.cli.terminal import terminal

FOOT = Piece("of noon")


def _fitted(number: int, size: tuple[int, int]) -> tuple[list[Line], list[str]]:
    return [line(f"{number} in {size[1]} lines")], ["jobs"]


def _json(number: int) -> Mapping[str, object]:
    return {"number": number}


NUMBERS = Page(
    whole=lambda number: [line(f"number {number}")],
    fitted=_fitted,
    changes=lambda before, after: [line(f"{before} → {after}")] if before != after else [],
    json=_json,
    json_is_due=lambda before, after: before != after,
)


def _one_to_three(show: Show[int]) -> None:
    for number in (1, 1, 3):
        assert show(Update(number, FOOT))
    show(Update(3, FOOT, State.GONE, "it has gone"))
    show(Update(3, FOOT, State.GONE, "it is still gone"))
    show(Update(3, FOOT, notice="it is back"))
    raise KeyboardInterrupt


def test_a_pipe_gets_the_page_then_each_change_and_an_interruption_is_a_good_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert watch(NUMBERS, _one_to_three, as_json=False) == 0
    said = capsys.readouterr()
    page, change = said.out.splitlines()
    assert (page, change.partition("  ")[2]) == ("number 1", "1 → 3")
    assert said.err == "gpu-agent: it has gone\ngpu-agent: it is back\n"


def test_json_is_a_document_on_a_line_when_it_is_due(capsys: pytest.CaptureFixture[str]) -> None:
    assert watch(NUMBERS, _one_to_three, as_json=True) == 0
    assert capsys.readouterr().out == '{"number": 1}\n{"number": 3}\n'


def test_a_terminal_is_redrawn_and_the_last_page_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch, "stdout", columns=40) as person:
        assert watch(NUMBERS, _one_to_three, as_json=False) == 0
        shown, left = person.said().split("\x1b[?1049l")
    assert shown.startswith("\x1b[?1049h")
    assert "1 in " in shown
    assert "of noon\x1b[2m; no room for jobs; Ctrl-C ends" in shown
    assert left.strip() == "number 3"


def test_a_last_page_that_is_not_current_says_so_below_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def follow(show: Show[int]) -> None:
        show(Update(3, FOOT))
        show(Update(3, Piece("it has gone; the page is of noon"), State.GONE, "it has gone"))
        raise KeyboardInterrupt

    with terminal(monkeypatch, "stdout", columns=40) as person:
        assert watch(NUMBERS, follow, as_json=False) == 0
        left = person.said().split("\x1b[?1049l")[1]
    assert " ".join(left.split()) == "number 3 it has gone; the page is of noon"


def test_a_failure_before_the_first_update_leaves_the_terminal_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def follow(_: Show[int]) -> None:
        raise Failure("no registry answers")

    with terminal(monkeypatch, "stdout", columns=40) as person:
        with pytest.raises(Failure):
            watch(NUMBERS, follow, as_json=False)
        assert person.said() == ""
