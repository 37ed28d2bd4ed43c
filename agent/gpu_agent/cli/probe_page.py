"""The probe's page for a person: GPUs, host, models, what is wrong, and whether it could register.

What matters most stands last, next to the prompt. Every word from the machine is made printable on
its way into a line. It reads nothing: an inventory is handed in.
"""

from collections.abc import Iterator

from gpu_agent.cli.bars import Letters
from gpu_agent.cli.gpu_sheet import gpu_lines
from gpu_agent.cli.lines import BLANK, Line, Piece, line, wrapped
from gpu_agent.cli.probe_host import host_facts
from gpu_agent.cli.probe_models import model_lines
from gpu_agent.cli.probe_troubles import trouble_lines
from gpu_agent.cli.probe_verdict import declared, verdict
from gpu_agent.cli.sheet import Column, Row, Sheet, laid_out
from gpu_agent.probe.snapshot import COULD_REGISTER, exit_code
from gpu_agent.wire.inventory import Inventory

_ENDLESS = 1_000_000
_FACTS = (Column(head=""), Column(head="", folds=True))


def probe_page(inventory: Inventory, columns: int | None, letters: Letters, *, now: float) -> list[Line]:
    """Draw everything; `columns` is None for a pipe, `now` is wall time."""
    facts = [Row((line(Piece(name, "dim")), words)) for name, words in host_facts(inventory)]
    blocks = [
        list(_headline(inventory, columns)),
        gpu_lines(inventory.gpu.gpus, columns, letters),
        laid_out(Sheet(_FACTS, facts), columns),
        model_lines(inventory.models, columns),
        trouble_lines(inventory, columns, now=now),
        list(_verdict(inventory, columns)),
    ]
    page: list[Line] = []
    for block in blocks:
        page += [*([BLANK] if page and block else []), *block]
    return page


def _headline(inventory: Inventory, columns: int | None) -> Iterator[Line]:
    gpu = inventory.gpu
    versions = [
        *([f"driver {gpu.driver_version}"] if gpu.driver_version else []),
        *([f"CUDA {gpu.cuda_version}"] if gpu.cuda_version else []),
    ]
    about = f"  {', '.join(versions)}" if versions else ""
    yield from _fitted(line(Piece(inventory.host.hostname or "this machine", "bold"), about), columns)
    if inventory.simulated:
        yield from _fitted(line(Piece("SIMULATED: these GPUs do not exist", "bold magenta")), columns)


def _verdict(inventory: Inventory, columns: int | None) -> Iterator[Line]:
    good = exit_code(inventory) == COULD_REGISTER
    yield from _fitted(line(Piece(verdict(inventory), "green" if good else "bold red")), columns)
    if good:
        yield from _fitted(line(Piece(declared(inventory), "dim")), columns)


def _fitted(words: Line, columns: int | None) -> list[Line]:
    return wrapped(words, _ENDLESS if columns is None else columns)
