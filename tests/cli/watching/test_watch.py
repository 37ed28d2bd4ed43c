import threading
from collections.abc import Callable, Iterator

import pytest

from gpu_agent.cli.asking.api import Problem, Refused
from gpu_agent.cli.asking.following import Happening, Lost, Opened, Told
from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.cli.watching import watch
from gpu_agent.cli.watching.watch import LIVE, Answer, Standing, Watch

TOLD = Told({"event": "x", "at": 1.0})


class Shown:
    """A view that is left once it has seen what it waited for."""

    def __init__(self, enough: Callable[["Shown"], bool]) -> None:
        self.drawn: list[tuple[int, Standing]] = []
        self._enough = enough

    def draw(self, answer: Answer, standing: Standing) -> None:
        self.drawn.append((answer["reading"], standing))

    def over(self) -> bool:
        return bool(self.drawn) and self._enough(self)

    @property
    def newest(self) -> tuple[int, Standing]:
        return self.drawn[-1]


class Readings:
    """Counts its readings; fails at those that it is told to."""

    def __init__(self, *failing: int) -> None:
        self.count = 0
        self._failing = failing

    def __call__(self) -> Answer:
        self.count += 1
        if self.count in self._failing:
            raise Failure("nobody there", code=ExitCode.UNREACHABLE)
        return {"nodes": [], "reading": self.count}


def watched(read: Readings, happenings: Callable[[], Iterator[Happening]], view: Shown) -> Shown:
    """Watch in a thread of its own, so that a watch that never ends is a failure and no hang."""
    faults: list[BaseException] = []

    def run() -> None:
        try:
            Watch(read, happenings, view).run()
        except Failure as failure:
            faults.append(failure)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), view.drawn
    if faults:
        raise faults[0]
    return view


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("TICK", 0.02), ("POLL", 0.05), ("FIGURES", 60.0), ("FASTEST", 0.01)):
        monkeypatch.setattr(watch, f"{name}_SECONDS", seconds)


def test_an_event_has_the_list_read_anew_and_no_clock_does() -> None:
    go_on = threading.Event()

    def happenings() -> Iterator[Happening]:
        yield Opened()
        go_on.wait(10)
        yield TOLD
        threading.Event().wait(10)

    read = Readings()

    def enough(view: Shown) -> bool:
        if view.newest[0] == 2 and len(view.drawn) > 5:
            go_on.set()
        return view.newest[0] >= 3

    view = watched(read, happenings, Shown(enough))
    assert view.newest == (3, LIVE)
    assert len([one for one in view.drawn if one[0] == 2]) > 2, "several ticks passed without a reading"


def test_figures_that_no_event_tells_are_read_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "FIGURES_SECONDS", 0.05)
    view = watched(Readings(), lambda: iter([Opened()]), Shown(lambda view: view.newest[0] >= 4))
    assert view.newest[1] is LIVE


def test_a_stream_that_broke_is_said_and_its_return_read_at_once() -> None:
    def happenings() -> Iterator[Happening]:
        yield Opened()
        yield Lost("refused")
        threading.Event().wait(0.2)
        yield Opened()
        threading.Event().wait(10)

    def enough(view: Shown) -> bool:
        return view.newest[1] is LIVE and any("has gone (refused)" in one.words for _, one in view.drawn)

    watched(Readings(), happenings, Shown(enough))


def test_a_registry_that_does_not_answer_keeps_the_list_that_there_was() -> None:
    def happenings() -> Iterator[Happening]:
        yield Opened()
        threading.Event().wait(10)

    view = watched(Readings(2), happenings, Shown(lambda view: view.newest[0] == 3))
    assert any(number == 1 and "nobody there" in one.words for number, one in view.drawn)


def without_stream(status: int) -> Iterator[Happening]:
    refused: list[Happening] = []
    yield from refused
    raise Refused("no", Problem(status, {}))


def test_without_a_stream_it_looks_every_so_often_and_says_so() -> None:
    view = watched(Readings(), lambda: without_stream(404), Shown(lambda view: view.newest[0] >= 3))
    assert "looking every 0.05 s instead" in view.newest[1].words


def test_a_stream_that_is_refused_for_another_reason_ends_the_watch() -> None:
    with pytest.raises(Refused):
        watched(Readings(), lambda: without_stream(401), Shown(lambda _: False))


def test_a_first_reading_that_fails_is_a_failure() -> None:
    with pytest.raises(Failure):
        watched(Readings(1), lambda: iter([]), Shown(lambda _: False))
