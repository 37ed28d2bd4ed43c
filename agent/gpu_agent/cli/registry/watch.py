"""`gpu-agent registry nodes --watch`: the list of nodes, read again when the registry sends an event.

Figures that no event carries (ages of heartbeats, jobs that nodes report) are read again now and then.
Without an event stream it reads every two seconds, and says so.
"""

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from rich.console import Console

from gpu_agent.cli.client.events import KeepAlive, Lost, Opened, Received, StreamEvent, follow_events
from gpu_agent.cli.client.http import Api, Refused
from gpu_agent.cli.command import ExitCode, Failure
from gpu_agent.cli.output.nodes import (
    NO_NODES,
    bare_node_table,
    fleet_summary,
    gpus_in_words,
    models_in_words,
    node_table,
    status_piece,
    warning_lines,
)
from gpu_agent.cli.output.screen import LiveLines
from gpu_agent.cli.output.streams import print_stderr, reader_left
from gpu_agent.cli.output.text import BLANK, Line, Piece, line, print_lines, terminal_columns, wrap
from gpu_agent.cli.registry.events import clock
from gpu_agent.cli.signals import Interruption

Node = Mapping[str, Any]
ChangeWords = tuple[object, ...]

_COUNTED = (("gpus", "GPUs", gpus_in_words), ("installed_models", "models ready", models_in_words))


def node_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Line]:
    """Yield a line for each thing that changed between two answers of `GET /v1/nodes`, node by node."""
    was = {node["node_id"]: node for node in before["nodes"]}
    now = {node["node_id"]: node for node in after["nodes"]}
    for node_id in sorted({*was, *now}):
        for told in _changes_of_node(was.get(node_id), now.get(node_id)):
            yield line(f"{node_id}  ", *told)


def _changes_of_node(was: Node | None, now: Node | None) -> Iterator[ChangeWords]:
    if now is None:
        yield ("no longer listed",)
    elif was is None:
        yield ("listed: ", status_piece(now["status"]), *_reason(now))
    else:
        yield from _status_changes(was, now)
        yield from _link_changes(was, now)
        yield from _figure_changes(was, now)


def _status_changes(was: Node, now: Node) -> Iterator[ChangeWords]:
    if was["status"] != now["status"]:
        yield (f"{was['status']} → ", status_piece(now["status"]), *_reason(now))
    elif now["status"] != "ready" and was["reason_code"] != now["reason_code"]:
        yield ("still ", status_piece(now["status"]), *_reason(now))


def _link_changes(was: Node, now: Node) -> Iterator[ChangeWords]:
    if was["connected"] != now["connected"] and now["status"] != "offline":
        yield (Piece("connected again", "green") if now["connected"] else Piece("disconnected", "red"),)
    if was.get("cordoned") != now.get("cordoned"):
        yield (_cordon(now),)


def _figure_changes(was: Node, now: Node) -> Iterator[ChangeWords]:
    for name, what, words in _COUNTED:
        if words(was[name]) != words(now[name]):
            yield (f"{what}: {words(was[name])} → {words(now[name])}",)
    if was["in_flight_jobs"] != now["in_flight_jobs"]:
        yield (f"jobs: {was['in_flight_jobs']} → {now['in_flight_jobs']} of {now['max_concurrent_jobs']}",)


def _reason(node: Node) -> ChangeWords:
    return (f": {node.get('reason') or node['reason_code']}",)


def _cordon(node: Node) -> Piece:
    if node.get("cordoned") is None:
        return Piece("uncordoned", "green")
    return Piece(f"cordoned: {node['cordoned']}" if node["cordoned"] else "cordoned", "yellow")


TICK_SECONDS = 1.0
POLL_SECONDS = 2.0
FIGURES_SECONDS = 10.0
FASTEST_SECONDS = 0.25
SHARE = 4.0
"""Reading a long list takes the registry's time: at the most every fifth second of it is ours."""
_NO_STREAM = (404, 405, 501)


class State(StrEnum):
    """How a list is kept current."""

    LIVE = "live"
    """By events."""
    POLLING = "polling"
    """By looking every so often."""
    GONE = "gone"
    """Not at all: the registry does not answer."""


@dataclass(frozen=True, slots=True)
class Freshness:
    """How current the list is, in words too."""

    state: State
    words: str


