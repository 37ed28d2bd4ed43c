import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gpu_agent.cli.client.events import Lost, Opened, Received, StreamEvent
from gpu_agent.cli.client.http import Refused
from gpu_agent.cli.command import ExitCode, Failure
from gpu_agent.cli.output.text import plain_text
from gpu_agent.cli.output.watch import State, Update
from gpu_agent.cli.registry import watch
from gpu_agent.cli.registry.watch import Follower, Nodes, node_changes
from gpu_agent.wire.api import NodeList, RegistryEvent
from tests.cli.answers import answer_of, model_of
from tests.waiting import patience


def node(**more: object) -> dict[str, Any]:
    return {
        "node_id": "n",
        "status": "ready",
        "reason_code": "recovered",
        "reason": "well again",
        "connected": True,
        "cordoned": None,
        "gpus": [{"name": "L4", "health": "ok"}],
        "installed_models": [{"model_id": "m", "status": "ready", "enabled": True}],
        "in_flight_jobs": 0,
        "max_concurrent_jobs": 4,
        "last_heartbeat_age_seconds": 1.0,
        **more,
    }


def changes(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[str]:
    was, now = (model_of(NodeList, {"nodes": nodes}) for nodes in (before, after))
    return [plain_text(one) for one in node_changes(was, now)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"last_heartbeat_age_seconds": 2.0, "reason_code": "registered"}, []),
        ({"status": "degraded", "reason": "no GPU"}, ["ready → degraded: no GPU"]),
        ({"connected": False}, ["disconnected"]),
        ({"status": "offline", "connected": False, "reason": "silent"}, ["ready → offline: silent"]),
        ({"cordoned": ""}, ["cordoned"]),
        ({"cordoned": "odd"}, ["cordoned: odd"]),
        ({"gpus": [{"name": "L4", "health": "lost"}]}, ["GPU 0: ok → lost"]),
        (
            {"installed_models": [{"model_id": "m", "status": "error", "enabled": True}]},
            ["models ready: 1 → 0/1"],
        ),
        ({"in_flight_jobs": 2}, ["jobs: 0 → 2 of 4; 0 of 1 GPUs free"]),
    ],
)
def test_each_thing_that_changed_is_a_line(change: dict[str, Any], words: list[str]) -> None:
    assert changes([node()], [node(**change)]) == [f"n  {one}" for one in words]


def test_returns_are_lines_too() -> None:
    before = node(connected=False, cordoned="odd")
    assert changes([before], [node()]) == ["n  connected again", "n  uncordoned"]


def test_the_reason_alone_may_change() -> None:
    before = node(status="degraded", reason_code="a", reason="x")
    assert changes([before], [node(status="degraded", reason_code="b", reason="y")]) == [
        "n  still degraded: y"
    ]


def test_nodes_come_and_go() -> None:
    assert changes([node(node_id="a")], [node(node_id="b")]) == [
        "a  no longer listed",
        "b  listed: ready: well again",
    ]


RECEIVED = Received(RegistryEvent(at=1.0, event="x"), {})


class Shown:
    """What a watch showed; its reader leaves once it has seen what it waited for."""

    def __init__(self, enough: Callable[["Shown"], bool]) -> None:
        self.updates: list[Update[Nodes]] = []
        self._enough = enough

    def show(self, update: Update[Nodes]) -> bool:
        self.updates.append(update)
        return not self._enough(self)

    @property
    def readings(self) -> list[int]:
        return [update.document.model.count for update in self.updates if update.document]

    @property
    def newest(self) -> int:
        return self.readings[-1]

    @property
    def is_live(self) -> bool:
        return self.updates[-1].state is State.LIVE

    def said(self, words: str) -> bool:
        return any(words in update.foot.text for update in self.updates)


class Readings:
    """Counts its readings, and fails at those that are named."""

    def __init__(self, *failing: int) -> None:
        self.count = 0
        self._failing = failing

    def __call__(self) -> Nodes:
        self.count += 1
        if self.count in self._failing:
            raise Failure("no answer", code=ExitCode.UNREACHABLE)
        return answer_of(NodeList, {"count": self.count})


def watched(read: Readings, events: Callable[[], Iterator[StreamEvent]], shown: Shown) -> Shown:
    """Watch in a thread of its own, so that a watch that never ends is a failure and no hang."""
    faults: list[BaseException] = []

    def run() -> None:
        try:
            Follower(read, events).run(shown.show)
        except Failure as failure:
            faults.append(failure)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(patience(20))
    assert not thread.is_alive(), shown.updates
    if faults:
        raise faults[0]
    return shown


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("TICK", 0.02), ("POLL", 0.05), ("FIGURES", 60.0), ("FASTEST", 0.01)):
        monkeypatch.setattr(watch, f"{name}_SECONDS", seconds)


def test_an_event_has_the_list_read_again_and_no_clock_does() -> None:
    go_on = threading.Event()

    def events() -> Iterator[StreamEvent]:
        yield Opened()
        go_on.wait(patience(10))
        yield RECEIVED
        threading.Event().wait(patience(10))

    read = Readings()

    def enough(shown: Shown) -> bool:
        if shown.readings.count(2) > 2:  # several ticks passed without a reading
            go_on.set()
        return shown.newest >= 3

    shown = watched(read, events, Shown(enough))
    assert (shown.newest, shown.is_live) == (3, True)


def test_figures_that_no_event_carries_are_read_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "FIGURES_SECONDS", 0.05)
    shown = watched(Readings(), lambda: iter([Opened()]), Shown(lambda shown: shown.newest >= 4))
    assert shown.is_live


def test_a_broken_stream_is_shown_and_its_return_read_at_once() -> None:
    def events() -> Iterator[StreamEvent]:
        yield Opened()
        yield Lost("refused")
        threading.Event().wait(0.2)
        yield Opened()
        threading.Event().wait(patience(10))

    def enough(shown: Shown) -> bool:
        return shown.is_live and shown.said("has gone (refused)")

    watched(Readings(), events, Shown(enough))


def test_a_registry_that_does_not_answer_keeps_the_list_that_there_was() -> None:
    def events() -> Iterator[StreamEvent]:
        yield Opened()
        threading.Event().wait(patience(10))

    shown = watched(Readings(2), events, Shown(lambda shown: shown.newest == 3))
    gone = [update for update in shown.updates if update.state is State.GONE]
    assert {update.document.model.count for update in gone if update.document} == {1}
    assert shown.said("no answer")


def without_stream(status: int) -> Iterator[StreamEvent]:
    refused: list[StreamEvent] = []
    yield from refused
    raise Refused("no", {"status": status, "code": "NO"})


def test_without_a_stream_it_reads_every_so_often_and_says_so() -> None:
    shown = watched(Readings(), lambda: without_stream(404), Shown(lambda shown: shown.newest >= 3))
    assert "reading every 0.05 s instead" in shown.updates[-1].foot.text


def test_a_stream_that_is_refused_for_another_reason_ends_the_watch() -> None:
    with pytest.raises(Refused):
        watched(Readings(), lambda: without_stream(401), Shown(lambda _: False))


def test_a_first_reading_that_fails_is_a_failure() -> None:
    with pytest.raises(Failure):
        watched(Readings(1), lambda: iter([]), Shown(lambda _: False))
