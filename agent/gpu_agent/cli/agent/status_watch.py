"""`gpu-agent status --watch`: the agent's status until interrupted, read once a second.

A terminal is redrawn; a pipe gets a line for each change, or the document. An agent that stops answering
ends no watch: it is waited for.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from rich.console import Console

from gpu_agent.cli.agent.probe_page import machine_changes
from gpu_agent.cli.agent.status_page import machine_inventory, status_page
from gpu_agent.cli.command import ExitCode, Failure
from gpu_agent.cli.output.nodes import STATUS_STYLES, status_piece
from gpu_agent.cli.output.screen import LiveLines
from gpu_agent.cli.output.streams import print_stderr, reader_left
from gpu_agent.cli.output.text import (
    BLANK,
    Line,
    Piece,
    glyphs,
    line,
    plain_text,
    print_lines,
    terminal_columns,
    wrap,
)
from gpu_agent.cli.registry.events import clock
from gpu_agent.cli.signals import Interruption

Answer = Mapping[str, Any]


def status_changes(before: Answer, after: Answer) -> Iterator[Line]:
    """Yield a line for each; raises `Failure` where what an agent says of its machine cannot be read."""
    if plain_text(summary_line(before)) != plain_text(summary_line(after)):
        yield summary_line(after)
    yield from _of_jobs(before, after)
    if before["accept_public_jobs"] is not after["accept_public_jobs"]:
        yield _public(after)
    if before["machine"] is not None and after["machine"] is not None:
        yield from machine_changes(machine_inventory(before["machine"]), machine_inventory(after["machine"]))


def summary_line(answer: Answer) -> Line:
    """Say in a line how an agent stands with its registry."""
    who, status = answer["node_id"] or "no id yet", answer["status"]
    drain = answer["drain"] or {}
    if drain.get("over"):
        return line(f"{who} is ", Piece("drained", STATUS_STYLES["draining"]), f": {drain['reason']}")
    if not answer["connected"]:
        why = answer["session"]["why"]
        return line(f"{who} is ", Piece("not connected", "bold red"), f": {why}" if why else "")
    if status is None:
        return line(f"{who} is ", Piece("connected", "cyan"))
    wished = f"; its owner drains it: {drain['reason']}" if drain else ""
    return line(f"{who} is ", status_piece(status["status"]), f": {status['reason']}{wished}")


def _of_jobs(before: Answer, after: Answer) -> Iterator[Line]:
    old, new = (dict.fromkeys(job["job_id"] for job in one["jobs"]["in_flight"]) for one in (before, after))
    yield from (line(f"job {job} has begun") for job in new if job not in old)
    yield from (line(f"job {job} is over") for job in old if job not in new)


def _public(answer: Answer) -> Line:
    if answer["accept_public_jobs"]:
        return line("public jobs are accepted")
    pauses = "; ".join(pause["detail"] for pause in answer["public_jobs"]["pauses"])
    return line(Piece("no public jobs", "yellow"), f": {pauses or 'accept_public_jobs is false'}")


LOOK_SECONDS = 1.0
"""How often the agent is asked: it is on this machine, and tells nobody of its own accord."""

Look = Callable[[], Answer]


class View(Protocol):
    """Where it is shown."""

    def draw(self, answer: Answer) -> None:
        """Show what was seen."""

    def gone(self, why: str) -> None:
        """Say that no agent answers now."""

    def over(self) -> bool:
        """Say whether nobody looks any more."""


def watch_status(look: Look, *, as_json: bool) -> int:
    """Watch until interrupted, which is its good end; raises `Failure` where no agent is there at first."""
    first = look()
    if as_json or not sys.stdout.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        _until_over(look, first, json_view() if as_json else lines_view())
        return ExitCode.OK
    with LiveLines(Console(), whole_screen=True) as live:
        view = ScreenView(live)
        _until_over(look, first, view)
    print_lines(status_page(view.shown or first, terminal_columns(), glyphs(), now=time.time()))
    return ExitCode.OK


class PipeView:
    """What is seen first, then what changes; that no agent answers is told on stderr."""

    def __init__(self, begin: Callable[[Answer], None], go_on: Callable[[list[Line], Answer], None]) -> None:
        """`begin` prints what is seen first, `go_on` what is different from what was seen before."""
        self._begin = begin
        self._go_on = go_on
        self._shown: Answer | None = None
        self._gone = False

    def draw(self, answer: Answer) -> None:
        """Print what changed."""
        if self._gone:
            print_stderr("the agent answers again")
        self._gone = False
        if self._shown is None:
            self._begin(answer)
        else:
            self._go_on(list(status_changes(self._shown, answer)), answer)
        self._shown = answer

    def gone(self, why: str) -> None:
        """Say it once."""
        if not self._gone:
            print_stderr(f"{why.partition(': ')[0]}; waiting for it")
        self._gone = True

    def over(self) -> bool:
        """Whoever reads a pipe may leave."""
        return reader_left()


def lines_view() -> PipeView:
    """Show the page, then a line for each change."""

    def begin(answer: Answer) -> None:
        print_lines(status_page(answer, terminal_columns(), glyphs(), now=time.time()))

    def go_on(changed: list[Line], _: Answer) -> None:
        now = time.time()
        print_lines(line(Piece(f"{clock(now, now)}  ", "dim"), *one) for one in changed)

    return PipeView(begin, go_on)


def json_view() -> PipeView:
    """Show the document on one line, whenever something in it changed."""

    def begin(answer: Answer) -> None:
        print(json.dumps(answer), flush=True)

    def go_on(changed: list[Line], answer: Answer) -> None:
        if changed:
            begin(answer)

    return PipeView(begin, go_on)


class ScreenView:
    """The page on a whole terminal, redrawn in place; what there is no room for is counted."""

    def __init__(self, live: LiveLines) -> None:
        self._live = live
        self.shown: Answer | None = None
        self._seen_at = 0.0

    def draw(self, answer: Answer) -> None:
        """Draw it."""
        self.shown, self._seen_at = answer, time.time()
        self._draw(Piece(clock(self._seen_at, self._seen_at), "dim"))

    def gone(self, why: str) -> None:
        """Leave what was seen last, and say so."""
        words = f"{why.partition(': ')[0]}; the page is of {clock(self._seen_at, time.time())}"
        self._draw(Piece(words, "bold red"))

    def over(self) -> bool:
        """A terminal is left by Ctrl-C."""
        return False

    def _draw(self, foot: Piece) -> None:
        size = shutil.get_terminal_size()
        below = [BLANK, *wrap(line(foot, Piece("; Ctrl-C ends", "dim")), size.columns)]
        page = status_page(self.shown or {}, size.columns, glyphs(), now=time.time())
        self._live.draw([*fit_lines(page, size.lines - len(below)), *below])


def fit_lines(page: list[Line], lines: int) -> list[Line]:
    """Keep as much of a page as there is room for."""
    if len(page) <= lines:
        return page
    kept = max(1, lines - 1)
    return [*page[:kept], line(Piece(f"({len(page) - kept} lines: no room here)", "dim"))]


def _until_over(look: Look, first: Answer, view: View) -> None:
    with Interruption() as interruption:
        try:
            view.draw(first)
            while not view.over():
                time.sleep(LOOK_SECONDS)
                _look_again(look, view)
        except KeyboardInterrupt:
            interruption.finish()


def _look_again(look: Look, view: View) -> None:
    try:
        answer = look()
    except Failure as failure:
        if failure.code is not ExitCode.UNREACHABLE:
            raise
        view.gone(str(failure))
    else:
        view.draw(answer)