FROM_EVENTS = Freshness(State.LIVE, "told by the registry as it happens")
Answer = Mapping[str, Any]


class View(Protocol):
    """Where the list is shown."""

    def draw(self, answer: Answer, standing: Freshness) -> None:
        """Show a list, which may be the one that was shown before."""

    def over(self) -> bool:
        """Say whether nobody looks any more."""


@dataclass(frozen=True, slots=True)
class _Ended:
    failure: Failure


class Watch:
    """One list, kept current until it is interrupted; every method raises `Failure`."""

    def __init__(
        self, read: Callable[[], Answer], happenings: Callable[[], Iterator[StreamEvent]], view: View
    ) -> None:
        self._read, self._happenings, self._view = read, happenings, view
        self._heard: SimpleQueue[StreamEvent | _Ended] = SimpleQueue()
        self._hearing = FROM_EVENTS
        """How it stands with the stream of events."""
        self._away: Freshness | None = None
        """Why the last reading failed."""
        self._stale = False
        self._read_at = self._took = 0.0

    def run(self) -> None:
        """Read and draw until nobody looks any more."""
        answer = self._answer()
        threading.Thread(target=self._listen, name="events", daemon=True).start()
        while not self._view.over():
            self._view.draw(answer, self._away or self._hearing)
            self._hear(min(TICK_SECONDS, self._due() - time.monotonic()))
            if time.monotonic() >= self._due():
                answer = self._read_again() or answer

    def _answer(self) -> Answer:
        began = time.monotonic()
        try:
            answer = self._read()
        finally:
            self._read_at = time.monotonic()
            self._took = self._read_at - began
            self._stale = False
        self._away = None
        return answer

    def _read_again(self) -> Answer | None:
        try:
            return self._answer()
        except Failure as failure:
            if failure.code is not ExitCode.UNREACHABLE:
                raise
            self._away = _unreachable(str(failure))
            return None

    def _due(self) -> float:
        if self._stale:
            return self._read_at + max(FASTEST_SECONDS, SHARE * self._took)
        current = self._hearing is FROM_EVENTS and self._away is None
        return self._read_at + (FIGURES_SECONDS if current else POLL_SECONDS)

    def _listen(self) -> None:
        try:
            for happening in self._happenings():
                self._heard.put(happening)
        except Failure as failure:
            self._heard.put(_Ended(failure))

    def _hear(self, seconds: float) -> None:
        try:
            self._take(self._heard.get(timeout=max(0.0, seconds)))
            while True:
                self._take(self._heard.get_nowait())
        except Empty:
            pass

    def _take(self, heard: StreamEvent | _Ended) -> None:
        match heard:
            case Received():
                self._stale = True
            case Opened():
                self._stale, self._hearing = True, FROM_EVENTS
            case Lost(why):
                self._hearing = _unreachable(why)
            case KeepAlive():
                pass
            case _Ended(failure):
                self._hearing = _by_polling(failure)


def _unreachable(why: str) -> Freshness:
    return Freshness(State.GONE, f"the registry has gone ({why.partition('. ')[0]}); waiting for it")


def _by_polling(failure: Failure) -> Freshness:
    """Without a stream of events, look every so often; anything else ends the watch."""
    if not isinstance(failure, Refused) or failure.problem.status not in _NO_STREAM:
        raise failure
    return Freshness(State.POLLING, f"no stream of events here: looking every {POLL_SECONDS:g} s instead")


_URGENT_FIRST = ("degraded", "offline", "draining", "registering", "ready")
_STYLES = {State.LIVE: "dim", State.POLLING: "yellow", State.GONE: "bold red"}


class PipeView:
    """What is seen first, then what changes; how current it is is told on stderr."""

    def __init__(self, begin: Callable[[Answer], None], go_on: Callable[[Answer, Answer], None]) -> None:
        """`begin` prints what is seen first, `go_on` what is different from what was seen before."""
        self._begin = begin
        self._go_on = go_on
        self._shown: Answer | None = None
        self._state = State.LIVE

    def draw(self, answer: Answer, standing: Freshness) -> None:
        """Print what changed."""
        if self._shown is None:
            self._begin(answer)
        elif answer is not self._shown:
            self._go_on(self._shown, answer)
        self._shown = answer
        if standing.state is not self._state:
            print_stderr("the registry is back" if standing.state is State.LIVE else standing.words)
        self._state = standing.state

    def over(self) -> bool:
        """Whoever reads a pipe may leave."""
        return reader_left()


