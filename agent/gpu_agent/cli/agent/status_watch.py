"""`gpu-agent status --watch`: the agent's status until interrupted, read once a second.

An agent that stops answering ends no watch: it is waited for.
"""

import time
from collections.abc import Callable, Iterator

from gpu_agent.cli.agent.probe_page import machine_changes
from gpu_agent.cli.agent.status_page import machine_inventory, status_blocks, status_page
from gpu_agent.cli.client.answers import Answer
from gpu_agent.cli.command import ExitCode, Failure
from gpu_agent.cli.output.blocks import fit_page
from gpu_agent.cli.output.inventory import status_piece
from gpu_agent.cli.output.text import Line, Piece, glyphs, line, plain_text, terminal_columns
from gpu_agent.cli.output.units import clock
from gpu_agent.cli.output.watch import Page, Show, State, Update, watch
from gpu_agent.wire.codes import STATUS_COLOURS
from gpu_agent.wire.control import StatusDocument

READ_SECONDS = 1.0
"""How often the agent is read: it is on this machine, and sends nothing of its own accord."""
Status = Answer[StatusDocument]


def watch_status(read: Callable[[], Status], *, as_json: bool) -> int:
    """Watch until interrupted, which is its good end; raises `Failure` where no agent is there at first."""
    return watch(PAGE, lambda show: _follow(read, show), as_json=as_json)


def _follow(read: Callable[[], Status], show: Show[Status]) -> None:
    answer, read_at = read(), time.time()
    update = _live(answer, read_at)
    while show(update):
        time.sleep(READ_SECONDS)
        try:
            answer, read_at = read(), time.time()
            update = _live(answer, read_at)
        except Failure as failure:
            if failure.code is not ExitCode.UNREACHABLE:
                raise
            update = _gone(answer, read_at, str(failure).partition(": ")[0])


def _live(answer: Status, read_at: float) -> Update[Status]:
    return Update(answer, Piece(clock(read_at, read_at), "dim"), notice="the agent answers again")


def _gone(answer: Status, read_at: float, why: str) -> Update[Status]:
    foot = Piece(f"{why}; the page is of {clock(read_at, time.time())}", "bold red")
    return Update(answer, foot, State.GONE, f"{why}; waiting for it")


def _whole(answer: Status) -> list[Line]:
    return status_page(answer.model, terminal_columns(), glyphs(), now=time.time())


def _fitted(answer: Status, size: tuple[int, int]) -> tuple[list[Line], list[str]]:
    columns, lines = size
    return fit_page(status_blocks(answer.model, columns, glyphs(), now=time.time()), lines)


def _changes(before: Status, after: Status) -> Iterator[Line]:
    return status_changes(before.model, after.model)


PAGE: Page[Status] = Page(
    whole=_whole,
    fitted=_fitted,
    changes=_changes,
    json=lambda answer: answer.document,
    json_is_due=lambda before, after: any(_changes(before, after)),
)


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
    """Describe in a line the state of an agent's registration."""
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
