"""The loop of `--watch`: a page that is redrawn on a terminal, and printed change by change in a pipe.

A command hands in its page, and a function that reads its document and calls `show` with each update. It does
so at least every second, if only with the document of before: ages grow, and terminals change their size.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from gpu_agent.cli.command import ExitCode
from gpu_agent.cli.output.blocks import foot_lines
from gpu_agent.cli.output.screen import LiveLines, can_redraw, print_changes
from gpu_agent.cli.output.streams import print_stderr, reader_left
from gpu_agent.cli.output.text import BLANK, Line, Piece, line, print_lines, terminal_columns, wrap
from gpu_agent.cli.signals import Interruption

Shown = TypeVar("Shown")


class State(StrEnum):
    """How a page is updated."""

    LIVE = "live"
    POLLING = "polling"
    """By reading every so often, for want of something better."""
    GONE = "gone"
    """Not at all: nobody answers."""


@dataclass(frozen=True, slots=True)
class Update(Generic[Shown]):
    """The newest document, and how current it is."""

    document: Shown | None
    """None before the first."""
    foot: Piece
    """Stands below the page on a terminal."""
    state: State = State.LIVE
    notice: str = ""
    """Printed to stderr in a pipe, when `state` differs from that of the update before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[Shown]):
    """How a command shows its document."""

    whole: Callable[[Shown], Iterable[Line]]
    """Draws it as without `--watch`."""
    fitted: Callable[[Shown, tuple[int, int]], tuple[list[Line], list[str]]]
    """Draws it for so many columns and lines; returns the names of parts that are left out, too."""
    changes: Callable[[Shown, Shown], Iterable[Line]]
    """Draws a line for each change from one to the next; figures that always move are none."""
    json: Callable[[Shown], Mapping[str, object]]
    json_is_due: Callable[[Shown, Shown], bool]
    """Whether the second is printed as JSON after the first."""


Show = Callable[[Update[Shown]], bool]
"""Shows an update; returns whether its reader is still there."""
Follow = Callable[[Show[Shown]], None]
"""Calls `show` with each update until that returns False; what it raises ends the watch."""


def watch(page: Page[Shown], follow: Follow[Shown], *, as_json: bool) -> int:
    """Show updates until interrupted, which is the good end.

    The last page stays on the terminal, and below it why it is not current, where nobody answered any more.
    """
    if as_json or not can_redraw():
        _until_interrupted(follow, printer(page, as_json=as_json))
        return ExitCode.OK
    with LiveLines(whole_screen=True) as live:
        last = _until_interrupted(follow, drawer(page, live))
    if last is not None and last.document is not None:
        print_lines(page.whole(last.document))
        if last.state is State.GONE:
            print_lines([BLANK, *wrap(line(last.foot), terminal_columns())])
    return ExitCode.OK


def _until_interrupted(follow: Follow[Shown], show: Callable[[Update[Shown]], None]) -> Update[Shown] | None:
    """Return the last update."""
    last: Update[Shown] | None = None

    def show_next(update: Update[Shown]) -> bool:
        nonlocal last
        last = update
        show(update)
        return not reader_left()

    with Interruption() as interruption:
        try:
            follow(show_next)
        except KeyboardInterrupt:
            interruption.finish()
    return last


def printer(page: Page[Shown], *, as_json: bool = False) -> Callable[[Update[Shown]], None]:
    """Return what prints the page, then a line for each change; or documents, each on one line."""
    newest: Shown | None = None
    state = State.LIVE

    def show(update: Update[Shown]) -> None:
        nonlocal newest, state
        if update.state is not state:
            print_stderr(update.notice)
        before, newest, state = newest, update.document, update.state
        if newest is None or newest is before:
            return
        if as_json:
            if before is None or page.json_is_due(before, newest):
                print(json.dumps(page.json(newest)))
        elif before is None:
            print_lines(page.whole(newest))
        else:
            print_changes(page.changes(before, newest))

    return show


def drawer(page: Page[Shown], live: LiveLines) -> Callable[[Update[Shown]], None]:
    """Return what redraws the page in place, for the size that the terminal has now."""

    def show(update: Update[Shown]) -> None:
        columns, lines = shutil.get_terminal_size()
        drawn, left_out = list[Line](), list[str]()
        if update.document is not None:
            room = lines - len(foot_lines((update.foot,), left_out, columns))
            drawn, left_out = page.fitted(update.document, (columns, room))
        live.draw([*drawn, *foot_lines((update.foot,), left_out, columns)])

    return show