def lines_view() -> PipeView:
    """Show the list, then a line for each change."""

    def begin(answer: Answer) -> None:
        print_lines(node_table(answer, terminal_columns(), now=time.time()))
        if not answer["nodes"]:
            print(NO_NODES)

    def go_on(before: Answer, after: Answer) -> None:
        now = time.time()
        print_lines(line(Piece(f"{clock(now, now)}  ", "dim"), *one) for one in node_changes(before, after))

    return PipeView(begin, go_on)


def json_view() -> PipeView:
    """Show the list as the API answered it, on one line, whenever something in it changed."""

    def begin(answer: Answer) -> None:
        print(json.dumps(answer), flush=True)

    def go_on(before: Answer, after: Answer) -> None:
        if any(node_changes(before, after)):
            begin(after)

    return PipeView(begin, go_on)


class ScreenView:
    """The list on a whole terminal, redrawn in place; what does not fit is counted, the urgent come first."""

    def __init__(self, live: LiveLines) -> None:
        self._live = live
        self._shown: Answer | None = None
        self._read_at = 0.0

    def draw(self, answer: Answer, standing: Freshness) -> None:
        """Draw the list as the terminal is now."""
        now, size = time.time(), shutil.get_terminal_size()
        if answer is not self._shown:
            self._shown, self._read_at = answer, now
        style = _STYLES[standing.state]
        words = line(Piece(f"{clock(self._read_at, now)}  {standing.words}; Ctrl-C ends", style))
        foot = [BLANK, *wrap(words, size.columns)]
        self._live.draw([*fit_nodes(answer, size.columns, size.lines - len(foot), now=now), *foot])

    def over(self) -> bool:
        """A terminal is left by Ctrl-C."""
        return False


def fit_nodes(answer: Answer, columns: int, lines: int, *, now: float) -> list[Line]:
    """Draw as many nodes as fit."""
    nodes = answer["nodes"]
    if not nodes:
        return [*warning_lines(answer), *wrap(line(NO_NODES), columns)]
    if len(nodes) <= lines:
        whole = node_table(answer, columns, now=now)
        if len(whole) <= lines:
            return whole
    head, summed = warning_lines(answer), line(Piece(fleet_summary(nodes), "dim"))
    room = max(1, lines - len(head) - 1)
    chosen = _urgent_first(nodes)[:room]
    table = bare_node_table(chosen, columns, now=now)
    while len(table) > room and len(chosen) > 1:
        chosen = chosen[: -max(1, (len(table) - room) // 2)]
        table = bare_node_table(chosen, columns, now=now)
    left = len(nodes) - len(chosen)
    return [*head, *table, line(*summed, Piece(f"; {left} not shown", "bold"))]


def _urgent_first(nodes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    rank = {status: place for place, status in enumerate(_URGENT_FIRST)}
    return sorted(nodes, key=lambda node: (rank.get(node["status"], 0), bool(node["connected"])))


Read = Callable[[], Mapping[str, Any]]


def watch_nodes(api: Api, read: Read, *, as_json: bool) -> int:
    """Watch until interrupted, which is its good end; raises `Failure`."""
    if as_json or not sys.stdout.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        _until_interrupted(api, read, json_view() if as_json else lines_view())
        return ExitCode.OK
    seen: list[Mapping[str, Any]] = []

    def reading() -> Mapping[str, Any]:
        seen[:] = [read()]
        return seen[0]

    reading()  # a registry that does not answer is told in the open, not on a screen that goes
    with LiveLines(Console(), whole_screen=True) as live:
        _until_interrupted(api, reading, ScreenView(live))
    print_lines(node_table(seen[0], terminal_columns(), now=time.time()))
    return ExitCode.OK


def _until_interrupted(api: Api, read: Read, view: View) -> None:
    with Interruption() as interruption:
        try:
            Watch(read, lambda: follow_events(api, answered=True), view).run()
        except KeyboardInterrupt:
            interruption.finish()
