"""An agent's status as a page for people: how the registry judges this machine, then what it has.

It is made of what the probe's page and a node's page are made of. It judges nothing itself.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from gpu_agent.cli.bars import Letters
from gpu_agent.cli.lines import BLANK, Line, Piece, line, wrapped
from gpu_agent.cli.local.agent_machine import inventory_of
from gpu_agent.cli.local.job_sheet import job_lines
from gpu_agent.cli.local.status_facts import doing, facts
from gpu_agent.cli.nodes.sheet import STATUS_STYLES, status_piece
from gpu_agent.cli.probe.gpu_sheet import gpu_lines
from gpu_agent.cli.probe.models import model_lines
from gpu_agent.cli.probe.troubles import trouble_lines
from gpu_agent.cli.sheet import Column, Row, Sheet, laid_out

_ENDLESS = 1_000_000
_FACTS = (Column(head=""), Column(head="", folds=True))
_CHECKS = (Column(head="CHECK"), Column(head="DETAIL", folds=True))
_YIELDED = "yielded"
Answer = Mapping[str, Any]


def status_page(answer: Answer, columns: int | None, letters: Letters, *, now: float) -> list[Line]:
    """Draw an answer to `status`; `columns` is None for a pipe, `now` is wall time. Raises `Failure`."""
    told = [Row((line(Piece(name, "dim")), words)) for name, words in facts(answer, now=now)]
    blocks = [
        list(_headline(answer, _ENDLESS if columns is None else columns)),
        laid_out(Sheet(_FACTS, told), columns),
        laid_out(Sheet(_CHECKS, list(_failing(answer))), columns),
        job_lines(answer["jobs"]["in_flight"], columns, now=now),
        *_machine(answer, columns, letters, now=now),
    ]
    page: list[Line] = []
    for block in blocks:
        page += [*([BLANK] if page and block else []), *block]
    return page


def _headline(answer: Answer, columns: int) -> Iterator[Line]:
    status, who = answer["status"], Piece(answer["node_id"] or "no id yet", "bold")
    if (answer["drain"] or {}).get("over"):
        yield line(who, "  ", Piece("drained", STATUS_STYLES["draining"]))
        words = f"Emptied, as its owner asked: {answer['drain']['reason']}. `gpu-agent resume` takes it back."
        yield from wrapped(line(words), columns)
    elif not answer["connected"]:
        yield line(who, "  ", Piece("not connected", "bold red"))
        again = " `gpu-agent resume` has it try again." if answer["session"]["state"] == _YIELDED else ""
        words = f"The agent runs, and the registry does not hear it: {doing(answer)}.{again}"
        yield from wrapped(line(words), columns)
    elif status is None:
        yield line(who, "  ", Piece("connected", "cyan"))
        yield line("The registry has not said yet how it judges this node.")
    else:
        code = Piece(f"  ({status['reason_code']})", "dim") if status["reason_code"] else ""
        yield line(who, "  ", status_piece(status["status"]), code)
        yield from wrapped(line(status["reason"] or ""), columns)
        if status["clears_when"]:
            yield from wrapped(line(Piece("Changes when: ", "bold"), status["clears_when"]), columns)


def _failing(answer: Answer) -> Iterator[Row]:
    """The checks that the registry says this node fails; those it passes need no words."""
    status = answer["status"]
    if status is not None and status["current"]:
        for check in status["checks"]:
            if not check["ok"]:
                yield Row((line(Piece(check["name"], "red")), line(check["detail"])))


def _machine(answer: Answer, columns: int | None, letters: Letters, *, now: float) -> Iterator[list[Line]]:
    machine = answer["machine"]
    if machine is None:
        return
    inventory = inventory_of(machine)
    if inventory.simulated:
        yield [line(Piece("SIMULATED: these GPUs do not exist", "bold magenta"))]
    if not inventory.gpu.gpus:
        words = line(Piece(inventory.gpu.detail or "No GPU was found.", "bold red"))
        yield wrapped(words, _ENDLESS if columns is None else columns)
    yield gpu_lines(inventory.gpu.gpus, columns, letters)
    yield model_lines(inventory.models, columns)
    yield trouble_lines(inventory, columns, now=now)
