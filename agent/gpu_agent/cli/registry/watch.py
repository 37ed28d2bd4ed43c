"""`gpu-agent registry node list --watch`: the list of nodes, read again when the registry sends an event.

Figures that no event carries (ages of heartbeats, jobs that nodes report) are read again now and then.
Without an event stream it reads every two seconds, and says so.
"""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from queue import Empty, SimpleQueue
from typing import Protocol

from gpu_agent.cli.client.answers import Answer
from gpu_agent.cli.client.events import KeepAlive, Lost, Opened, Received, StreamEvent, follow_events
from gpu_agent.cli.client.http import Api, Refused
from gpu_agent.cli.command import ExitCode, Failure
from gpu_agent.cli.output.blocks import foot_lines
from gpu_agent.cli.output.inventory import gpus_in_words, health_piece, models_in_words, status_piece
from gpu_agent.cli.output.nodes import (
    DEFAULT_STYLE,
    NO_NODES,
    ListStyle,
    bare_node_table,
    count_free,
    fleet_summary,
    gpu_numbers,
    gpus_by_number,
    node_name,
    node_table,
    placeable_gpus,
    sorted_nodes,
    urgency,
    warning_lines,
)
from gpu_agent.cli.output.screen import LiveLines, can_redraw, print_changes
from gpu_agent.cli.output.streams import print_stderr, reader_left
from gpu_agent.cli.output.text import Line, Piece, line, print_lines, terminal_columns, wrap
from gpu_agent.cli.output.units import clock
from gpu_agent.cli.signals import Interruption
from gpu_agent.wire.api import GpuView, NodeList, NodeSummary

TICK_SECONDS = 1.0
POLL_SECONDS = 2.0
FIGURES_SECONDS = 10.0
FASTEST_SECONDS = 0.25
SHARE = 4.0
"""Reading a long list takes the registry's time: at most every fifth second of it is ours."""
_NO_STREAM = (404, 405, 501)

Nodes = Answer[NodeList]
Words = tuple[object, ...]


class State(StrEnum):
    """How a list is updated."""

    LIVE = "live"
    """By events."""
    POLLING = "polling"
    """By reading every so often."""
    GONE = "gone"
    """Not at all: the registry does not answer."""


@dataclass(frozen=True, slots=True)
class Freshness:
    """How current the list is, in words too."""

    state: State
    words: str


FROM_EVENTS = Freshness(State.LIVE, "current: the registry sends each change")
_STYLES = {State.LIVE: "dim", State.POLLING: "yellow", State.GONE: "bold red"}


class View(Protocol):
    """Where the list is shown."""

    def draw(self, answer: Nodes, freshness: Freshness) -> None:
        """Show a list, which may be the one that was shown before."""

    def over(self) -> bool:
        """Say whether its reader has left."""


def watch_nodes(api: Api, read: Callable[[], Nodes], *, as_json: bool, style: ListStyle) -> int:
    """Watch until interrupted, which is its good end; raises `Failure`."""
    if as_json or not can_redraw():
        _watch_until_interrupted(api, read, json_view() if as_json else lines_view(style))
        return ExitCode.OK
    last = read()  # a registry that does not answer is reported here, not on a screen that vanishes

    def read_again() -> Nodes:
        nonlocal last
        last = read()
        return last

    with LiveLines(whole_screen=True) as live:
        _watch_until_interrupted(api, read_again, ScreenView(live, style))
    print_lines(node_table(last.model, terminal_columns(), now=time.time(), style=style))
    return ExitCode.OK


def _watch_until_interrupted(api: Api, read: Callable[[], Nodes], view: View) -> None:
    with Interruption() as interruption:
        try:
            Watch(read, lambda: follow_events(api, answered=True), view).run()
        except KeyboardInterrupt:
            interruption.finish()


@dataclass(frozen=True, slots=True)
class _Ended:
    failure: Failure


