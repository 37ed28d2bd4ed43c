"""`gpu-agent registry node list --watch`: the list of nodes, read again when the registry sends an event.

Figures that no event carries (ages of heartbeats, jobs that nodes report) are read again now and then.
Without an event stream it reads every two seconds, and says so.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from gpu_agent.cli.client.answers import Answer
from gpu_agent.cli.client.events import KeepAlive, Lost, Opened, Received, StreamEvent, follow_events
from gpu_agent.cli.client.http import Api, Refused
from gpu_agent.cli.command import ExitCode, Failure
from gpu_agent.cli.output.inventory import (
    gpus_by_number,
    gpus_in_words,
    health_piece,
    models_in_words,
    status_piece,
)
from gpu_agent.cli.output.nodes import (
    DEFAULT_STYLE,
    NO_NODES,
    ListStyle,
    bare_node_table,
    count_free,
    fleet_summary,
    gpu_numbers,
    node_name,
    node_table,
    placeable_gpus,
    sorted_nodes,
    urgency,
    warning_lines,
)
from gpu_agent.cli.output.text import Line, Piece, line, terminal_columns, wrap
from gpu_agent.cli.output.units import clock
from gpu_agent.cli.output.watch import Page, Show, State, Update, watch
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


@dataclass(frozen=True, slots=True)
class Freshness:
    """How current the list is, in words too."""

    state: State
    words: str


FROM_EVENTS = Freshness(State.LIVE, "current: the registry sends each change")
_STYLES = {State.LIVE: "dim", State.POLLING: "yellow", State.GONE: "bold red"}


def watch_nodes(api: Api, read: Callable[[], Nodes], *, as_json: bool, style: ListStyle) -> int:
    """Watch until interrupted, which is its good end; raises `Failure`."""
    follower = Follower(read, lambda: follow_events(api, answered=True), page_url=f"{api.url}/")
    return watch(node_list_page(style), follower.run, as_json=as_json)


def node_list_page(style: ListStyle = DEFAULT_STYLE) -> Page[Nodes]:
    """Return how the list is shown."""

    def whole(answer: Nodes) -> list[Line]:
        table = node_table(answer.model, terminal_columns(), now=time.time(), style=style)
        return table if answer.model.nodes else [*table, line(NO_NODES)]

    def fitted(answer: Nodes, size: tuple[int, int]) -> tuple[list[Line], list[str]]:
        return fit_nodes(answer.model, size, now=time.time(), style=style), []

    def changes(before: Nodes, after: Nodes) -> Iterator[Line]:
        return node_changes(before.model, after.model)

    return Page(
        whole=whole,
        fitted=fitted,
        changes=changes,
        json=lambda answer: answer.document,
        json_is_due=lambda before, after: any(changes(before, after)),
    )


def update_of(answer: Nodes, freshness: Freshness, *, read_at: float, page_url: str = "") -> Update[Nodes]:
    """Return what a watch shows of a list that was read at this wall time, in seconds."""
    words = f"{clock(read_at, time.time())}  {freshness.words}"
    if page_url and freshness.state is State.LIVE:
        words += f"; in a browser: {page_url}"
    foot = Piece(words, _STYLES[freshness.state])
    notice = "the registry is back" if freshness.state is State.LIVE else freshness.words
    return Update(answer, foot, freshness.state, notice)


@dataclass(frozen=True, slots=True)
class _Ended:
    failure: Failure


class Follower:
    """Keeps one list current; every method raises `Failure`."""

    def __init__(
        self, read: Callable[[], Nodes], events: Callable[[], Iterator[StreamEvent]], *, page_url: str = ""
    ) -> None:
        """Name the fleet page's address beside the list where it is given."""
        self._read, self._events, self._page_url = read, events, page_url
        self._received: SimpleQueue[StreamEvent | _Ended] = SimpleQueue()
        self._stream = FROM_EVENTS
        self._unreachable: Freshness | None = None
        """Why the last reading failed."""
        self._stale = False
        self._read_at = self._took = 0.0
        """Monotonic seconds at the end of the last reading, and how long it took."""
        self._answered_at = 0.0
        """When the list was read that is shown, in wall seconds."""

    def run(self, show: Show[Nodes]) -> None:
        """Read and show until the reader of what is shown leaves."""
        answer = self._read_now()
        threading.Thread(target=self._follow, name="events", daemon=True).start()
        while show(
            update_of(
                answer,
                self._unreachable or self._stream,
                read_at=self._answered_at,
                page_url=self._page_url,
            )
        ):
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
        self._unreachable, self._answered_at = None, time.time()
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
