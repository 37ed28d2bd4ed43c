"""The probe's page for a person: GPUs, host, models, what is wrong, and whether it could register.

What matters most stands last, next to the prompt. Every word from the machine is made printable on
its way into a line. It reads nothing: an inventory is handed in.
"""

from collections.abc import Iterable, Iterator

from gpu_agent.cli.bars import Letters
from gpu_agent.cli.lines import BLANK, Line, Piece, line, wrapped
from gpu_agent.cli.probe.gpu_sheet import gpu_lines
from gpu_agent.cli.probe.host import host_facts
from gpu_agent.cli.probe.models import model_lines
from gpu_agent.cli.probe.troubles import trouble_lines
from gpu_agent.cli.probe.verdict import declared, verdict
from gpu_agent.cli.sheet import Column, Row, Sheet, laid_out
from gpu_agent.probe.snapshot import COULD_REGISTER, exit_code
from gpu_agent.wire.inventory import Inventory

_ENDLESS = 1_000_000
_LEAST_FIRST = ("models", "host")
"""What a terminal goes without where there is no room for all."""
_FACTS = (Column(head=""), Column(head="", folds=True))


def probe_page(inventory: Inventory, columns: int | None, letters: Letters, *, now: float) -> list[Line]:
    """Draw everything; `columns` is None for a pipe, `now` is wall time."""
    return _joined(_blocks(inventory, columns, letters, now=now).values())


def fitted_page(inventory: Inventory, size: tuple[int, int], letters: Letters, *, now: float) -> list[Line]:
    """Draw what a terminal of so many columns and lines has room for; what is left out is said."""
    columns, lines = size
    blocks = _blocks(inventory, columns, letters, now=now)
    for name in _LEAST_FIRST:
        if len(_joined(blocks.values())) <= lines:
            break
        if blocks[name]:
            blocks[name] = [line(Piece(f"({name}: no room here)", "dim"))]
    page = _joined(blocks.values())
    over = len(page) - lines
    if over <= 0:
        return page
    kept = max(1, len(blocks["GPUs"]) - over - 1)
    left = len(blocks["GPUs"]) - kept
    blocks["GPUs"] = [*blocks["GPUs"][:kept], line(Piece(f"({left} lines: no room here)", "dim"))]
    return _joined(blocks.values())[-max(1, lines) :]


def _blocks(
    inventory: Inventory, columns: int | None, letters: Letters, *, now: float
) -> dict[str, list[Line]]:
    facts = [Row((line(Piece(name, "dim")), words)) for name, words in host_facts(inventory)]
    return {
        "machine": list(_headline(inventory, columns)),
        "GPUs": gpu_lines(inventory.gpu.gpus, columns, letters),
        "host": laid_out(Sheet(_FACTS, facts), columns),
        "models": _models(inventory, columns),
        "troubles": trouble_lines(inventory, columns, now=now),
        "verdict": list(_verdict(inventory, columns)),
    }


def _models(inventory: Inventory, columns: int | None) -> list[Line]:
    """Draw them; where they could not be looked for, that is no "none"."""
    why = inventory.host.unknowns.get("models")
    if why is None:
        return model_lines(inventory.models, columns)
    return _fitted(line(Piece(f"Models unknown: {why}", "bold red")), columns)


def _joined(blocks: Iterable[list[Line]]) -> list[Line]:
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
