"""`gpu-agent status --watch`: the agent's status until interrupted, read once a second.

A terminal is redrawn; a pipe gets a line for each change, or the document. An agent that stops answering
ends no watch: it is waited for.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from gpu_agent.cli.agent.probe_page import machine_changes
from gpu_agent.cli.agent.status_page import machine_inventory, status_blocks, status_page
from gpu_agent.cli.client.answers import Answer
from gpu_agent.cli.command import ExitCode, Failure
from gpu_agent.cli.output.blocks import fit_page, foot_lines
from gpu_agent.cli.output.inventory import status_piece
from gpu_agent.cli.output.screen import LiveLines, can_redraw, print_changes
from gpu_agent.cli.output.streams import print_stderr, reader_left
from gpu_agent.cli.output.text import (
    Line,
    Piece,
    glyphs,
    line,
    plain_text,
    print_lines,
    terminal_columns,
)
from gpu_agent.cli.output.units import clock
from gpu_agent.cli.signals import Interruption
from gpu_agent.wire.codes import STATUS_COLOURS
from gpu_agent.wire.control import StatusDocument

READ_SECONDS = 1.0
"""How often the agent is read: it is on this machine, and sends nothing of its own accord."""
Status = Answer[StatusDocument]


class View(Protocol):
    """Where the status is shown."""

    def draw(self, answer: Status) -> None:
        """Show what was read."""

    def gone(self, why: str) -> None:
        """Say that no agent answers now."""

    def over(self) -> bool:
        """Say whether its reader has left."""


def watch_status(read: Callable[[], Status], *, as_json: bool) -> int:
    """Watch until interrupted, which is its good end; raises `Failure` where no agent is there at first."""
    first = read()
    if as_json or not can_redraw():
        _watch_until_interrupted(read, first, json_view() if as_json else lines_view())
        return ExitCode.OK
    with LiveLines(whole_screen=True) as live:
        view = ScreenView(live, first)
        _watch_until_interrupted(read, first, view)
    print_lines(status_page(view.shown.model, terminal_columns(), glyphs(), now=time.time()))
    return ExitCode.OK


def _watch_until_interrupted(read: Callable[[], Status], first: Status, view: View) -> None:
    with Interruption() as interruption:
        try:
            view.draw(first)
            while not view.over():
                time.sleep(READ_SECONDS)
                _read_again(read, view)
        except KeyboardInterrupt:
            interruption.finish()


def _read_again(read: Callable[[], Status], view: View) -> None:
    try:
        answer = read()
    except Failure as failure:
        if failure.code is not ExitCode.UNREACHABLE:
            raise
        view.gone(str(failure))
    else:
        view.draw(answer)


class PipeView:
    """The first status, then what changes; that no agent answers goes to stderr."""

    def __init__(self, begin: Callable[[Status], None], go_on: Callable[[list[Line], Status], None]) -> None:
        """`begin` prints the first status, `go_on` what is different from the status before."""
        self._begin = begin
        self._go_on = go_on
        self._shown: Status | None = None
        self._gone = False

    def draw(self, answer: Status) -> None:
        """Print what changed."""
        if self._gone:
            print_stderr("the agent answers again")
        self._gone = False
        if self._shown is None:
            self._begin(answer)
        else:
            self._go_on(list(status_changes(self._shown.model, answer.model)), answer)
        self._shown = answer

    def gone(self, why: str) -> None:
        """Say it once."""
        if not self._gone:
            print_stderr(f"{why.partition(': ')[0]}; waiting for it")
        self._gone = True

    def over(self) -> bool:
        """A pipe's reader may leave."""
        return reader_left()


def lines_view() -> PipeView:
    """Show the page, then a line for each change."""

    def begin(answer: Status) -> None:
        print_lines(status_page(answer.model, terminal_columns(), glyphs(), now=time.time()))

    def go_on(changes: list[Line], _: Status) -> None:
        print_changes(changes)

    return PipeView(begin, go_on)


def json_view() -> PipeView:
    """Show the document on one line, whenever something in it changed."""

    def begin(answer: Status) -> None:
        print(json.dumps(answer.document), flush=True)

    def go_on(changes: list[Line], answer: Status) -> None:
        if changes:
            begin(answer)

    return PipeView(begin, go_on)


class ScreenView:
    """The page on a whole terminal, redrawn in place; lines that do not fit are counted."""

    def __init__(self, live: LiveLines, first: Status) -> None:
        self._live = live
        self.shown = first
        self._read_at = 0.0

    def draw(self, answer: Status) -> None:
        """Draw it."""
        self.shown, self._read_at = answer, time.time()
        self._draw(Piece(clock(self._read_at, self._read_at), "dim"))

    def gone(self, why: str) -> None:
        """Leave the last page, and say so."""
        words = f"{why.partition(': ')[0]}; the page is of {clock(self._read_at, time.time())}"
        self._draw(Piece(words, "bold red"))

    def over(self) -> bool:
        """A terminal is left by Ctrl-C."""
        return False

    def _draw(self, foot: Piece) -> None:
        size, now = shutil.get_terminal_size(), time.time()
        room = size.lines - len(foot_lines((foot,), [], size.columns))
        blocks = status_blocks(self.shown.model, size.columns, glyphs(), now=now)
        page, left_out = fit_page(blocks, room)
        self._live.draw([*page, *foot_lines((foot,), left_out, size.columns)])


def status_changes(before: StatusDocument, after: StatusDocument) -> Iterator[Line]:
    """Yield a line for each change; figures that always move are none."""
    if plain_text(summary_line(before)) != plain_text(summary_line(after)):
        yield summary_line(after)
    old, new = (dict.fromkeys(job.job_id for job in one.jobs.in_flight) for one in (before, after))
    yield from (line(f"job {job} has begun") for job in new if job not in old)
    yield from (line(f"job {job} is over") for job in old if job not in new)
    if before.accept_public_jobs is not after.accept_public_jobs:
        yield _public(after)
    if before.machine is not None and after.machine is not None:
        yield from machine_changes(machine_inventory(before.machine), machine_inventory(after.machine))


def summary_line(answer: StatusDocument) -> Line:
    """Say in a line how an agent stands with its registry."""
    name, status, drain = answer.node_id or "no id yet", answer.status, answer.drain
    if drain is not None and drain.over:
        return line(f"{name} is ", Piece("drained", STATUS_COLOURS["draining"]), f": {drain.reason}")
    if not answer.connected:
        why = answer.session.why
        return line(f"{name} is ", Piece("not connected", "bold red"), f": {why}" if why else "")
    if status is None:
        return line(f"{name} is ", Piece("connected", "cyan"))
    drained = "" if drain is None else f"; its owner drains it: {drain.reason}"
    return line(f"{name} is ", status_piece(status.status), f": {status.reason}{drained}")


def _public(answer: StatusDocument) -> Line:
    if answer.accept_public_jobs:
        return line("public jobs are accepted")
    pauses = "; ".join(pause.detail for pause in answer.public_jobs.pauses)
    return line(Piece("no public jobs", "yellow"), f": {pauses or 'accept_public_jobs is false'}")