class Watch:
    """One list, current until it is interrupted; every method raises `Failure`."""

    def __init__(
        self, read: Callable[[], Nodes], events: Callable[[], Iterator[StreamEvent]], view: View
    ) -> None:
        self._read, self._events, self._view = read, events, view
        self._received: SimpleQueue[StreamEvent | _Ended] = SimpleQueue()
        self._stream = FROM_EVENTS
        self._unreachable: Freshness | None = None
        """Why the last reading failed."""
        self._stale = False
        self._read_at = self._took = 0.0

    def run(self) -> None:
        """Read and draw until the view's reader leaves."""
        answer = self._read_now()
        threading.Thread(target=self._follow, name="events", daemon=True).start()
        while not self._view.over():
            self._view.draw(answer, self._unreachable or self._stream)
            self._wait_for_events(min(TICK_SECONDS, self._due() - time.monotonic()))
            if time.monotonic() >= self._due():
                answer = self._read_again() or answer

    def _read_now(self) -> Nodes:
        began = time.monotonic()
        try:
            answer = self._read()
        finally:
            self._read_at = time.monotonic()
            self._took = self._read_at - began
            self._stale = False
        self._unreachable = None
        return answer

    def _read_again(self) -> Nodes | None:
        try:
            return self._read_now()
        except Failure as failure:
            if failure.code is not ExitCode.UNREACHABLE:
                raise
            self._unreachable = _unreachable(str(failure))
            return None

    def _due(self) -> float:
        if self._stale:
            return self._read_at + max(FASTEST_SECONDS, SHARE * self._took)
        current = self._stream is FROM_EVENTS and self._unreachable is None
        return self._read_at + (FIGURES_SECONDS if current else POLL_SECONDS)

    def _follow(self) -> None:
        try:
            for event in self._events():
                self._received.put(event)
        except Failure as failure:
            self._received.put(_Ended(failure))

    def _wait_for_events(self, seconds: float) -> None:
        try:
            self._handle(self._received.get(timeout=max(0.0, seconds)))
            while True:
                self._handle(self._received.get_nowait())
        except Empty:
            pass

    def _handle(self, event: StreamEvent | _Ended) -> None:
        match event:
            case Received():
                self._stale = True
            case Opened():
                self._stale, self._stream = True, FROM_EVENTS
            case Lost(why):
                self._stream = _unreachable(why)
            case KeepAlive():
                pass
            case _Ended(failure):
                self._stream = _by_polling(failure)


def _unreachable(why: str) -> Freshness:
    return Freshness(State.GONE, f"the registry has gone ({why.partition('. ')[0]}); waiting for it")


def _by_polling(failure: Failure) -> Freshness:
    """Without an event stream, read every so often; anything else ends the watch."""
    if not isinstance(failure, Refused) or failure.status not in _NO_STREAM:
        raise failure
    return Freshness(State.POLLING, f"no event stream here: reading every {POLL_SECONDS:g} s instead")


class PipeView:
    """The first list, then what changes; how current it is goes to stderr."""

    def __init__(self, begin: Callable[[Nodes], None], go_on: Callable[[Nodes, Nodes], None]) -> None:
        """`begin` prints the first list, `go_on` what is different from the list before."""
        self._begin = begin
        self._go_on = go_on
        self._shown: Nodes | None = None
        self._state = State.LIVE

    def draw(self, answer: Nodes, freshness: Freshness) -> None:
        """Print what changed."""
        if self._shown is None:
            self._begin(answer)
        elif answer is not self._shown:
            self._go_on(self._shown, answer)
        self._shown = answer
        if freshness.state is not self._state:
            print_stderr("the registry is back" if freshness.state is State.LIVE else freshness.words)
        self._state = freshness.state

    def over(self) -> bool:
        """A pipe's reader may leave."""
        return reader_left()


def lines_view(style: ListStyle = DEFAULT_STYLE) -> PipeView:
    """Show the list, then a line for each change."""

    def begin(answer: Nodes) -> None:
        print_lines(node_table(answer.model, terminal_columns(), now=time.time(), style=style))
        if not answer.model.nodes:
            print(NO_NODES)

    def go_on(before: Nodes, after: Nodes) -> None:
        print_changes(node_changes(before.model, after.model))

    return PipeView(begin, go_on)


def json_view() -> PipeView:
    """Show the list as the API answered it, on one line, whenever something in it changed."""

    def begin(answer: Nodes) -> None:
        print(json.dumps(answer.document), flush=True)

    def go_on(before: Nodes, after: Nodes) -> None:
        if any(node_changes(before.model, after.model)):
            begin(after)

    return PipeView(begin, go_on)


class ScreenView:
    """The list on a whole terminal, redrawn in place; urgent nodes come first, and the rest is counted."""

    def __init__(self, live: LiveLines, style: ListStyle = DEFAULT_STYLE) -> None:
        self._live, self._style = live, style
        self._shown: Nodes | None = None
        self._read_at = 0.0

    def draw(self, answer: Nodes, freshness: Freshness) -> None:
        """Draw the list as the terminal is now."""
        now, size = time.time(), shutil.get_terminal_size()
        if answer is not self._shown:
            self._shown, self._read_at = answer, now
        words = Piece(f"{clock(self._read_at, now)}  {freshness.words}", _STYLES[freshness.state])
        foot = foot_lines((words,), [], size.columns)
        room = (size.columns, size.lines - len(foot))
        self._live.draw([*fit_nodes(answer.model, room, now=now, style=self._style), *foot])

    def over(self) -> bool:
        """A terminal is left by Ctrl-C."""
        return False


