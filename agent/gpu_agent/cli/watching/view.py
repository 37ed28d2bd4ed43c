"""Where a watched list is shown: a terminal that is redrawn, lines for each change, or JSON lines."""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gpu_agent.cli.lines import BLANK, Line, Piece, line, wrapped
from gpu_agent.cli.live import LiveLines
from gpu_agent.cli.nodes.event_words import clock
from gpu_agent.cli.nodes.sheet import NO_NODES, node_lines, summary, table_of, warning_of
from gpu_agent.cli.streams import complain, reader_left
from gpu_agent.cli.terminal import columns, show
from gpu_agent.cli.watching.changes import changes
from gpu_agent.cli.watching.watch import Standing, State

_URGENT_FIRST = ("degraded", "offline", "draining", "registering", "ready")
_STYLES = {State.LIVE: "dim", State.POLLING: "yellow", State.GONE: "bold red"}
Answer = Mapping[str, Any]


class PipeView:
    """What is seen first, then what changes; how current it is is told on stderr."""

    def __init__(self, begin: Callable[[Answer], None], go_on: Callable[[Answer, Answer], None]) -> None:
        """`begin` prints what is seen first, `go_on` what is different from what was seen before."""
        self._begin = begin
        self._go_on = go_on
        self._shown: Answer | None = None
        self._state = State.LIVE

    def draw(self, answer: Answer, standing: Standing) -> None:
        """Print what changed."""
        if self._shown is None:
            self._begin(answer)
        elif answer is not self._shown:
            self._go_on(self._shown, answer)
        self._shown = answer
        if standing.state is not self._state:
            complain("the registry is back" if standing.state is State.LIVE else standing.words)
        self._state = standing.state

    def over(self) -> bool:
        """Whoever reads a pipe may leave."""
        return reader_left()


def lines_view() -> PipeView:
    """Show the list, then a line for each change."""

    def begin(answer: Answer) -> None:
        show(node_lines(answer, columns(), now=time.time()))
        if not answer["nodes"]:
            print(NO_NODES)

    def go_on(before: Answer, after: Answer) -> None:
        now = time.time()
        show(line(Piece(f"{clock(now, now)}  ", "dim"), *one) for one in changes(before, after))

    return PipeView(begin, go_on)


def json_view() -> PipeView:
    """Show the list as the API answered it, on one line, whenever something in it changed."""

    def begin(answer: Answer) -> None:
        print(json.dumps(answer), flush=True)

    def go_on(before: Answer, after: Answer) -> None:
        if any(changes(before, after)):
            begin(after)

    return PipeView(begin, go_on)


class ScreenView:
    """The list on a whole terminal, redrawn in place; what does not fit is counted, the urgent come first."""

    def __init__(self, live: LiveLines) -> None:
        self._live = live
        self._shown: Answer | None = None
        self._read_at = 0.0

    def draw(self, answer: Answer, standing: Standing) -> None:
        """Draw the list as the terminal is now."""
        now, size = time.time(), shutil.get_terminal_size()
        if answer is not self._shown:
            self._shown, self._read_at = answer, now
        style = _STYLES[standing.state]
        words = line(Piece(f"{clock(self._read_at, now)}  {standing.words}; Ctrl-C ends", style))
        foot = [BLANK, *wrapped(words, size.columns)]
        self._live.draw([*fitted(answer, size.columns, size.lines - len(foot), now=now), *foot])

    def over(self) -> bool:
        """A terminal is left by Ctrl-C."""
        return False


def fitted(answer: Answer, columns: int, lines: int, *, now: float) -> list[Line]:
    """Draw as many nodes as fit."""
    nodes = answer["nodes"]
    if not nodes:
        return [*warning_of(answer), *wrapped(line(NO_NODES), columns)]
    if len(nodes) <= lines:
        whole = node_lines(answer, columns, now=now)
        if len(whole) <= lines:
            return whole
    head, summed = warning_of(answer), line(Piece(summary(nodes), "dim"))
    room = max(1, lines - len(head) - 1)
    chosen = _urgent_first(nodes)[:room]
    table = table_of(chosen, columns, now=now)
    while len(table) > room and len(chosen) > 1:
        chosen = chosen[: -max(1, (len(table) - room) // 2)]
        table = table_of(chosen, columns, now=now)
    left = len(nodes) - len(chosen)
    return [*head, *table, line(*summed, Piece(f"; {left} not shown", "bold"))]


def _urgent_first(nodes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    rank = {status: place for place, status in enumerate(_URGENT_FIRST)}
    return sorted(nodes, key=lambda node: (rank.get(node["status"], 0), bool(node["connected"])))