def fit_nodes(
    answer: NodeList, size: tuple[int, int], *, now: float, style: ListStyle = DEFAULT_STYLE
) -> list[Line]:
    """Draw as many nodes as fit so many columns and lines: urgent ones first, unless `style` sorts them."""
    nodes, (columns, lines) = answer.nodes, size
    if not nodes:
        return [*warning_lines(answer), *wrap(line(NO_NODES), columns)]
    if len(nodes) <= lines:
        whole = node_table(answer, columns, now=now, style=style)
        if len(whole) <= lines:
            return whole
    head, summed = warning_lines(answer), fleet_summary(nodes)
    room = max(1, lines - len(head) - 1)
    by_name = sorted_nodes(nodes, style.sort)
    chosen = (by_name if style.sort else sorted(by_name, key=urgency))[:room]
    table = bare_node_table(chosen, columns, now=now, wide=style.wide)
    while len(table) > room and len(chosen) > 1:
        chosen = chosen[: -max(1, (len(table) - room) // 2)]
        table = bare_node_table(chosen, columns, now=now, wide=style.wide)
    left = Piece(f"{len(nodes) - len(chosen)} nodes not shown; ", "bold")
    return [*head, *table, line(left, *summed)]


def node_changes(before: NodeList, after: NodeList, *, jobs: bool = True) -> Iterator[Line]:
    """Yield a line for each change between two lists, node by node; figures that always move are none.

    `jobs`: also for jobs that come and go.
    """
    was = {node.node_id: node for node in before.nodes}
    now = {node.node_id: node for node in after.nodes}
    for node_id in sorted({*was, *now}):
        name = node_name(now.get(node_id) or was[node_id])
        for words in _changes_of_node(was.get(node_id), now.get(node_id), jobs=jobs):
            yield line(f"{name}  ", *words)


def _changes_of_node(was: NodeSummary | None, now: NodeSummary | None, *, jobs: bool) -> Iterator[Words]:
    if now is None:
        yield ("no longer listed",)
    elif was is None:
        yield ("listed: ", status_piece(now.status), *_reason(now))
    else:
        yield from _status_changes(was, now)
        yield from _link_changes(was, now)
        yield from _gpu_changes(was, now)
        yield from _figure_changes(was, now, jobs=jobs)


def _status_changes(was: NodeSummary, now: NodeSummary) -> Iterator[Words]:
    if was.status != now.status:
        yield (f"{was.status} → ", status_piece(now.status), *_reason(now))
    elif now.status != "ready" and was.reason_code != now.reason_code:
        yield ("still ", status_piece(now.status), *_reason(now))


def _link_changes(was: NodeSummary, now: NodeSummary) -> Iterator[Words]:
    if was.connected != now.connected and now.status != "offline":
        yield (Piece("connected again", "green") if now.connected else Piece("disconnected", "red"),)
    if was.cordoned != now.cordoned:
        yield (_cordon(now),)


def _gpu_changes(was: NodeSummary, now: NodeSummary) -> Iterator[Words]:
    """Yield what became of GPUs, those with the same change together."""
    old, new = gpus_in_words(was.gpus), gpus_in_words(now.gpus)
    if [gpu.uuid for gpu in was.gpus] != [gpu.uuid for gpu in now.gpus]:
        if old != new:
            yield (f"GPUs: {old} → {new}",)
        return
    numbers = gpu_numbers(now.gpus)
    changed: dict[tuple[str | Piece, ...], list[str]] = {}
    for before, after in zip(was.gpus, now.gpus, strict=True):
        for words in _changes_of_gpu(before, after):
            changed.setdefault(words, []).append(numbers[after.uuid])
    for words, which in changed.items():
        yield (gpus_by_number(which), *words)


def _changes_of_gpu(was: GpuView, now: GpuView) -> Iterator[tuple[str | Piece, ...]]:
    if (was.health, was.usable) != (now.health, now.usable):
        why = f" ({', '.join(now.reasons)})" if now.reasons else ""
        yield f": {was.health} → ", health_piece(now.health), why
    if was.cordoned != now.cordoned:
        yield (f": {now.cordoned or 'uncordoned'}",)


def _figure_changes(was: NodeSummary, now: NodeSummary, *, jobs: bool) -> Iterator[Words]:
    old, new = models_in_words(was.installed_models), models_in_words(now.installed_models)
    if old != new:
        yield (f"models ready: {old} → {new}",)
    if jobs and was.in_flight_jobs != now.in_flight_jobs:
        free = f"{count_free(now)} of {len(placeable_gpus(now.gpus))} GPUs free"
        yield (f"jobs: {was.in_flight_jobs} → {now.in_flight_jobs} of {now.max_concurrent_jobs}; {free}",)


def _reason(node: NodeSummary) -> Words:
    return (f": {node.reason or node.reason_code}",)


def _cordon(node: NodeSummary) -> Piece:
    if node.cordoned is None:
        return Piece("uncordoned", "green")
    return Piece(f"cordoned: {node.cordoned}" if node.cordoned else "cordoned", "yellow")
